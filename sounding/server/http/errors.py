"""Refusals of requests, and the error body of each protocol.

Every mistake of a client raises a `Refusal`. The middleware alone writes it out, in the shape that
the client's library turns into its own exception.
"""

from collections.abc import Callable, Mapping
from typing import Any


class Refusal(Exception):
    """A refused request: an HTTP status, and a message that says what to change."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.param, self.code = param, code
        self.headers = dict(headers or {})
        if retry_after_seconds is not None:
            self.headers["retry-after"] = str(retry_after_seconds)


def context_overflow(
    prompt_tokens: int, context_tokens: int, param: str = "messages", *, exact: bool = True
) -> Refusal:
    """The Refusal for a prompt that leaves no room for an answer.

    Without `exact`, `prompt_tokens` is a lower bound. Agents shorten their history on this error,
    and recognise it by its code or by one of the two sentences that the hosted services write.
    """
    about = "" if exact else "at least "
    return Refusal(
        400,
        f"prompt is too long: {about}{prompt_tokens} tokens > {context_tokens - 1} maximum. "
        f"This model's maximum context length is {context_tokens} tokens, the answer included; "
        f"shorten the {param} or start a new conversation",
        param=param,
        code="context_length_exceeded",
    )


# --------------------------------------------------------------------------------------------------
# Shapes

Shape = Callable[[Refusal], dict[str, Any]]

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def openai_error(refusal: Refusal) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    kind = _OPENAI_TYPES.get(refusal.status, "invalid_request_error")
    return {
        "error": {
            "message": refusal.message,
            "type": kind,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def anthropic_error(refusal: Refusal) -> dict[str, Any]:
    """`{"type": "error", "error": {type, message}}`; the field is named in the message."""
    kind = _ANTHROPIC_TYPES.get(refusal.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": _with_param(refusal)}}


def llama_error(refusal: Refusal) -> dict[str, Any]:
    """`{"error": {code, message, type}}`, the code being the HTTP status."""
    kind = _OPENAI_TYPES.get(refusal.status, "invalid_request_error")
    return {
        "error": {"code": refusal.status, "message": _with_param(refusal), "type": kind},
    }


def ollama_error(refusal: Refusal) -> dict[str, Any]:
    """`{"error": message}`."""
    return {"error": _with_param(refusal)}


def shape_for(path: str) -> Shape:
    """The error shape of a path, known before its request is parsed."""
    if path.removeprefix("/anthropic").startswith("/v1/messages"):
        return anthropic_error
    if path.startswith("/api/"):
        return ollama_error
    return llama_error if path in ("/infill", "/completion") else openai_error


def _with_param(refusal: Refusal) -> str:
    if refusal.param is None or refusal.param in refusal.message:
        return refusal.message
    return f"{refusal.param}: {refusal.message}"
