"""Every family of causal language models that transformers and a candidate both have, judged.

Tiny models are made by rule (`tiny.py`, `variants.py`) and short recipes (`recipes.toml`), and
judged by the ordinary verdict (`run.py`); what is known to diverge stands in `waivers.toml`.
"""

from .run import make
from .whole import Atlas

__all__ = ["Atlas", "make"]
