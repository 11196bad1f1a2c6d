"""One module per command of the command line, with a function of the command's name.

The function's docstring is the command's help and its parameters are the options; `engine/cli.py`
lists it. A command reads options and prints, and knows no more than that: what it does stands in
the modules it calls. It imports them inside the function, so that `engine --help` waits for none.
"""
