"""Which release of a package moved a model's numbers, where first, and by how much.

`run.py` asks, `search.py` chooses what to try next, `index.py` knows the releases, `environments.py`
keeps a virtual environment for each, `recording.py` runs the candidate in one (`child.py`),
`moves.py` compares what two of them computed. docs/BISECT.md says what "moved" means.
"""
