"""Where the limits of harness/policy.py come from: `python benchmarks/benign_ratios.py [SEEDS]`.

Harmless implementations are scored as candidates on random models of every family: PyTorch's fused
attention, PyTorch on two threads, our engine. The largest ratio of each kind is printed for every
mode and dtype, with the number of comparisons behind it. A limit must lie above all of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

CANDIDATES = ("torch:sdpa", "engine")
DTYPES = ("float32", "bfloat16", "float16")


def main() -> None:
    import harness
    from harness.random_models import config_of, variants, write_model

    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for seed in range(seeds):
        for family, variant in variants():
            config = config_of(family, variant)
            with tempfile.TemporaryDirectory() as folder:
                model = write_model(Path(folder), config, seed=seed)
                for candidate in CANDIDATES:
                    if candidate == "torch:sdpa" and config.get("attn_logit_softcapping"):
                        continue  # fused attention leaves the cap out: that is no harmless change
                    for dtype in DTYPES[1:]:
                        verdict = harness.compare(
                            model, candidate, "torch", dtype, ["blocks", "logits"]
                        )
                        for diff in verdict.sites:
                            if diff.dtype != "float32" or dtype == DTYPES[1]:
                                found[diff.mode, diff.dtype, candidate].append(diff.ratio)
        print(f"seed {seed} done", file=sys.stderr)
    print("| mode | dtype | candidate | ratios | 99 % | largest |\n|---|---|---|---|---|---|")
    for (mode, dtype, candidate), ratios in sorted(found.items()):
        ratios.sort()
        high = ratios[int(0.99 * len(ratios))]
        row = (mode, dtype, candidate, str(len(ratios)), f"{high:.2f}", f"{ratios[-1]:.2f}")
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
