"""How a model's keys and values are packed: what `--kv-bits` and `--kv-group-size` ask for.

Groups lie along the width of a head, so that a token is packed by itself and the same however it is
fed. Here stands which widths a model keeps; how numbers are packed, in weights/quantised.py.
"""

from __future__ import annotations

from .errors import InvalidRequest
from .spec import DecoderSpec, LatentAttentionSpec
from .weights.quantised import Packing

BITS = (8, 4)
GROUPS = (64, 32)  # the first that fits is taken; larger ones share a scale among too many


def packing_of(
    spec: DecoderSpec, bits: int | None, group_size: int | None = None
) -> Packing | None:
    """The packing of a decoder's caches; None for no `bits`, where they stay as they are.

    `group_size` None is the largest that fits. Raises InvalidRequest.
    """
    if bits is None:
        if group_size is not None:
            raise InvalidRequest(
                f"--kv-group-size {group_size} packs nothing without --kv-bits: add --kv-bits 8"
            )
        return None
    if bits not in BITS:
        raise InvalidRequest(f"--kv-bits {bits}: keys and values are packed in 8 or 4 bits")
    widths = kept_widths(spec)
    told = " and ".join(map(str, widths))
    fitting = [size for size in GROUPS if all(width % size == 0 for width in widths)]
    if not fitting:
        raise InvalidRequest(
            f"--kv-bits {bits}: keys and values of this {spec.model_type} are {told} wide, which "
            "is not made of groups of 64 or 32: leave --kv-bits out"
        )
    if group_size is not None and group_size not in fitting:
        raise InvalidRequest(
            f"--kv-group-size {group_size}: keys and values of this {spec.model_type} are {told} "
            f"wide: choose {' or '.join(map(str, fitting))}"
        )
    return Packing(group_size or fitting[0], bits)


def kept_widths(spec: DecoderSpec) -> list[int]:
    """The widths of what is kept of a token: of a head, or of a latent vector and a rotated key."""
    found: set[int] = set()
    for attention in (block.attention for block in spec.blocks):
        if isinstance(attention, LatentAttentionSpec):
            found |= {attention.latent_rank, attention.rope_dim}
        else:
            found.add(attention.head_dim)
    return sorted(found)
