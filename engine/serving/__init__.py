"""The server: requests of three protocols over HTTP, batched by one worker.

`app.py` composes; each protocol is one module; `worker.py` owns MLX. Nothing above the worker
touches an array. Importing the package imports no web framework.
"""
