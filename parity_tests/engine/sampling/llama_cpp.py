"""llama.cpp's samplers, called where a library has them: its C interface, include/llama.h."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_bool, c_float, c_int32, c_int64, c_size_t, c_void_p
from typing import Any

import numpy as np

FLOAT, INT, SIZE = c_float, c_int32, c_size_t


class TokenData(ctypes.Structure):
    _fields_ = [("id", c_int32), ("logit", c_float), ("p", c_float)]


class TokenDataArray(ctypes.Structure):
    _fields_ = [
        ("data", POINTER(TokenData)), ("size", c_size_t),
        ("selected", c_int64), ("sorted", c_bool),
    ]  # fmt: skip


class LogitBias(ctypes.Structure):
    _fields_ = [("token", c_int32), ("bias", c_float)]


class ChainParams(ctypes.Structure):
    _fields_ = [("no_perf", c_bool)]


def scores(library: str) -> Callable[[np.ndarray, dict[str, Any], Sequence[int]], np.ndarray]:
    """`scores(x, wish, text)`: what the chain that common_sampler_init builds leaves of logits."""
    lib = ctypes.CDLL(library)

    def call(name: str, kinds: Sequence[type], *values: Any, returns: Any = c_void_p) -> Any:
        function = lib[f"llama_sampler_{name}"]
        function.argtypes, function.restype = list(kinds), returns
        return function(*values)

    def scores(x: np.ndarray, wish: dict[str, Any], text: Sequence[int]) -> np.ndarray:
        bias = (LogitBias * len(wish["logit_bias"]))(*wish["logit_bias"].items())
        penalties = [wish[f"{kind}_penalty"] for kind in ("repetition", "frequency", "presence")]
        chain = call("chain_init", [ChainParams], ChainParams(True))
        for sampler in (
            call("init_logit_bias", [INT, INT, c_void_p], x.size, len(bias), byref(bias)),
            call("init_penalties", [INT, INT, FLOAT, FLOAT, FLOAT], x.size, 64, *penalties),
            call("init_top_k", [INT], wish["top_k"]),
            call("init_typical", [FLOAT, SIZE], wish["typical_p"], 0),
            call("init_top_p", [FLOAT, SIZE], wish["top_p"], 0),
            call("init_min_p", [FLOAT, SIZE], wish["min_p"], 0),
            call("init_temp_ext", [FLOAT, FLOAT, FLOAT], wish["temperature"], 0.0, 1.0),
        ):
            call("chain_add", [c_void_p, c_void_p], chain, sampler, returns=None)
        for token in text:
            call("accept", [c_void_p, INT], chain, token, returns=None)
        data = (TokenData * x.size)(*((i, logit, 0.0) for i, logit in enumerate(x.tolist())))
        left = TokenDataArray(data, x.size, -1, False)
        call("apply", [c_void_p, POINTER(TokenDataArray)], chain, byref(left), returns=None)
        call("free", [c_void_p], chain, returns=None)
        found = np.full(x.size, -np.inf)
        for one in left.data[: left.size]:
            found[one.id] = one.logit
        return found

    return scores
