"""Memory of earlier turns, so that the next prompt has the last one as its prefix.

Clients send the whole conversation with every turn, without the reasoning, the exact text of calls,
and how answers were cut into tokens. Each difference makes the prefix cache miss everything behind
it, and without its reasoning the model loses its train of thought. Three bounded memories restore
them: reasoning by call id or by the surrounding text, calls by id, tokens by text.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sounding.text import ParsedCompletion, Replay, encode
from sounding.text.markup import EOS
from sounding.text.tokenizer import Tokenizer

Message = Mapping[str, Any]


@dataclass(frozen=True)
class RenderedTurns:
    """A prompt as text and as tokens."""

    text: str
    ids: list[int]


class TurnMemory:
    """The memory of one server; thread-safe."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        most_turns: int = 4096,
        most_transcripts: int = 128,
        most_characters: int = 2**25,
    ) -> None:
        self._tokenizer = tokenizer
        self._replay = Replay(most_turns)
        self._reasoning: OrderedDict[str, str] = OrderedDict()
        self._transcripts: OrderedDict[str, list[int]] = OrderedDict()
        self._characters = 0
        self._most_turns, self._most_transcripts = most_turns, most_transcripts
        self._most_characters = most_characters
        self._lock = threading.Lock()

    def render(
        self, owner: str, messages: Sequence[Message], *, most_tokens: int, **how: Any
    ) -> RenderedTurns:
        """Encode a conversation, restoring what its client did not send back.

        Raises ValueError as `encode` does, and TooManyTokens.
        """
        # Answers end in the event loop's thread, which must not wait for a long conversation.
        restored = self._restored(owner, messages)
        text = encode(restored, replay=self._replay, always_answer=True, **how)
        with self._lock:
            begun = max((t for t in self._transcripts if text.startswith(t)), key=len, default="")
            ids = list(self._transcripts[begun]) if begun else []
            if begun:
                self._transcripts.move_to_end(begun)
        # A transcript ends with a special token, and no token spans one.
        left = max(0, most_tokens - len(ids))
        return RenderedTurns(
            text, ids + self._tokenizer.encode(text[len(begun) :], most_tokens=left)
        )

    def keep_turn(
        self,
        owner: str,
        before: Message | None,
        call_ids: Sequence[str],
        completion: ParsedCompletion,
    ) -> None:
        """Remember an answer to the message `before`, with its calls under the ids sent."""
        with self._lock:
            self._replay.keep(call_ids, completion)
            if completion.reasoning_content:
                message = {"content": completion.content}
                for key in (*map(_call_key, call_ids), _words_key(owner, before, message)):
                    self._reasoning[key] = completion.reasoning_content
                    self._reasoning.move_to_end(key)
            while len(self._reasoning) > self._most_turns:
                self._reasoning.popitem(last=False)

    def keep_tokens(self, prompt: RenderedTurns, ids: Sequence[int]) -> None:
        """Remember the tokens, without EOS, of a turn that the model ended itself."""
        text = prompt.text + self._tokenizer.decode(ids) + EOS
        with self._lock:
            if text not in self._transcripts:
                self._characters += len(text)
            self._transcripts[text] = [*prompt.ids, *ids, self._tokenizer.eos_id]
            self._transcripts.move_to_end(text)
            while self._transcripts and (
                len(self._transcripts) > self._most_transcripts
                or self._characters > self._most_characters
            ):
                oldest, _ = self._transcripts.popitem(last=False)
                self._characters -= len(oldest)

    def _restored(self, owner: str, messages: Sequence[Message]) -> list[Message]:
        """The messages, with reasoning restored where it is missing and known."""
        restored: list[Message] = []
        for message in messages:
            if message["role"] == "assistant" and message.get("reasoning_content") is None:
                before = restored[-1] if restored else None
                reasoning = self._lookup(owner, before, message)
                if reasoning is not None:
                    message = {**message, "reasoning_content": reasoning}
            restored.append(message)
        return restored

    def _lookup(self, owner: str, before: Message | None, message: Message) -> str | None:
        ids = [call.get("id") for call in message.get("tool_calls") or ()]
        keys = [_call_key(call_id) for call_id in ids if isinstance(call_id, str)]
        # An id cannot be guessed; text matches only if the question before it was the same too.
        for key in keys or [_words_key(owner, before, message)]:
            with self._lock:
                if key in self._reasoning:
                    self._reasoning.move_to_end(key)
                    return self._reasoning[key]
        return None


def _call_key(call_id: str) -> str:
    return f"call {call_id}"


def _words_key(owner: str, before: Message | None, message: Message) -> str:
    question = None if before is None else [before.get("content"), before.get("content_blocks")]
    words = json.dumps([owner, question, message.get("content") or ""])
    return "words " + hashlib.sha256(words.encode()).hexdigest()
