"""Errors in the shape of each protocol."""

from __future__ import annotations

import pytest

from engine.errors import (
    EngineError,
    GenerationFailed,
    InvalidPrompt,
    ModelNotServed,
    QueueFull,
    ShuttingDown,
)
from engine.serving.problems import Problem, body, problem_of, response

KINDS = [
    (InvalidPrompt("x"), 400, "invalid_request_error", "invalid_request_error"),
    (EngineError("x"), 400, "invalid_request_error", "invalid_request_error"),
    (ModelNotServed("x"), 404, "invalid_request_error", "not_found_error"),
    (QueueFull("x", 7.2), 429, "rate_limit_error", "rate_limit_error"),
    (ShuttingDown("x"), 503, "server_error", "overloaded_error"),
    (GenerationFailed("x"), 500, "server_error", "api_error"),
]


@pytest.mark.parametrize(("error", "status", "openai", "anthropic"), KINDS)
def test_kinds_and_shapes(error, status, openai, anthropic):
    problem = problem_of(error)
    assert problem.status == status and problem.message == "x"
    assert body("/v1/completions", problem)["error"]["type"] == openai
    told = body("/v1/messages", problem)
    assert told == {"type": "error", "error": {"type": anthropic, "message": "x"}}
    assert body("/api/generate", problem) == {"error": "x"}


def test_unknown_errors_say_nothing_of_themselves():
    problem = problem_of(ValueError("/home/me/secret"))
    assert problem.status == 500 and "secret" not in problem.message


def test_messages_are_one_line_and_headers_tell_when():
    assert problem_of(EngineError("a\n  b")).message == "a b"
    assert response("/", problem_of(QueueFull("x", 7.2))).headers["retry-after"] == "8"
    assert response("/", problem_of(QueueFull("x", 0))).headers["retry-after"] == "1"
    assert response("/", Problem(401, "x")).headers["www-authenticate"] == "Bearer"
    assert "retry-after" not in response("/", Problem(400, "x")).headers
