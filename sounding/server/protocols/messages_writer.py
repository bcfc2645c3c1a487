"""The blocks and events of `/v1/messages`: one message, streamed or whole."""

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from sounding.engine.requests import Usage
from sounding.server.http.errors import anthropic_error
from sounding.server.http.streaming import sse
from sounding.server.http.wire import Json
from sounding.server.protocols.answering import Answering
from sounding.server.protocols.opaque import wrap
from sounding.server.reply import Answered, AnswerPiece, AnswerReader
from sounding.text import ArgumentsDelta, CallBegun, CallDone, ContentDelta, ReasoningDelta


class MessageWriter:
    """Writes one message, whole or as events."""

    def __init__(self, model: str, max_tokens: int, *, omits_thinking: bool) -> None:
        self._max_tokens, self._omits = max_tokens, omits_thinking
        self._head = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        self._index = -1  # index of the block in progress
        self._open: str | None = None  # its type
        self._hidden: list[str] = []

    def whole(self, answering: Answering, end: Answered) -> Json:
        reply = answering.replies[0]
        done = reply.completion
        content: list[Json] = []
        if done.reasoning_content:
            content.append(self._thinking_block(done.reasoning_content))
        if done.content:
            content.append({"type": "text", "text": done.content})
        for call_id, call in zip(reply.call_ids, done.calls, strict=True):
            given = json.loads(call.arguments)
            content.append({"type": "tool_use", "id": call_id, "name": call.name, "input": given})
        return self._head | {
            "content": content,
            **self._stop(answering, end),
            "usage": _usage(end.usage, end.reasoning_tokens),
        }

    def _thinking_block(self, text: str) -> Json:
        shown, hidden = ("", text) if self._omits else (text, "")
        return {"type": "thinking", "thinking": shown, "signature": wrap(hidden)}

    async def frames(self, answering: Answering) -> AsyncIterator[bytes]:
        prompt_tokens = len(answering.exchange.runs[0].request.prompt)
        usage = _usage(Usage(prompt_tokens=prompt_tokens), 0)
        start: Json = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield _event("message_start", message=self._head | start)
        async for _, said in answering:
            if isinstance(said, AnswerPiece):
                for frame in self._piece(answering.replies[0], said):
                    yield frame
            elif said.failure is not None:
                yield sse(anthropic_error(said.failure), "error")
            else:
                for frame in self._close():
                    yield frame
                stop = self._stop(answering, said)
                usage = _usage(said.usage, said.reasoning_tokens)
                yield _event("message_delta", delta=stop, usage=usage)
                yield _event("message_stop")

    def _piece(self, reply: AnswerReader, piece: AnswerPiece) -> Iterator[bytes]:
        match piece.event:
            case ReasoningDelta(text):
                if self._open != "thinking":
                    block = {"type": "thinking", "thinking": "", "signature": ""}
                    yield from self._begin(block)
                if self._omits:
                    self._hidden.append(text)
                else:
                    yield self._delta({"type": "thinking_delta", "thinking": text})
            case ContentDelta(text):
                if self._open != "text":
                    yield from self._begin({"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case CallBegun(index, name):
                call_id = reply.call_ids[index]
                yield from self._begin(
                    {"type": "tool_use", "id": call_id, "name": name, "input": {}}
                )
            case ArgumentsDelta(_, text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})
            case CallDone():
                yield from self._close()

    def _begin(self, block: Json) -> Iterator[bytes]:
        yield from self._close()
        self._index += 1
        self._open = block["type"]
        yield _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: Json) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> Iterator[bytes]:
        if self._open == "thinking":
            signature = wrap("".join(self._hidden))
            self._hidden = []
            yield self._delta({"type": "signature_delta", "signature": signature})
        if self._open is not None:
            yield _event("content_block_stop", index=self._index)
        self._open = None

    def _stop(self, answering: Answering, end: Answered) -> Json:
        reason = {"stop": "end_turn", "tool_calls": "tool_use"}.get(end.finish, "max_tokens")
        room = answering.exchange.runs[0].request.max_tokens
        if end.stop is not None:
            reason = "stop_sequence"
        elif end.reason == "length" and room < self._max_tokens:
            reason = "model_context_window_exceeded"
        detail = {"finish_detail": end.reason} if end.reason in ("time", "repetition") else {}
        return {"stop_reason": reason, "stop_sequence": end.stop, **detail}


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)


def _usage(usage: Usage, reasoning_tokens: int) -> Json:
    """Usage in Anthropic's terms: hits are not input tokens, cache writes cost nothing."""
    return {
        "input_tokens": usage.prompt_tokens - usage.hit_tokens,
        "cache_read_input_tokens": usage.hit_tokens,
        "cache_creation_input_tokens": 0,
        "cache_miss_reason": usage.miss_reason,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": reasoning_tokens},
    }
