"""Logprobs in the formats of OpenAI's protocols."""

from collections.abc import Sequence
from typing import Any

from sounding.engine.requests import TokenEvent
from sounding.text.tokenizer import Tokenizer

_IMPOSSIBLE = -9999.0  # JSON has no infinity; OpenAI sends this


def finite(logprob: float | None) -> float:
    return _IMPOSSIBLE if logprob is None else max(logprob, _IMPOSSIBLE)


def token_logprob(tokenizer: Tokenizer, event: TokenEvent) -> dict[str, Any]:
    """A token with its logprob, and the most likely tokens in its place."""
    top = [_entry(tokenizer, token, logprob) for token, logprob in event.top_logprobs]
    return _entry(tokenizer, event.token, event.logprob) | {"top_logprobs": top}


def _entry(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    data = tokenizer.bytes_of(token)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": finite(logprob),
        "bytes": list(data),
    }


def completion_logprobs(
    tokenizer: Tokenizer, events: Sequence[TokenEvent], offset: int
) -> dict[str, Any]:
    """The older form, of `/v1/completions`: columns; `offset` is where the text begins."""
    names = [_entry(tokenizer, event.token, event.logprob)["token"] for event in events]
    offsets = []
    for name in names:
        offsets.append(offset)
        offset += len(name)
    return {
        "tokens": names,
        "token_logprobs": [finite(event.logprob) for event in events],
        "top_logprobs": [
            {tokenizer.decode([token]): finite(logprob) for token, logprob in event.top_logprobs}
            for event in events
        ],
        "text_offset": offsets,
    }
