"""A conversation with a model: what was said, what is asked next, what an interruption leaves.

Knows no terminal and no model: text is written by a function, so that tests can write it by hand.
"""

import json
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Literal

from sounding.files import write_file
from sounding.text import Event, collect, encode, parser
from sounding.text.markup import EOS

Write = Callable[[str], Iterator[str]]
"""Continues a prompt, in pieces, with the end-of-sentence token's text where the model ended by
itself. Closing the iterator ends the generation."""

Effort = Literal["off", "high", "max"]
EFFORTS: tuple[Effort, ...] = ("off", "high", "max")


class Transcript:
    """Messages, and how the next one is thought about."""

    def __init__(self, write: Write, *, system: str = "", effort: Effort = "off") -> None:
        self.system, self.effort = system, effort
        self.messages: list[dict[str, Any]] = []
        self.cut_off = False
        """Whether the last answer would have gone on."""
        self._write = write
        self._read: list[str] = []

    @property
    def thinking_mode(self) -> str:
        return "chat" if self.effort == "off" else "thinking"

    def read(self, path: Path) -> str:
        """Show the model a file with the next message; returns its text.

        Raises ValueError for what is not text, OSError for what cannot be read.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from None
        longest = max((len(run) for run in re.findall("`{3,}", text)), default=2)
        fence = "`" * (longest + 1)
        self._read.append(f"{path}:\n{fence}\n{text.rstrip()}\n{fence}\n\n")
        return text

    def ask(self, text: str) -> Generator[Event, None, None]:
        """Say something and yield the answer's events as they come.

        However it ends, the conversation can go on: an answer that breaks off is kept as far as
        it went, and a question without any answer is taken back. Raises what writing raises.
        """
        self.messages.append({"role": "user", "content": "".join(self._read) + text})
        reading = parser(self.thinking_mode, tolerant=True)
        said: list[Event] = []
        ended, last = False, ""
        try:
            for piece in self._write(self._prompt()):
                last = piece
                events = reading.feed(piece)
                said += events
                yield from events
            ended = True
        finally:
            rest = reading.finish()
            said += rest
            self.cut_off = not last.endswith(EOS)
            self._keep(said)
        if ended:
            yield from rest

    def clear(self) -> None:
        """Forget what was said; how the model is to behave stays."""
        self.messages.clear()
        self._read.clear()

    def save(self, path: Path) -> None:
        """Write the conversation as a row that `sounding encode` reads.

        Raises ValueError for a file that is there already.
        """
        if path.exists():
            raise ValueError(f"{path} is there already; give another name")
        kwargs = {"thinking_mode": self.thinking_mode, "reasoning_effort": self._reasoning_effort}
        row = {"messages": self._all_messages(), "kwargs": kwargs}
        write_file(path, (json.dumps(row, ensure_ascii=False) + "\n").encode())

    def _prompt(self) -> str:
        return encode(
            self._all_messages(), self.thinking_mode, reasoning_effort=self._reasoning_effort
        )

    @property
    def _reasoning_effort(self) -> str | None:
        return None if self.effort == "off" else self.effort

    def _all_messages(self) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.messages

    def _keep(self, said: list[Event]) -> None:
        completion = collect(said)
        if not completion.content and not completion.reasoning_content:
            self.messages.pop()
            return
        self._read.clear()
        message: dict[str, Any] = {"role": "assistant", "content": completion.content}
        if completion.reasoning_content:
            message["reasoning_content"] = completion.reasoning_content
        self.messages.append(message)
