"""Which release of a package moved a model's numbers, where first, and by how much.

`run.py` asks; `line.py` and `index.py` know the releases, `search.py` what to try next,
`environments.py` keeps a virtual environment for each, `recording.py` and `child.py` run the
candidate in one, `ground.py` has what all are measured against, `moves.py` compares two of them.
docs/BISECT.md says what "moved" means.
"""
