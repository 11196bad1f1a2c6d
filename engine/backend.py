"""Which backend runs a model, mlx or torch, and why; and either behind one door.

MLX is the engine proper. `auto` takes it where a parity certificate says that it computes this
model as PyTorch does, and PyTorch itself elsewhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import BackendUnavailable
from .files import ModelFiles

if TYPE_CHECKING:
    from .generate import Step
    from .ranks import Ranks
    from .tokenizer import Tokenizer
    from .weights.quantised import Packing

AUTO, MLX, TORCH = "auto", "mlx", "torch"
BACKENDS = (AUTO, MLX, TORCH)
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Choice:
    """`backend` is "mlx" or "torch"; `reason` says why on its first line, details on more."""

    backend: str
    reason: str


@dataclass(frozen=True)
class Running:
    """A model ready to run, whatever runs it.

    `steps(prompt, max_tokens, ...)` is that of `engine/generate.py` without its feed. `peak_memory`
    gives bytes; `device` is "cpu", "metal", "cuda" or "mps".
    """

    backend: str
    device: str
    vocab: int
    tokenizer: Callable[[], Tokenizer]
    steps: Callable[..., Iterator[Step]]
    peak_memory: Callable[[], int]
    packing: Packing | None = None  # of keys and values

    def generate(self, prompt: Sequence[int], max_tokens: int, **wishes: Any) -> Iterator[int]:
        """The tokens of `steps` alone."""
        return (step.token for step in self.steps(prompt, max_tokens, **wishes))


def choose_backend(
    files: ModelFiles,
    asked: str,
    device: str | None = None,
    dtype: str | None = None,
    ranks: Ranks | None = None,
) -> Choice:
    """What runs a model, where `asked` is of BACKENDS; makes `device` MLX's default unless torch.

    Over several `ranks` MLX alone runs, and no certificate says anything of it.
    `auto` reads the weights through where a certificate may be of them, to hash them; hashes are
    remembered. Raises BackendUnavailable, and MetalNotAvailable for a GPU that is not there.
    """
    if asked not in BACKENDS:
        raise BackendUnavailable(f"backend {asked!r} is not one of {', '.join(BACKENDS)}")
    if dtype not in (None, *DTYPES):
        raise BackendUnavailable(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if asked == TORCH and ranks is not None:
        raise BackendUnavailable(
            f"backend torch runs in one process, and there are {ranks.size} ranks: "
            "use --backend mlx, or one process"
        )
    if asked == TORCH:
        if missing := _missing():
            raise BackendUnavailable(
                f"backend torch needs {missing}, which is not installed: "
                "pip install 'mlx-parity[reference]', or use --backend mlx"
            )
        return Choice(TORCH, "asked for")
    from .runtime import use_device

    use_device(device)
    if asked == MLX:
        return Choice(MLX, "asked for")
    if ranks is not None:
        judge = f"harness compare --model {files.name} --ranks {ranks.size}"
        return Choice(MLX, f"which alone runs over {ranks.size} ranks; {judge} judges it")
    from .certificate import standing

    found = standing(files, dtype)
    if found.certificate:
        proof = found.certificate
        limits = "" if proof.calibrated else ", by limits that are not calibrated for this device"
        return Choice(
            MLX, f"by certificate {proof.path.name}, until {proof.expires:%Y-%m-%d}{limits}"
        )
    certify = f"harness certify --model {files.name}" + (f" --dtype {dtype}" if dtype else "")
    ways = f"--backend mlx runs it all the same; {certify} may prove it"
    if missing := _missing():
        raise BackendUnavailable(
            f"backend auto: MLX is not proven on {files.name} ({'; '.join(found.reasons)}), and "
            f"{missing}, which would run it instead, is not installed; {ways}"
        )
    return Choice(TORCH, "\n".join(("MLX is not proven on this model here", *found.reasons, ways)))


def open_model(
    files: ModelFiles,
    backend: str,
    dtype: str | None = None,
    device: str | None = None,
    ranks: Ranks | None = None,
    kv_bits: int | None = None,
    kv_group_size: int | None = None,
) -> Running:
    """Load a model with "mlx" or "torch"; device and default device as `choose_backend` left them.

    With `ranks` the steps are those of all of them together. `kv_bits` and `kv_group_size` are
    those of `kv.packing_of`, MLX's alone.

    Raises EngineError.
    """
    if backend == TORCH:
        if kv_bits is not None or kv_group_size is not None:
            raise BackendUnavailable(
                "--kv-bits and --kv-group-size are MLX's: add --backend mlx, or leave them out"
            )
        from .torch_backend import TorchModel

        model = TorchModel(files, dtype, device)
        return Running(
            TORCH, model.device, model.rows, model.tokenizer, model.steps, model.peak_memory
        )
    from .generate import DecoderFeed, steps
    from .kv import packing_of
    from .model import load
    from .runtime import device_name, peak_memory

    loaded = load(files, dtype=dtype, ranks=ranks)
    packing = packing_of(loaded.spec, kv_bits, kv_group_size)
    if ranks is not None:
        ranks.watch()
    return Running(
        MLX,
        device_name(),
        loaded.spec.vocab,
        lambda: loaded.tokenizer,
        lambda *given, **wishes: steps(DecoderFeed(loaded.decoder, packing), *given, **wishes),
        peak_memory,
        packing,
    )


def _missing() -> str | None:
    """The first library that the torch backend lacks; none is imported."""
    wanted = ("torch", "transformers")
    return next((name for name in wanted if importlib.util.find_spec(name) is None), None)
