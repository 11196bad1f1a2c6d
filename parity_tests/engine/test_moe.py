"""Mixture of experts: routing and experts against their definition in numpy, and both spellings."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_unflatten

from engine.architectures import architecture, decoder_spec, supported
from engine.config import Config
from engine.decoder import Decoder
from engine.errors import CorruptWeights, InvalidConfig, UnsupportedArchitecture
from engine.files import find_model
from engine.layers import no_tap
from engine.layers.moe import MoE, choose, expert_linear
from engine.model import load
from engine.spec import MLPSpec, MoESpec
from engine.weights import read_weights, write_weights
from engine.weights.arrange import arrange
from harness.random_models import config_of

C, F = 10, 6
DTYPES = [mx.bfloat16, mx.float16]
VARIANTS = [  # whose checkpoints hold the experts one by one
    (family, variant)
    for family in supported()
    for variant, config in architecture(family).TINY.items()
    if "num_experts_per_tok" in config
    and any("{e}" in name.source for name in decoder_spec(Config(config)).names)
]

specs = st.builds(
    lambda experts, top_k, shared, gated, groups, scoring, float32_logits, router_bias, **fields: (
        MoESpec(
            experts * groups[0],
            min(top_k, experts * groups[1]),
            F,
            "silu",
            scoring=scoring,
            groups=groups[0],
            top_groups=groups[1],
            shared=MLPSpec(4, "silu") if shared else None,
            shared_gate=shared and gated,
            float32_logits=float32_logits and not router_bias,
            router_bias=router_bias,
            **fields,
        )
    ),
    experts=st.integers(2, 7),
    top_k=st.integers(1, 4),
    shared=st.booleans(),
    gated=st.booleans(),
    groups=st.sampled_from([(1, 1), (2, 1), (3, 2), (2, 2)]),
    group_best=st.sampled_from([1, 2]),
    scoring=st.sampled_from(["softmax", "sigmoid", "softmax of chosen"]),
    clamp=st.sampled_from([None, 0.3]),
    up_offset=st.sampled_from([0.0, 1.0]),
    router_bias=st.booleans(),
    bias=st.booleans(),
    selection_bias=st.booleans(),
    renormalise=st.booleans(),
    scale=st.sampled_from([1.0, 2.5]),
    float32_logits=st.booleans(),
    rounded_weights=st.booleans(),
)


def filled(spec: MoESpec, seed: int) -> tuple[MoE, dict[str, np.ndarray]]:
    """A layer with random weights, and the weights in float64."""
    moe, rng = MoE(spec, C), np.random.default_rng(seed)
    weights = {
        path: rng.normal(0, 1 / array.shape[-1] ** 0.5, array.shape).astype(np.float32)
        for path, array in tree_flatten(moe.parameters())  # type: ignore[misc]
    }
    moe.update(tree_unflatten([(path, mx.array(value)) for path, value in weights.items()]))
    return moe, {path: value.astype(float) for path, value in weights.items()}


def inputs(tokens: int, seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed + 1).normal(size=(batch, tokens, C)).astype(np.float32)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def scores_of(spec: MoESpec, w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """What experts are chosen by, a bias apart."""
    logits = x @ w["router.weight"].T + w.get("router.bias", 0.0)
    if spec.scoring == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    return np.exp(logits) / np.exp(logits).sum() if spec.scoring == "softmax" else logits


def ranking(spec: MoESpec, w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """What experts are chosen by, for one token."""
    return scores_of(spec, w, x) + w.get("selection_bias", np.zeros(spec.experts))


def totals(spec: MoESpec, scores: np.ndarray) -> np.ndarray:
    """What groups are chosen by."""
    return np.sort(scores.reshape(spec.groups, -1))[:, -spec.group_best :].sum(1)


def choice(spec: MoESpec, scores: np.ndarray) -> list[int]:
    """The experts of the highest scores, in the groups of the highest totals."""
    groups = np.argsort(-totals(spec, scores))[: spec.top_groups]
    there = [e for e in range(spec.experts) if e // (spec.experts // spec.groups) in groups]
    return sorted(there, key=lambda e: -scores[e])[: spec.top_k]


def decided(spec: MoESpec, scores: np.ndarray) -> bool:
    """Whether no choice is so close that rounding could turn it."""
    close = [np.diff(np.sort(scores)).min()]
    if spec.groups > spec.top_groups:
        close.append(np.diff(np.sort(totals(spec, scores))).min())
    return min(close) > 1e-5


def token(
    spec: MoESpec, w: dict[str, np.ndarray], x: np.ndarray, chosen: list[int] | None = None
) -> np.ndarray:
    """The definition: one token (C,) through its experts, or through those forced on it."""
    if chosen is None:
        chosen = choice(spec, ranking(spec, w, x))
    scores = scores_of(spec, w, x)
    if spec.scoring == "softmax of chosen":
        scores = np.exp(scores)
    renormalised = spec.renormalise or spec.scoring == "softmax of chosen"
    total = sum(scores[e] for e in chosen) if renormalised else 1.0
    y = np.zeros(C)

    def product(matrix: str, e: int, x: np.ndarray) -> np.ndarray:
        bias = w[f"experts.{matrix}_bias"][e] if spec.bias else 0.0
        return w[f"experts.{matrix}"][e] @ x + bias

    for e in chosen:
        gate, up = product("gate", e, x), product("up", e, x)
        if spec.clamp:
            gate, up = np.minimum(gate, spec.clamp), np.clip(up, -spec.clamp, spec.clamp)
        hidden = silu(gate) * (up + spec.up_offset)
        y += spec.scale * scores[e] / total * product("down", e, hidden)
    if spec.shared:
        hidden = silu(w["shared.gate.weight"] @ x) * (w["shared.up.weight"] @ x)
        share = 1.0
        if spec.shared_gate:
            share = 1 / (1 + np.exp(-(w["shared_gate.weight"] @ x)))
        y += share * (w["shared.down.weight"] @ hidden)
    return y


def close(actual: mx.array, expected: np.ndarray, tolerance: float = 1e-5) -> bool:
    scale = max(float(np.abs(expected).max()), 1e-3)
    return float(np.abs(np.array(actual.astype(mx.float32)) - expected).max()) <= tolerance * scale


class TestDefinition:
    @settings(deadline=None, max_examples=80)
    @given(spec=specs, tokens=st.integers(1, 5), batch=st.integers(1, 2), seed=st.integers(0, 999))
    def test_layer(self, spec, tokens, batch, seed):
        moe, w = filled(spec, seed)
        x = inputs(tokens, seed, batch)
        rows = x.reshape(-1, C).astype(float)
        for row in rows:  # no choice that rounding could turn
            assume(decided(spec, ranking(spec, w, row)))
        expected = np.stack([token(spec, w, row) for row in rows]).reshape(x.shape)
        assert close(moe(mx.array(x), no_tap), expected)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"top_groups": 3}, id="groups"),
            pytest.param({"group_best": 1}, id="group_best"),
            pytest.param({"clamp": 0.5}, id="clamp"),
            pytest.param({"up_offset": 0.0}, id="up_offset"),
            pytest.param({"scoring": "softmax"}, id="scoring"),
        ],
    )
    def test_each_field_matters(self, change):
        """The control: with another field, the layer is not close to the definition."""
        spec = MoESpec(
            9, 3, F, "silu", scoring="softmax of chosen", groups=3, top_groups=2, clamp=0.3,
            up_offset=1.0, router_bias=True, bias=True, renormalise=False,
        )  # fmt: skip
        moe, w = filled(spec, 0)
        x = inputs(30, 0)
        expected = np.stack([token(spec, w, row) for row in x[0].astype(float)])
        assert close(moe(mx.array(x), no_tap)[0], expected)
        moe._spec = moe.experts._spec = replace(spec, **change)
        assert not close(moe(mx.array(x), no_tap)[0], expected, 1e-3)

    @settings(deadline=None, max_examples=60)
    @given(scores=st.lists(st.integers(0, 3), min_size=2, max_size=40), data=st.data())
    def test_equal_scores_give_the_first_expert(self, scores, data):
        count = data.draw(st.integers(1, len(scores)))
        best = sorted(range(len(scores)), key=lambda e: (-scores[e], e))[:count]
        found = choose(mx.array([[scores]], mx.float32), count)
        assert found.tolist() == [[sorted(best)]]

    def test_selection_bias_chooses_and_does_not_weigh(self):
        spec = MoESpec(4, 2, F, "silu", scoring="sigmoid", selection_bias=True, renormalise=False)
        moe, w = filled(spec, 3)
        x = inputs(1, 3)
        moe.selection_bias = mx.array([0.0, 9.0, 0.0, 9.0])
        assert close(moe(mx.array(x), no_tap)[0, 0], token(spec, w, x[0, 0].astype(float), [1, 3]))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtype_of_the_model_comes_out(self, dtype):
        spec = MoESpec(5, 2, F, "silu", shared=MLPSpec(4, "silu"), float32_logits=True)
        moe, w = filled(spec, 5)
        moe.set_dtype(dtype)
        x = mx.array(inputs(1, 5)).astype(dtype)
        found = moe(x, no_tap)
        row = np.array(x.astype(mx.float32))[0, 0].astype(float)
        assert found.dtype == dtype
        assert close(found[0, 0], token(spec, w, row), 3e-2)

    def test_unknown_scoring_is_refused(self):
        with pytest.raises(UnsupportedArchitecture, match="'linear': the engine has softmax"):
            MoE(MoESpec(4, 2, F, "silu", scoring="linear"), C)


class TestTaps:
    spec = MoESpec(6, 3, F, "silu", shared=MLPSpec(4, "silu"))

    def test_what_is_told(self):
        moe, _ = filled(self.spec, 0)
        x, seen = mx.array(inputs(4, 0)), {}

        def tap(name: str, value: mx.array) -> mx.array:
            seen[name] = value
            return value

        assert mx.array_equal(moe(x, tap), moe(x, no_tap))
        assert seen["router"].shape == (1, 4, 6)
        assert seen["experts"].shape == (1, 4, 3)
        assert mx.array_equal(seen["experts"], mx.sort(seen["experts"], axis=-1))
        assert set(seen) == {"router", "experts", "shared"} | {
            f"shared.{part}" for part in ("gate", "up", "down")
        }

    @settings(deadline=None, max_examples=30)
    @given(seed=st.integers(0, 999), tokens=st.integers(1, 4), data=st.data())
    def test_forced_experts_are_weighed_by_own_scores(self, seed, tokens, data):
        moe, w = filled(self.spec, seed)
        x = inputs(tokens, seed)
        any_order = st.permutations(range(6)).map(lambda order: order[:3])
        forced = [data.draw(any_order) for _ in range(tokens)]
        found = moe(mx.array(x), lambda name, v: mx.array([forced]) if name == "experts" else v)
        rows = zip(x[0].astype(float), forced, strict=True)
        assert close(found[0], np.stack([token(self.spec, w, row, e) for row, e in rows]))

    def test_forced_logits_are_used(self):
        moe, _ = filled(self.spec, 1)
        x = inputs(2, 1)
        logits = mx.broadcast_to(mx.array([0.0, 9, 0, 9, 0, 9]), (1, 2, 6))
        seen = {}

        def tap(name: str, value: mx.array) -> mx.array:
            seen[name] = logits if name == "router" else value
            return seen[name]

        moe(mx.array(x), tap)
        assert seen["experts"].tolist() == [[[1, 3, 5]] * 2]


class TestExpertLinear:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rows", [2, 12])
    def test_lower_dtypes_round_the_product_once(self, dtype, rows):
        """Few rows and many, of which the CPU build copies other matrices."""
        x = mx.random.normal((rows, 16), key=mx.random.key(1)).astype(dtype)
        weight = mx.random.normal((5, 7, 16), key=mx.random.key(2)).astype(dtype)
        experts = mx.sort(mx.arange(rows) * 3 % 5)
        found = expert_linear(x, weight, experts, True)
        exact = x[:, None].astype(mx.float32) @ weight.astype(mx.float32)[experts].swapaxes(1, 2)
        exact = exact.squeeze(1)
        assert found.dtype == dtype
        assert found.shape == (rows, 7)
        assert close(found, np.array(exact), mx.finfo(dtype).eps)

    @pytest.mark.parametrize(
        "view",
        [
            lambda x: mx.contiguous(x.T).T,
            lambda x: mx.repeat(x, 2, axis=0)[::2],
            lambda x: x[:, None] + mx.zeros((16,)),  # (N, 1, 16), its middle axis of any stride
        ],
        ids=["turned", "every second", "an axis put in"],
    )
    def test_rows_may_lie_in_memory_as_they_like(self, view):
        x = mx.random.normal((12, 16), key=mx.random.key(1))
        weight = mx.random.normal((5, 7, 16), key=mx.random.key(2))
        experts = mx.sort(mx.arange(12) * 3 % 5)
        exact = (x[:, None] @ weight[experts].swapaxes(1, 2)).squeeze(1)
        found = expert_linear(view(x).reshape(12, 16), weight, experts, True)
        assert close(found, np.array(exact), 1e-5)

    def test_a_token_alone_is_the_token_among_others(self):
        moe, _ = filled(MoESpec(7, 3, F, "silu"), 4)
        x = mx.array(inputs(6, 4))
        together = moe(x, no_tap)
        for t in range(6):
            assert close(moe(x[:, t : t + 1], no_tap)[0], np.array(together[0, t : t + 1]), 1e-6)


def in_memory(folder):
    """A saved model by the names, and in the shapes, that transformers has in memory."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return model, {
        name: mx.array(value.numpy())
        for name, value in model.state_dict().items()
        if name not in tied
    }


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
class TestSpellings:
    def test_both_give_the_same_parameters(self, random_model, family, variant):
        folder = random_model(family, variant)
        decoder = Decoder(decoder_spec(Config(config_of(family, variant))))
        on_disk = read_weights(find_model(folder))
        _, stacked = in_memory(folder)
        assert any(name.endswith("experts.gate_up_proj") for name in stacked)
        assert not any(name.endswith("experts.gate_up_proj") for name in on_disk)
        found = [
            arrange(tensors, decoder.spec, decoder.shapes(), "x") for tensors in (on_disk, stacked)
        ]
        assert set(found[0]) == set(found[1]) == set(decoder.shapes())
        assert all(mx.array_equal(found[0][path], found[1][path]) for path in found[0])

    def test_a_wrong_number_of_experts_is_one_clear_error(self, random_model, family, variant):
        folder = random_model(family, variant)
        config = config_of(family, variant)
        key = next(k for k in config if k.endswith("experts") and "shared" not in k)
        _, stacked = in_memory(folder)
        for tensors in (read_weights(find_model(folder)), stacked):
            for count in (config[key] - 1, config[key] + 1):
                other = {**config, key: count, "n_group": 1, "topk_group": 1}
                decoder = Decoder(decoder_spec(Config(other)))
                with pytest.raises(CorruptWeights, match=r"experts\.|mlp\.gate") as caught:
                    arrange(tensors, decoder.spec, decoder.shapes(), "some/folder")
                assert "\n" not in str(caught.value)
                assert "some/folder" in str(caught.value)

    def test_one_missing_expert_is_named(self, random_model, family, variant):
        folder = random_model(family, variant)
        decoder = Decoder(decoder_spec(Config(config_of(family, variant))))
        tensors = read_weights(find_model(folder))
        gone = next(name for name in tensors if ".experts.4." in name)
        del tensors[gone]
        with pytest.raises(CorruptWeights, match=f"{gone!r} is missing"):
            arrange(tensors, decoder.spec, decoder.shapes(), "x")

    def test_both_at_once_are_refused(self, random_model, family, variant):
        folder = random_model(family, variant)
        decoder = Decoder(decoder_spec(Config(config_of(family, variant))))
        _, stacked = in_memory(folder)
        with pytest.raises(CorruptWeights, match="belongs to no module"):
            arrange(
                {**read_weights(find_model(folder)), **stacked},
                decoder.spec,
                decoder.shapes(),
                "x",
            )

    def test_more_experts_per_token_than_there_are(self, family, variant):
        config = {**config_of(family, variant), "num_experts_per_tok": 9}
        with pytest.raises(InvalidConfig, match=r"num_experts_per_tok is 9 in config\.json"):
            decoder_spec(Config(config))


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe", "qwen2_moe"])
def test_absent_keys_mean_what_they_mean_to_transformers(family):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4}
    small |= {"num_hidden_layers": 2, "vocab_size": 131, "num_key_value_heads": 4}
    theirs = transformers.AutoConfig.for_model(family, **small)
    block = decoder_spec(Config({**small, "model_type": family})).blocks[0]
    assert isinstance(block.mlp, MoESpec)
    assert block.mlp.experts == theirs.num_experts
    assert block.mlp.top_k == theirs.num_experts_per_tok
    assert block.mlp.width == getattr(theirs, "moe_intermediate_size", theirs.intermediate_size)
    assert block.mlp.renormalise == getattr(theirs, "norm_topk_prob", True)
    assert block.attention.window == (getattr(theirs, "sliding_window", None) or None)
    assert block.attention.rope.theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("family", "alias", "key"),
    [
        ("qwen3_moe", "num_local_experts", "num_experts"),
        ("mixtral", "num_experts", "num_local_experts"),
        ("dots1", "num_local_experts", "n_routed_experts"),
        ("olmoe", "num_local_experts", "num_experts"),
        ("deepseek_v2", "num_experts", "n_routed_experts"),
        ("deepseek_v3", "num_local_experts", "n_routed_experts"),
        ("glm4_moe", "num_local_experts", "n_routed_experts"),
        ("gpt_oss", "num_experts", "num_local_experts"),
    ],
)
def test_either_name_for_the_number_of_experts(family, alias, key):
    """transformers 5 writes qwen3_moe's under another key than the one it was published with."""
    config = config_of(family, next(iter(architecture(family).TINY)))
    respelt = {alias if name == key else name: value for name, value in config.items()}
    assert decoder_spec(Config(respelt)) == decoder_spec(Config(config))


class TestSelectionBiasOfAFamily:
    """Models are written with a bias of zero, which transformers starts from; here it is not."""

    @pytest.fixture
    def biased(self, random_model, tmp_path):
        source = find_model(random_model("dots1", "plain"))
        tensors = read_weights(source)
        for name in tensors:
            if name.endswith("e_score_correction_bias"):
                tensors[name] = mx.random.normal(tensors[name].shape, key=mx.random.key(7))
        write_weights(tmp_path / "model.safetensors", tensors)
        (tmp_path / "config.json").write_bytes((source.folder / "config.json").read_bytes())
        return tmp_path

    def test_agrees_with_transformers(self, biased):
        torch = pytest.importorskip("torch")
        reference, _ = in_memory(biased)
        block = load(biased).decoder.blocks[1]
        x = np.random.default_rng(0).normal(size=(1, 9, 72)).astype(np.float32)
        with torch.inference_mode():
            expected = reference.model.layers[1].mlp(torch.tensor(x)).numpy()
        assert close(block.mlp(mx.array(x), no_tap), expected)

    def test_stays_in_float32(self, biased):
        mlp = load(biased, dtype="bfloat16").decoder.blocks[1].mlp
        assert mlp.selection_bias.dtype == mx.float32
        assert mlp.experts.down.dtype == mx.bfloat16


@pytest.mark.parametrize(
    "change",
    [
        {"n_group": 3},
        {"n_group": 8},
        {"topk_group": 5},
        {"topk_group": 1, "num_experts_per_tok": 3},
    ],
    ids=["uneven", "of one", "more than there are", "too few"],
)
def test_groups_that_cannot_be(change):
    with pytest.raises(
        InvalidConfig, match=r"(n_group|num_experts_per_tok) is \d.* in config\.json"
    ):
        decoder_spec(Config({**config_of("deepseek_v3", "yarn"), **change}))


@pytest.mark.parametrize(
    ("family", "variant", "key", "value"),
    [
        ("gpt_oss", "yarn", "swiglu_alpha", 1.5),
        ("deepseek_v3", "yarn", "scoring_func", "softmax"),
        ("deepseek_v3", "yarn", "num_key_value_heads", 2),
        ("deepseek_v2", "greedy", "norm_topk_prob", True),
        ("deepseek_v2", "greedy", "topk_method", "noaux_tc"),
    ],
)
def test_what_no_field_stands_for_is_refused(family, variant, key, value):
    with pytest.raises(UnsupportedArchitecture, match=f"{key} is {value!r}"):
        decoder_spec(Config({**config_of(family, variant), key: value}))
