"""The objects and chunks of `/v1/chat/completions`: one completion, streamed or whole."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence

from sounding.server.http.errors import openai_error
from sounding.server.http.streaming import DONE, sse
from sounding.server.http.wire import Json
from sounding.server.protocols.answering import Answering
from sounding.server.protocols.logprobs import token_logprob
from sounding.server.protocols.usage import openai_usage
from sounding.server.reply import Answered, AnswerPiece, AnswerReader
from sounding.text import ArgumentsDelta, CallBegun, ContentDelta, ReasoningDelta
from sounding.text.tokenizer import Tokenizer


class ChatWriter:
    """Writes one completion's objects."""

    def __init__(
        self, tokenizer: Tokenizer, model: str, *, wants_logprobs: bool, wants_usage: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._wants_logprobs, self._wants_usage = wants_logprobs, wants_usage
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }

    def whole(self, replies: Sequence[AnswerReader], ends: list[Answered]) -> Json:
        usages = [end.usage for end in ends]
        reasoning = sum(end.reasoning_tokens for end in ends)
        choices = [
            self._choice(index, reply, end)
            for index, (reply, end) in enumerate(zip(replies, ends, strict=True))
        ]
        return self._head | {
            "object": "chat.completion",
            "choices": choices,
            "usage": openai_usage(usages, reasoning),
        }

    def _choice(self, index: int, reply: AnswerReader, end: Answered) -> Json:
        done = reply.completion
        message: Json = {"role": "assistant", "content": done.content or None}
        if not done.calls:
            message["content"] = done.content
        if done.reasoning_content:
            message["reasoning_content"] = done.reasoning_content
        if done.calls:
            message["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call_id, call in zip(reply.call_ids, done.calls, strict=True)
            ]
        logprobs = self._logprobs(reply.pieces)
        return {"index": index, "message": message, "logprobs": logprobs, **_finish(end)}

    async def frames(self, answering: Answering) -> AsyncIterator[bytes]:
        count = len(answering.replies)
        ends: list[Answered] = []
        for index in range(count):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for index, said in answering:
            if isinstance(said, Answered):
                if said.failure is not None:
                    yield sse(openai_error(said.failure))
                    return
                ends.append(said)
                yield self._chunk(index, {}, _finish(said))
            elif delta := _delta(answering.replies[index], said):
                yield self._chunk(index, delta, {"logprobs": self._logprobs([said])})
        if self._wants_usage:
            usage = openai_usage([e.usage for e in ends], sum(e.reasoning_tokens for e in ends))
            chunk = {"object": "chat.completion.chunk", "choices": [], "usage": usage}
            yield sse(self._head | chunk)
        yield DONE

    def _chunk(self, index: int, delta: Json, more: Json | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return sse(
            self._head
            | {
                "object": "chat.completion.chunk",
                "choices": [choice | (more or {})],
                "usage": None,
            }
        )

    def _logprobs(self, pieces: list[AnswerPiece]) -> Json | None:
        """Logprobs by channel, because reasoning has its own tokens."""
        if not self._wants_logprobs:
            return None
        found: Json = {"content": [], "reasoning_content": []}
        for piece in pieces:
            channel = "content" if isinstance(piece.event, ContentDelta) else "reasoning_content"
            found[channel] += [token_logprob(self._tokenizer, token) for token in piece.tokens]
        return found


def _delta(reply: AnswerReader, piece: AnswerPiece) -> Json:
    """The delta of a piece; {} for pieces that the protocol does not have."""
    match piece.event:
        case ContentDelta(text):
            return {"content": text}
        case ReasoningDelta(text):
            return {"reasoning_content": text}
        case CallBegun(index, name):
            function = {"name": name, "arguments": ""}
            call = {"id": reply.call_ids[index], "type": "function", "function": function}
            return {"tool_calls": [{"index": index, **call}]}
        case ArgumentsDelta(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
    return {}


def _finish(end: Answered) -> Json:
    """The finish reason; `finish_detail` for reasons that the protocol does not have."""
    detail = {"finish_detail": end.reason} if end.reason in ("time", "repetition") else {}
    return {"finish_reason": end.finish, **detail}
