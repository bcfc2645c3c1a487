"""The public interface of a loaded model: complete, generate, chat and logits as plain calls.

`sounding.load` returns a `Model`. Nothing else of the package is promised to stay as it is; see
docs/library.md. Strings and NumPy arrays go in and out, never tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sounding.completion.completer import Completer
from sounding.completion.gap import Gap
from sounding.completion.prompt import CompletionSettings
from sounding.engine.batch import Batch
from sounding.engine.requests import EngineFault, Event, Finished, GenerationRequest
from sounding.engine.sampling import SamplingParams
from sounding.engine.scoring import split_logits
from sounding.loading import LoadedModel, open_model
from sounding.text import encode, parse
from sounding.text.markup import EOS

if TYPE_CHECKING:
    from sounding.engine.engine import Engine

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Completion:
    """Code to insert at a cursor; `str()` of it is the text."""

    text: str
    parses: bool
    """Whether the file is valid Python with it inserted; False where that was not asked."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Generation:
    """A continued prompt; `str()` of it is the text."""

    text: str
    finish_reason: str
    """"stop": the model ended or a stop string came; "length": the budget of tokens was used up;
    "repetition": the text went round in circles."""
    prompt_tokens: int
    completion_tokens: int

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Reply:
    """An answer to a conversation; `str()` of it is the text."""

    text: str
    reasoning: str
    tool_calls: Sequence[Mapping[str, Any]]
    """In the form of OpenAI: {"type": "function", "function": {"name", "arguments"}}, arguments as
    a string of JSON."""
    finish_reason: str

    def __str__(self) -> str:
        return self.text


class Model:
    """A model in memory with an engine that runs it. Calls may come from several threads.

    Close it, or use it as a context manager, to free its memory before the process ends.
    """

    def __init__(self, opened: LoadedModel) -> None:
        self._opened = opened
        self._running: Engine | None = None
        self._lock = Lock()

    @property
    def folder(self) -> Path:
        """Where its weights lie."""
        return self._opened.folder

    def complete(
        self,
        prefix: str,
        suffix: str = "",
        *,
        kind: Literal["line", "block"] | None = None,
        max_tokens: int = 128,
        python: bool = True,
    ) -> Completion:
        """The code that belongs between `prefix` and `suffix`, the text around a cursor.

        `kind` says whether to fill a line or a block; by default the text around decides. With
        `python`, an answer that leaves the source valid is preferred. The text may be empty.
        """
        gap = Gap(prefix, suffix)
        completer = self._completer()
        settings = CompletionSettings(max_tokens=max_tokens)
        plan = completer.plan(gap, kind or gap.natural_kind(), settings, python=python)
        found = completer.complete(plan, SamplingParams(temperature=0.0))
        return Completion(found[0].text, found[0].valid) if found else Completion("", False)

    def _completer(self) -> Completer:
        opened = self._opened
        return Completer(opened.tokenizer, opened.fim_format, Batch(self._engine()))

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Continue a prompt, taken as it is, special tokens included.

        Temperature 0 takes the likeliest token. Raises ValueError for a prompt that does not fit
        into the context.
        """
        ids = self._ids(prompt)
        params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
        return _collected(self._events(ids, params, max_tokens, stop))

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Like `generate`, but yields the text in pieces as it is made.

        Closing the iterator cancels the rest.
        """
        ids = self._ids(prompt)
        params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
        for event in self._events(ids, params, max_tokens, stop):
            if event.text:
                yield event.text

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool = False,
        max_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Reply:
        """Answer a conversation in the form of OpenAI: [{"role": "user", "content": "..."}, ...].

        Raises ValueError naming the message that cannot be encoded.
        """
        mode = "thinking" if thinking else "chat"
        prompt = encode(_with_tools(messages, tools), mode, always_answer=True)
        ids = self._ids(prompt)
        params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
        answer = _collected(self._events(ids, params, max_tokens, ()))
        ended = EOS if answer.finish_reason == "stop" else ""
        message = parse(answer.text + ended, mode, tolerant=True, tools=tools).message()
        return Reply(
            message["content"],
            message["reasoning_content"],
            message["tool_calls"],
            answer.finish_reason,
        )

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each of the given token ids: float32 [tokens, vocabulary].

        Raises ValueError for no tokens or ids outside the vocabulary.
        """
        if not tokens:
            raise ValueError("no tokens are given; logits need at least one")
        return split_logits(self._opened.network, [tokens], [[len(tokens)]])[0]

    def close(self) -> None:
        """Stop the engine. Safe to call twice."""
        self._opened.close()
        self._running = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ids(self, prompt: str) -> list[int]:
        return self._opened.tokenizer.encode(prompt, most_tokens=self._engine().context_tokens)

    def _engine(self) -> "Engine":
        with self._lock:
            if self._running is None:
                self._running = self._opened.engine()
            return self._running

    def _events(
        self, prompt: Sequence[int], params: SamplingParams, max_tokens: int, stop: Sequence[str]
    ) -> Iterator[Event]:
        """The events of one request. Raises EngineFault where the engine fails."""
        stream = self._engine().submit(
            GenerationRequest(prompt=prompt, params=params, max_tokens=max_tokens, stop=stop)
        )
        try:
            for event in stream:
                if isinstance(event, Finished) and event.error is not None:
                    raise EngineFault(f"the model could not go on: {event.error}")
                yield event
        finally:
            stream.cancel()  # the caller may have stopped reading


def load(name: str | Path | None = None, *, drafter: str | Path | None = None) -> Model:
    """Load a model: "nano", the shipped one, by default, or a folder with a checkpoint.

    `drafter` is the folder of a DSpark drafter trained for it; by default the folder `drafter` in
    the model's own if there is one; "none": without. Raises ValueError, saying what is missing or
    wrong, where there is none.
    """
    return Model(open_model(name, drafter=drafter))


def _collected(events: Iterator[Event]) -> Generation:
    pieces = []
    for event in events:
        pieces.append(event.text)
        if isinstance(event, Finished):
            usage = event.usage
            return Generation(
                "".join(pieces), event.reason, usage.prompt_tokens, usage.completion_tokens
            )
    raise AssertionError("a stream ends with exactly one Finished")


def _with_tools(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The messages, the first system message carrying the tools as the prompt format wants it."""
    given = [dict(message) for message in messages]
    if tools:
        if not given or given[0].get("role") != "system":
            given.insert(0, {"role": "system", "content": ""})
        given[0]["tools"] = list(tools)
    return given
