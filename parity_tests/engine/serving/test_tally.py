"""What a worker counts."""

from __future__ import annotations

import dataclasses

from engine.serving import tally
from engine.serving.requests import WorkerStatus
from engine.serving.tally import Tally


def test_figures_are_fields_of_a_status():
    counts = Tally()
    counts["error"] += 2
    counts["requests"] += 3
    figures = counts.figures()
    assert set(figures) <= {field.name for field in dataclasses.fields(WorkerStatus)}
    assert (figures["failed"], figures["requests"], figures["cancelled"]) == (2, 3, 0)


def test_only_what_was_made_lately_counts_for_speed(monkeypatch):
    now, counts = [100.0], Tally()
    monkeypatch.setattr(tally.time, "monotonic", lambda: now[0])
    counts.made(10)
    assert counts.figures()["tokens_per_second"] == 2
    now[0] += 3
    counts.made(5)
    assert counts.figures()["tokens_per_second"] == 3
    now[0] += 3
    assert counts.figures()["tokens_per_second"] == 1
    counts.made(0)
    assert len(counts._recent) == 2  # what is old is not kept
