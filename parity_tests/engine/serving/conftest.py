"""Models that workers of these tests share."""

from __future__ import annotations

import pytest

from .models import worded


@pytest.fixture(scope="session")
def worded_model(random_model):
    """`worded_model(family, variant)` -> a small random model whose ids are words, made once."""
    made: dict[tuple[str, str], object] = {}

    def make(family: str, variant: str):
        if (family, variant) not in made:
            made[family, variant] = worded(random_model(family, variant))
        return made[family, variant]

    return make
