"""The items and events of `/v1/responses`: one state, either streamed or sent whole."""

import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import Any

from sounding.engine.requests import Usage
from sounding.server.http.streaming import sse
from sounding.server.http.wire import Json
from sounding.server.protocols.answering import Answering
from sounding.server.protocols.logprobs import token_logprob
from sounding.server.protocols.opaque import wrap
from sounding.server.protocols.responses_tools import Called, input_of, item_of
from sounding.server.reply import Answered, AnswerPiece, AnswerReader
from sounding.text import ArgumentsDelta, CallBegun, CallDone, ContentDelta, ReasoningDelta
from sounding.text.tokenizer import Tokenizer

# The type of an item's one content part, which is also part of the names of its events.
_PARTS = {"reasoning": "reasoning_text", "message": "output_text"}
_IDS = {
    "reasoning": "rs",
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "tool_search_call": "tsc",
}


class ResponseWriter:
    """Writes one response."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: str,
        echoed: Json,
        include: Collection[str],
        called: Mapping[str, Called],
    ) -> None:
        """`called` gives the call type of each tool by its name in the prompt."""
        self._tokenizer, self._include, self._called = tokenizer, include, called
        self._output: list[Json] = []
        self._response = echoed | {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": self._output,
            "usage": None,
        }
        self._sequence = -1
        self._text: list[str] = []  # of the item in progress
        self._logprobs: list[Json] = []

    def response(self) -> Json:
        """The response so far."""
        return self._response

    async def frames(self, answering: Answering) -> AsyncIterator[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self._frame({"type": kind, "response": self._response})
        async for _, said in answering:
            for event in self.take(answering.replies[0], said):
                yield self._frame(event)

    def take(self, reply: AnswerReader, said: AnswerPiece | Answered) -> list[Json]:
        """Add to the response, and return the events."""
        return list(self._end(said) if isinstance(said, Answered) else self._piece(reply, said))

    def _frame(self, event: Json) -> bytes:
        self._sequence += 1
        return sse(event | {"sequence_number": self._sequence}, event["type"])

    # -- items -------------------------------------------------------------------------------------

    def _piece(self, reply: AnswerReader, piece: AnswerPiece) -> Iterator[Json]:
        match piece.event:
            case ReasoningDelta(text):
                yield from self._say("reasoning", text, piece)
            case ContentDelta(text):
                yield from self._say("message", text, piece)
            case CallBegun(index, name):
                yield from self._call(item_of(self._called, name), reply.call_ids[index])
            case ArgumentsDelta(_, text):
                self._text.append(text)
                if self._output[-1]["type"] == "function_call":
                    yield self._about("response.function_call_arguments.delta", delta=text)
            case CallDone(complete=complete):
                yield from self._done("completed" if complete else "incomplete")

    def _call(self, called: Called, call_id: str) -> Iterator[Json]:
        fields: Json = {"call_id": call_id}
        if called.type == "tool_search_call":
            fields |= {"execution": "client", "arguments": {}}
        else:
            fields["name"] = called.name
            fields["arguments" if called.type == "function_call" else "input"] = ""
            if called.namespace is not None:
                fields["namespace"] = called.namespace
        yield from self._begin(called.type, fields)

    @property
    def _item(self) -> Json | None:
        """The item in progress."""
        last = self._output[-1] if self._output else None
        return last if last is not None and last["status"] == "in_progress" else None

    def _about(self, kind: str, **fields: Any) -> Json:
        """An event about the last item."""
        place = {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}
        return {"type": kind, **place, **fields}

    def _say(self, kind: str, text: str, piece: AnswerPiece) -> Iterator[Json]:
        if self._item is None or self._item["type"] != kind:
            fields: Json = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
            yield from self._begin(kind, fields | {"content": []})
            part = self._part(kind, "")
            yield self._about("response.content_part.added", content_index=0, part=part)
        self._text.append(text)
        more = {}
        if kind == "message":
            more["logprobs"] = self._logprobs_of(piece)
            self._logprobs += more["logprobs"]
        yield self._about(f"response.{_PARTS[kind]}.delta", content_index=0, delta=text, **more)

    def _begin(self, kind: str, fields: Json) -> Iterator[Json]:
        yield from self._done("completed")
        item_id = f"{_IDS[kind]}_{secrets.token_hex(16)}"
        self._output.append({"type": kind, "id": item_id, "status": "in_progress", **fields})
        yield self._added_or_done("response.output_item.added")

    def _done(self, status: str) -> Iterator[Json]:
        """Close the item in progress, if any."""
        item = self._item
        if item is None:
            return
        text, self._text = "".join(self._text), []
        kind = item["type"]
        if kind == "function_call":
            item["arguments"] = text
            yield self._about(
                "response.function_call_arguments.done", arguments=text, name=item["name"]
            )
        elif kind == "custom_tool_call":
            item["input"] = given = input_of(text)
            yield self._about("response.custom_tool_call_input.delta", delta=given)
            yield self._about("response.custom_tool_call_input.done", input=given)
        elif kind == "tool_search_call":
            item["arguments"] = json.loads(text)
        else:
            part = self._part(kind, text)
            item["content"] = [part]
            more = {"logprobs": list(self._logprobs)} if kind == "message" else {}
            done = f"response.{_PARTS[kind]}.done"
            yield self._about(done, content_index=0, text=text, **more)
            yield self._about("response.content_part.done", content_index=0, part=part)
            self._logprobs = []
        if kind == "reasoning" and "reasoning.encrypted_content" in self._include:
            item["encrypted_content"] = wrap(text)
        item["status"] = status
        yield self._added_or_done("response.output_item.done")

    def _added_or_done(self, kind: str) -> Json:
        return {"type": kind, "output_index": len(self._output) - 1, "item": self._output[-1]}

    def _part(self, kind: str, text: str) -> Json:
        part: Json = {"type": _PARTS[kind], "text": text}
        if kind == "message":
            part |= {"annotations": [], "logprobs": list(self._logprobs)}
        return part

    def _logprobs_of(self, piece: AnswerPiece) -> list[Json]:
        if "message.output_text.logprobs" not in self._include:
            return []
        return [token_logprob(self._tokenizer, token) for token in piece.tokens]

    # -- the end -----------------------------------------------------------------------------------

    def _end(self, end: Answered) -> Iterator[Json]:
        if end.failure is not None:
            yield from self._done("incomplete")
            error = {"code": "server_error", "message": end.failure.message}
            self._response |= {"status": "failed", "error": error}
        elif end.finish == "length":
            yield from self._done("incomplete")
            self._response |= {
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens", "detail": end.reason},
            }
        else:
            yield from self._done("completed")
            self._response |= {"status": "completed", "completed_at": int(time.time())}
        self._response["usage"] = _usage(end.usage, end.reasoning_tokens)
        yield {"type": f"response.{self._response['status']}", "response": self._response}


def _usage(usage: Usage, reasoning_tokens: int) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.hit_tokens,
            "cache_write_tokens": 0,
            "cache_miss_reason": usage.miss_reason,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
