"""The real models that are compared every night, each at one revision; data only.

Small enough for a hosted runner, one for each family of layers that it can hold. None is gated.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A model of the Hub; `revision` is a commit."""

    id: str
    revision: str
    family: str


MODELS = (
    Model("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e", "gpt2"),
    Model("HuggingFaceTB/SmolLM2-135M", "93efa2f097d58c2a74874c7e644dbc9b0cee75a2", "llama"),
    Model("Qwen/Qwen2.5-0.5B", "060db6499f32faf8b98477b0a26969ef7d8b9987", "qwen2"),
    Model("Qwen/Qwen3-0.6B", "c1899de289a04d12100db370d81485cdf75e47ca", "qwen3"),
)
