"""How long tokenizers take to load, and to encode, beside transformers, in one run.

Loading is a fresh process each time, imports included, the sides in turn; encoding is done in one
process, the sides in turn as well. Medians, with the smallest and largest. (A script called
tokenizers.py would hide the library.) Usage:

    python benchmarks/tokenizing.py [--model FOLDER_OR_NAME ...] [--runs 5]

Without a model: the golden ones, and those that mistral-common carries where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.files import find_tokenizer, golden_models
from engine.tokenizer import load_tokenizer

ENGINE = """
import sys
from engine.files import find_tokenizer
from engine.tokenizer import load_tokenizer
load_tokenizer(find_tokenizer(sys.argv[1])).encode("a")
"""
TRANSFORMERS = """
import sys
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1])("a")
"""
TEXT = Path(argparse.__file__).read_text()  # 100 kB of code and prose
LINES = [line for line in TEXT.splitlines() if line.strip()][:400]


def main() -> None:
    """Print a line of loading and a line of encoding for every tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = arguments.model or [*golden_models(), *_mistral(Path(folder))]
        for model in models:
            path = str(find_tokenizer(model).folder)
            print(f"{Path(path).name}\n  load    {_ratio(*_loads(path, arguments.runs))}")
            print(f"  encode  {_ratio(*_encodes(path, arguments.runs))}", flush=True)


def _loads(path: str, runs: int) -> tuple[list[float], list[float]]:
    programs = [[sys.executable, "-c", code, path] for code in (ENGINE, TRANSFORMERS)]

    def run(program: list[str]) -> None:
        subprocess.run(program, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    for program in programs:  # files into the page cache
        run(program)
    return _timed([lambda p=program: run(p) for program in programs], runs)


def _encodes(path: str, runs: int) -> tuple[list[float], list[float]]:
    import transformers

    transformers.logging.set_verbosity_error()
    ours = load_tokenizer(find_tokenizer(path))
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    assert all(ours.encode(line) == theirs(line)["input_ids"] for line in LINES)

    def both(encode: Callable[[str], Any]) -> Callable[[], None]:
        def run() -> None:
            for line in LINES:
                encode(line)
            encode(TEXT)

        return run

    return _timed([both(ours.encode), both(theirs.encode)], max(runs, 9))


def _timed(sides: list[Callable[[], None]], runs: int) -> tuple[list[float], list[float]]:
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for side, taken in zip(sides, seconds, strict=True):
            begin = time.perf_counter()
            side()
            taken.append(time.perf_counter() - begin)
    return seconds


def _ratio(ours: list[float], theirs: list[float]) -> str:
    ratio = statistics.median(theirs) / statistics.median(ours)
    each = [t / o for o, t in zip(ours, theirs, strict=True)]
    return (
        f"engine {_spread(ours)}, transformers {_spread(theirs)}: "
        f"{ratio:.2f} times as fast ({min(each):.2f} to {max(each):.2f})"
    )


def _spread(seconds: list[float]) -> str:
    low, high = min(seconds), max(seconds)
    return f"{statistics.median(seconds) * 1e3:.0f} ms ({low * 1e3:.0f} to {high * 1e3:.0f})"


def _mistral(folder: Path) -> Iterator[str]:
    """Folders with the tokenizers of mistral-common, as models have them."""
    if importlib.util.find_spec("mistral_common") is None:
        return
    import mistral_common
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    data = Path(mistral_common.__file__).parent / "data"
    stated = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    for name, file in {
        "mistral-v1": "tokenizer.model.v1",
        "mistral-v3": "mistral_instruct_tokenizer_240323.model.v3",
        "mistral-tekken": "tekken_240911.json",
    }.items():
        path = folder / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
        (path / "tokenizer_config.json").write_text(json.dumps(stated))
        if file.endswith(".json"):
            raw = json.loads((data / file).read_bytes())
            known = Tekkenizer.DEPRECATED_SPECIAL_TOKENS  # transformers reads no file without them
            raw["special_tokens"] = [{**t, "token_str": str(t["token_str"].value)} for t in known]
            (path / "tekken.json").write_text(json.dumps(raw))
        else:
            shutil.copy(data / file, path / "tokenizer.model")
        yield str(path)
    # The same vocabulary as tokenizer.json, as most models of 2025 have theirs.
    fast = folder / "mistral-tekken-as-tokenizer.json"
    fast.mkdir()
    load_tokenizer(find_tokenizer(path))._backend.save(str(fast / "tokenizer.json"))
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(path / name, fast / name)
    yield str(fast)


if __name__ == "__main__":
    main()
