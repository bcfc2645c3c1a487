"""A conversation with a model: its messages, the next question, interrupted answers.

Knows neither terminal nor model: a function generates the text, so tests can supply it.
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
"""Continues a prompt in pieces. The last piece is the text of EOS if the model ended the answer.
Closing the iterator cancels the generation."""

Effort = Literal["off", "high", "max"]
EFFORTS: tuple[Effort, ...] = ("off", "high", "max")


class ChatSession:
    """Messages, and the reasoning effort of the next answer."""

    def __init__(self, write: Write, *, system: str = "", effort: Effort = "off") -> None:
        self.system, self.effort = system, effort
        self.messages: list[dict[str, Any]] = []
        self.cut_off = False
        """Whether the last answer ended without EOS."""
        self._write = write
        self._read: list[str] = []

    @property
    def thinking_mode(self) -> str:
        return "chat" if self.effort == "off" else "thinking"

    def read(self, path: Path) -> str:
        """Add a file to the next message. Returns its text.

        Raises ValueError if the file is not UTF-8 text, OSError if it cannot be read.
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
        """Send a message and yield the events of the answer.

        The conversation can always continue: an interrupted answer is kept as far as it got, and
        a question without any answer is removed. Raises what the `write` function raises.
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
        """Remove all messages; the system message stays."""
        self.messages.clear()
        self._read.clear()

    def save(self, path: Path) -> None:
        """Write the conversation as a row that `sounding encode` reads.

        Raises ValueError if the file exists already.
        """
        if path.exists():
            raise ValueError(f"{path} exists already; choose another name")
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
