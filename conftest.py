"""What every test run shares: pinned variables, a header that shows them, deterministic hypothesis.

Warnings, markers and the time limit of a test are set in pyproject.toml. Nothing here imports mlx.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform

import hypothesis

PINNED = {
    "MLX_ENABLE_TF32": "0",  # MLX reads it when it is imported; products in TF32 cannot be judged
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Set by whoever runs the tests; shown because they move numbers or times.
SHOWN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MLX_PARITY_BUILD")
PACKAGES = (
    "mlx",
    "mlx-cpu",
    "mlx-cuda-13",
    "mlx-metal",
    "mlx-lm",
    "torch",
    "transformers",
    "numpy",
    "tokenizers",
    "safetensors",
)

os.environ.update(PINNED)

hypothesis.settings.register_profile("parity", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("parity")


def pytest_report_header() -> list[str]:
    """Every version and variable that moves a number."""
    versions = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    variables = [f"{k}={os.environ[k]}" for k in (*PINNED, *SHOWN) if k in os.environ]
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return [
        f"numbers: Python {platform.python_version()}, {system}, {os.cpu_count()} cores",
        "packages: " + ", ".join(versions),
        "variables: " + ", ".join(variables),
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
