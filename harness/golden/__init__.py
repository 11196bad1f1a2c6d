"""Goldens: recorded references. `store.py` writes, finds and checks them; `train.py` makes the
models they are recorded from."""
