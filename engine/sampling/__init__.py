"""From logits to a token: what a request may wish for, in the order of the library it knows.

One file each for the wishes (`wishes.py`), the orders (`orders.py`, a table), the filters
(`filters.py`) and the state of a request (`sampler.py`). Nothing here knows text, a model, or that
other requests exist. docs/SAMPLING.md says where the libraries differ.
"""

from __future__ import annotations

from .orders import ORDERS, Order
from .sampler import Sampler, best, logprobs
from .wishes import Sampling

__all__ = ["ORDERS", "Order", "Sampler", "Sampling", "best", "logprobs"]
