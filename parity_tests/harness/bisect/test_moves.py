"""What moved between two traces: by the limits, by bits, and without tokens that are ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bisect.moves import Recorded, first, first_module, moves_of
from harness.limits import Limits, Row
from harness.traces import as_bytes
from harness.types import ISOLATED, LOGITS, PROPAGATED, Evidence, Probe, Site

T, C, NOISE, LIMIT = 6, 8, 1e-6, 4.0
EMBEDDING = Site("embedding", None, "", "embed")
BLOCKS = [Site("block", i, "", f"model.layers.{i}") for i in range(3)]
ROUTER, EXPERTS = Site("router", 1), Site("experts", 1)
PROBE = Probe("text", "text", "", tuple(range(1, T + 1)), scales=(0, 0, 0, 0))
LIMITS = Limits(
    "cpu-x86_64", "", {(m, "float32", "text"): Row(LIMIT, 0.1, 60, 1.0) for m in
                       (ISOLATED, PROPAGATED, "module")}, {},
)  # fmt: skip


def oracle() -> dict[Site, np.ndarray]:
    random = np.random.default_rng(0)
    sites = [EMBEDDING, *BLOCKS, LOGITS]
    return {site: random.standard_normal((T, C)).astype(np.float32) for site in sites}


def evidence(arrays, **more) -> dict[Probe, Evidence]:
    both = {mode: {s: a.astype(np.float64) for s, a in arrays.items()} for mode in
            (ISOLATED, PROPAGATED)}  # fmt: skip
    noise = {mode: dict.fromkeys(arrays, NOISE) for mode in both}
    return {PROBE: Evidence(both, {}, noise, arrays[LOGITS], **more)}


def recorded(path, arrays, changes=(), mode=None) -> Recorded:
    """A trace of arrays, with a factor at some sites, in one mode or both."""
    keys = {}
    for site, array in arrays.items():
        name = {"router": "layers.1:router", "experts": "layers.1:experts"}.get(
            site.kind, site.path if site.kind == "block" else site.kind
        )
        for each in (ISOLATED, PROPAGATED):
            factor = dict(changes).get(site, 1.0) if mode in (None, each) else 1.0
            keys[f"text/{each}/{name}"] = (array * factor).astype(array.dtype)
    path.write_bytes(as_bytes(keys, dtype="float32", device="cpu-x86_64"))
    return Recorded(path)


def moves(tmp_path, changes, mode=None, bits=False):
    arrays = oracle()
    pair = (
        recorded(tmp_path / "a.safetensors", arrays),
        recorded(tmp_path / "b.safetensors", arrays, changes, mode),
    )
    return moves_of(*pair, evidence(arrays), LIMITS, "float32", bits)


@pytest.mark.parametrize("bits", [False, True])
def test_a_trace_has_not_moved_from_itself(tmp_path, bits):
    found = moves(tmp_path, {}, bits=bits)
    assert len(found) == 2 * 5 and not any(move.moved or move.difference for move in found)
    assert first(found) is None


@given(st.floats(1e-7, 1e-4))
def test_a_site_has_moved_beyond_its_limit_and_not_below(tmp_path_factory, size):
    folder = tmp_path_factory.mktemp("traces")
    found = moves(folder, {BLOCKS[1]: 1 + size})
    for move in found:
        assert move.moved == (move.ratio > LIMIT)
        if move.site == BLOCKS[1]:
            assert move.difference == pytest.approx(size, rel=0.1, abs=1e-7)
            assert move.after == pytest.approx(move.ratio, rel=0.1) and move.before == 0
        else:
            assert move.bits == 0


def test_the_first_is_isolated_and_then_in_execution_order(tmp_path):
    both = {BLOCKS[2]: 1.1, BLOCKS[1]: 1.01, LOGITS: 2.0}
    at = first(moves(tmp_path, both))
    assert at and (at.site, at.mode) == (BLOCKS[1], ISOLATED)
    at = first(moves(tmp_path, both, PROPAGATED))
    assert at and (at.site, at.mode) == (BLOCKS[1], PROPAGATED)


def test_one_bit_is_a_move_only_by_bits(tmp_path):
    change = {BLOCKS[0]: 1 + 2.0**-23}
    assert first(moves(tmp_path, change)) is None
    at = first(moves(tmp_path, change, bits=True))
    assert at and at.site == BLOCKS[0] and 0 < at.bits <= 1 and at.ratio < LIMIT


def test_other_shapes_have_moved(tmp_path):
    arrays = oracle()
    one = recorded(tmp_path / "a.safetensors", arrays)
    other = recorded(tmp_path / "b.safetensors", arrays | {LOGITS: np.ones((T, C + 1), np.float32)})
    found = moves_of(one, other, evidence(arrays), LIMITS, "float32")
    at = first(found)
    assert at and at.site == LOGITS and at.note and "shape" in at.note


def test_blocks_that_a_golden_fed_otherwise_are_not_judged_alone(tmp_path):
    arrays = oracle()
    probe = Probe("text", "text", "", PROBE.tokens)
    side = recorded(tmp_path / "a.safetensors", arrays)
    found = moves_of(side, side, {probe: evidence(arrays)[PROBE]}, LIMITS, "float32")
    assert {move.mode for move in found} == {PROPAGATED}


@pytest.mark.parametrize(("margin", "moved"), [(1e-7, False), (1.0, True)])
def test_a_token_that_went_to_other_experts_counts_only_beyond_noise(tmp_path, margin, moved):
    arrays = oracle()
    router = np.tile(np.array([3.0, 2.0, 1.0, 0.0], np.float32), (T, 1))
    router[2] = [3.0, 2.0, 2.0 - margin, 0.0]
    arrays |= {ROUTER: router, EXPERTS: np.tile(np.array([0, 1], np.int32), (T, 1))}
    other = {site: array.copy() for site, array in arrays.items()}
    other[EXPERTS][2] = [0, 2]
    other[BLOCKS[1]][2] += 1.0
    sides = (
        recorded(tmp_path / "a.safetensors", arrays),
        recorded(tmp_path / "b.safetensors", other),
    )
    found = moves_of(*sides, evidence(arrays), LIMITS, "float32")
    isolated = {move.site: move for move in found if move.mode == ISOLATED}
    assert isolated[BLOCKS[1]].moved == moved


def test_of_modules_small_ones_before_a_large_one_count_by_bits_alone(tmp_path):
    modules = {Site("module", 1, part, f"model.layers.1.{part}"): size for part, size in
               (("norm", 1.0), ("q", 1 + 5e-6), ("k", 1.5))}  # fmt: skip
    arrays = {site: oracle()[LOGITS] for site in [*modules, LOGITS]}
    known = evidence(arrays)
    keys = {
        f"text/{ISOLATED}/{site.path}": (arrays[site] * np.float32(size), arrays[site])
        for site, size in modules.items()
    }
    sides = []
    for i in (0, 1):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(
            as_bytes({k: pair[i] for k, pair in keys.items()}, dtype="float32", device="cpu")
        )
        sides.append(Recorded(path))
    found = {}
    for bits in (False, True):
        compared = moves_of(sides[0], sides[1], known, LIMITS, "float32", bits, ("module",))
        at = first_module(compared, bits)
        found[bits] = at and at.site.part
    assert found == {False: "k", True: "q"}
