"""Shares: together they are the whole, for every family, any number of ranks, packed or not."""

from __future__ import annotations

import re

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.architectures import architecture, decoder_spec, supported
from engine.config import Config
from engine.decoder import Decoder
from engine.errors import RanksUnavailable
from engine.layers.packed import pack
from engine.sharding import Addend, Slice, bounds, heads_of, share_of
from engine.spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from engine.weights.quantised import Packing
from harness.random_models import config_of, variants

VARIANTS = variants()
FIRST = [(family, next(iter(architecture(family).TINY))) for family in supported()]


def spec_of(family: str, variant: str) -> DecoderSpec:
    return decoder_spec(Config(config_of(family, variant)))


@given(units=st.integers(1, 50), ranks=st.integers(1, 12), grain=st.integers(1, 8))
def test_bounds_are_the_whole_once_and_end_between_grains(units, ranks, grain):
    size = units * grain
    if units < ranks:
        with pytest.raises(RanksUnavailable, match=f"this has .* too few for {ranks} ranks"):
            bounds(size, 0, ranks, "this", grain)
        return
    parts = [bounds(size, rank, ranks, "this", grain) for rank in range(ranks)]
    assert [n for start, stop in parts for n in range(start, stop)] == list(range(size))
    assert all(start % grain == 0 and start < stop for start, stop in parts)
    widths = [stop - start for start, stop in parts]
    assert max(widths) - min(widths) <= grain


@given(kv=st.integers(1, 8), each=st.integers(1, 8), ranks=st.integers(2, 16))
def test_query_heads_stay_with_their_key_value_heads(kv, each, ranks):
    heads = kv * each
    if each < -(-ranks // kv) and ranks > kv:
        with pytest.raises(RanksUnavailable, match=f"{heads} heads over {kv} "):
            [heads_of(heads, kv, rank, ranks) for rank in range(ranks)]
        return
    parts = [heads_of(heads, kv, rank, ranks) for rank in range(ranks)]
    owned = [n for q, _, _ in parts for n in range(*q)]
    assert owned == list(range(heads))
    assert [n for _, k, counts in parts if counts for n in range(*k)] == list(range(kv))
    for q, k, _ in parts:
        of_rank = (q[1] - q[0]) // (k[1] - k[0])  # of one kv head here
        for n in range(*q):
            assert n // each == k[0] + (n - q[0]) // of_rank


@given(groups=st.integers(2, 6), each=st.integers(1, 4), grain=st.sampled_from([1, 2, 4]))
def test_heads_end_at_multiples_of_a_grain(groups, each, grain):
    kv = groups * grain
    for ranks in range(2, groups + 1):
        for rank in range(ranks):
            (start, stop), _, _ = heads_of(kv * each, kv, rank, ranks, grain)
            assert start % grain == 0 and (stop % grain == 0 or rank + 1 == ranks)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(("family", "variant"), FIRST)
def test_the_parts_of_all_ranks_make_the_whole_of_every_parameter(family, variant, ranks):
    check_whole(spec_of(family, variant), ranks)


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_the_same_of_every_variant(family, variant, ranks):
    check_whole(spec_of(family, variant), ranks)


def check_whole(spec: DecoderSpec, ranks: int) -> None:
    shares = [share_of(spec, rank, ranks) for rank in range(ranks)]
    shapes = Decoder(spec).shapes()
    small = [Decoder(share.spec).shapes() for share in shares]
    cut = 0
    for at, (path, shape) in enumerate(shapes.items()):
        whole = mx.array(np.random.default_rng(at).integers(1, 99, shape).astype(np.float32))
        parts = [share.parameters.get(path) for share in shares]
        if parts[0] is None:
            assert all(own[path] == shape for own in small)
            continue
        held = [part.of(whole) for part in parts]
        total = sum(part.addend(x) for part, x in zip(parts, held, strict=True))
        assert mx.array_equal(total, whole), path
        if path.partition(".")[0] not in ("embed", "head"):
            assert [x.shape for x in held] == [own[path] for own in small]
        cut += isinstance(parts[0], Slice)
    assert cut >= 5 * len(spec.blocks)


def test_two_ranks_with_the_same_part_are_seen():
    """The negative control of the test above."""
    whole, part = mx.arange(1, 7), Slice(-1, 0, 3, 6)
    assert not mx.array_equal(part.addend(part.of(whole)) * 2, whole)
    both = Addend(True)
    assert not mx.array_equal(both.addend(both.of(whole)) * 2, whole)


def test_parameters_that_no_rank_may_lack_are_whole():
    """Norms, routers and latent vectors: what a missing row of the tables leaves whole by mistake
    would show in `test_ranks`, as another shape or another sum."""
    share = share_of(spec_of("deepseek_v3", "yarn"), 0, 2)
    whole = {path for path in Decoder(share.whole).shapes() if path not in share.parameters}
    last = {re.sub(r"blocks\.\d+\.", "", path) for path in whole}
    assert last == {
        "norm.weight", "attn_norm.weight", "mlp_norm.weight", "attn.q_down.weight",
        "attn.q_down.bias", "attn.q_norm.weight", "attn.kv_down.weight", "attn.kv_down.bias",
        "attn.kv_norm.weight", "mlp.router.weight", "mlp.selection_bias",
    }  # fmt: skip


def decoder(**changes) -> DecoderSpec:
    """A block of 8 heads of width 16 over 4, and an MLP of 192."""
    attention = AttentionSpec(8, 4, 16, 0.25)
    block = BlockSpec(attention, MLPSpec(192, "silu"), NormSpec("rms", 1e-5))
    whole = DecoderSpec("made", 64, 128, (block,), block.norm, (), True, 64)
    return whole if not changes else DecoderSpec(**{**whole.__dict__, **changes})


@pytest.mark.parametrize("how", [Packing(64, 4), Packing(32, 5), Packing(16, 4, "nvfp4")])
def test_packed_matrices_are_cut_between_groups(how):
    spec = decoder()
    places = {f"blocks.0.{name}": how for name in ("attn.q", "attn.o", "mlp.up", "mlp.down")}
    whole = Decoder(spec)
    pack(whole, places, mx.float32)
    for rank in (0, 1):
        share = share_of(spec, rank, 2, places)
        small = Decoder(share.spec)
        pack(small, places, mx.float32)
        own = small.shapes()
        for path, shape in whole.shapes().items():
            part = share.parameters.get(path)
            if part is not None and not path.startswith("embed"):
                assert part.of(mx.zeros(shape)).shape == own[path], path
        matrix = mx.random.normal((128, 192))
        parts = how.pack(matrix)
        cut = {k: share.parameters[f"blocks.0.mlp.down.{k}"].of(v) for k, v in parts.items()}
        width = share.parameters["blocks.0.mlp.down.scales"]
        columns = slice(width.start * how.group_size, width.stop * how.group_size)
        assert mx.array_equal(how.unpack(cut), how.unpack(parts)[:, columns])


def test_what_cannot_be_cut_is_refused_by_its_number():
    places = {"blocks.0.mlp.down": Packing(64, 4)}
    with pytest.raises(RanksUnavailable, match=r"width of blocks\.0\.mlp\.down has 3 groups of 64"):
        share_of(decoder(), 0, 4, places)
    with pytest.raises(RanksUnavailable, match="8 heads over 4 key/value heads are too few for 9"):
        share_of(decoder(), 0, 9)
    tiny = decoder(vocab=3)
    with pytest.raises(RanksUnavailable, match="the vocabulary has 3, too few for 4 ranks"):
        share_of(tiny, 0, 4)
