"""The log of a round of rollouts: every token as it is sampled, every reward as it comes.

A process that is killed leaves unfinished answers behind. They are gone on with, token by token:
starting them anew would favour short ones, which were finished by then.
"""

import json
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


@dataclass
class LoggedAnswer:
    """What is known of an answer so far."""

    tokens: list[int] = field(default_factory=list)
    """Behind the prompt: those sampled, and those given between them, such as tools' results."""
    sampled: list[bool] = field(default_factory=list)
    """Which of them were sampled."""
    logprobs: list[float] = field(default_factory=list)
    """Of each one, as the network gave it; 0 for those given."""
    score: float | None = None
    reason: str = ""

    def add(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.sampled.append(True)
        self.logprobs.append(logprob)

    def give(self, tokens: list[int]) -> None:
        self.tokens += tokens
        self.sampled += [False] * len(tokens)
        self.logprobs += [0.0] * len(tokens)

    @property
    def num_sampled(self) -> int:
        return sum(self.sampled)


class RolloutLog:
    """A file of JSON lines, appended to by several threads and read back after a kill."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Read what the file holds, if it begins with the same header; else begin it anew."""
        self.answers: dict[int, LoggedAnswer] = {}
        self._lock = threading.Lock()
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        size = self._read(header)
        if size:
            with path.open("rb+") as file:
                file.truncate(size)  # half a line was being written when the process ended
        self._file = path.open("a" if size else "w", encoding="utf-8")
        if not size:
            self._write(header)

    def answer(self, slot: int) -> LoggedAnswer:
        """The answer with this number, empty at first."""
        with self._lock:
            return self.answers.setdefault(slot, LoggedAnswer())

    def add(self, slot: int, token: int, logprob: float) -> None:
        """A token was sampled."""
        self.answer(slot).add(token, logprob)
        self._write([slot, token, logprob])

    def give(self, slot: int, tokens: list[int]) -> None:
        """Tokens were put behind what was sampled."""
        self.answer(slot).give(tokens)
        self._write({"slot": slot, "given": tokens})

    def grade(self, slot: int, score: float, reason: str) -> None:
        """The answer is complete and was graded."""
        answer = self.answer(slot)
        answer.score, answer.reason = score, reason
        self._write({"slot": slot, "score": score, "reason": reason})

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()

    def remove(self) -> None:
        """Close and delete the file: what it says is kept elsewhere."""
        self.close()
        self._path.unlink()

    def _write(self, row: Any) -> None:
        with self._lock:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()  # to the system, which outlives this process

    def _read(self, header: dict[str, Any]) -> int:
        """Take in the file; returns the bytes of its whole lines, 0 where it is to begin anew."""
        if not self._path.is_file():
            return 0
        data = self._path.read_bytes()
        data = data[: data.rfind(b"\n") + 1]
        lines = data.splitlines()
        if not lines or json.loads(lines[0]) != json.loads(json.dumps(header)):
            _log.warning("%s was sampled from other weights or prompts; beginning anew", self._path)
            return 0
        for line in lines[1:]:
            self._take(json.loads(line))
        return len(data)

    def _take(self, row: Any) -> None:
        if isinstance(row, list):
            slot, token, logprob = row
            self.answer(slot).add(token, logprob)
            return
        answer = self.answer(row["slot"])
        if "given" in row:
            answer.give(row["given"])
        else:
            answer.score, answer.reason = row["score"], row["reason"]
