"""Where the engine's modules come from: transformers module paths, as data.

Every architecture declares one table of `Name` rows. The same rows rename checkpoint tensors at
load and name the sites the harness observes, so a wrong row cannot hide from either. This module
knows no tensor and no family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Name:
    """One transformers module and the engine module(s) that hold its parameters.

    `source` and `targets` are module paths in which `{i}` stands for the block index. More than
    one target: the source is fused, and its output rows are split between the targets in order,
    within each of `groups` (gpt_neox: q, k and v of a head stand together). `transpose`: the source
    keeps its matrix as (in, out), as gpt2's Conv1D does. `parameter`: the source and the targets
    are parameters themselves; `{e}` in such a source stands for the expert or the head, and the
    target stacks all of them.

    Several rows for one target are spellings of it. A checkpoint is read by the row it has tensors
    of; the first row is the one that errors speak of, the last what transformers has in memory.
    """

    source: str
    targets: tuple[str, ...]
    transpose: bool = False
    parameter: bool = False
    groups: int = 1

    def at(self, block: int) -> Name:
        """The row with `{i}` replaced by a block index."""
        source, *targets = (p.replace("{i}", str(block)) for p in (self.source, *self.targets))
        return replace(self, source=source, targets=tuple(targets))


# The paths nearly every family in transformers shares. `names()` changes single rows.
_COMMON: dict[str, str] = {
    "embed": "model.embed_tokens",
    "blocks.{i}": "model.layers.{i}",
    "blocks.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blocks.{i}.attn": "model.layers.{i}.self_attn",
    "blocks.{i}.attn.q": "model.layers.{i}.self_attn.q_proj",
    "blocks.{i}.attn.k": "model.layers.{i}.self_attn.k_proj",
    "blocks.{i}.attn.v": "model.layers.{i}.self_attn.v_proj",
    "blocks.{i}.attn.o": "model.layers.{i}.self_attn.o_proj",
    "blocks.{i}.attn.q_norm": "model.layers.{i}.self_attn.q_norm",
    "blocks.{i}.attn.k_norm": "model.layers.{i}.self_attn.k_norm",
    "blocks.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "blocks.{i}.mlp": "model.layers.{i}.mlp",
    "blocks.{i}.mlp.gate": "model.layers.{i}.mlp.gate_proj",
    "blocks.{i}.mlp.up": "model.layers.{i}.mlp.up_proj",
    "blocks.{i}.mlp.down": "model.layers.{i}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}


def names(changes: Mapping[str, str | None] | None = None) -> tuple[Name, ...]:
    """The common table with some engine paths given another source, or none."""
    rows = {**_COMMON, **(changes or {})}
    return tuple(Name(source, (target,)) for target, source in rows.items() if source)


def expert_names(
    mlp: str = "mlp",
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    mlx_lm: str = "switch_mlp",
) -> tuple[Name, ...]:
    """Rows for a mixture of experts, to stand before those of `names()`.

    The arguments are the words of the family's checkpoints: for the module, and for the matrices of
    one expert. The words that transformers 5 has in memory, where experts are stacked, go along,
    and those of mlx-lm, which stacks them on disk: `mlx_lm` is what it calls all of them together.
    """
    block, engine = "model.layers.{i}", "blocks.{i}.mlp"
    words = {"gate": gate, "up": up, "down": down}
    fused = (f"{engine}.experts.gate", f"{engine}.experts.up")
    return (
        *(Name(f"{block}.{m}.gate", (f"{engine}.router",)) for m in dict.fromkeys((mlp, "mlp"))),
        *(
            Name(
                f"{block}.{mlp}.experts.{{e}}.{word}.weight",
                (f"{engine}.experts.{matrix}",),
                parameter=True,
            )
            for matrix, word in words.items()
        ),
        *(
            Name(
                f"{block}.{mlp}.{mlx_lm}.{matrix}_proj.weight",
                (f"{engine}.experts.{matrix}",),
                parameter=True,
            )
            for matrix in words
        ),
        Name(f"{block}.mlp.experts.gate_up_proj", fused, parameter=True),
        Name(f"{block}.mlp.experts.down_proj", (f"{engine}.experts.down",), parameter=True),
    )
