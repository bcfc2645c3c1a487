"""Many concurrent clients for minutes: agents with growing histories, chats, and editors.

All decode greedily, so that an answer can be compared with the answer to the same request on an
idle server.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sounding.bench.traffic.http import Client, HTTPReply, said

_LEAVES = 0.04  # share of requests whose client disconnects
_TURNS = 12  # after which an agent starts over
_SEED = 1  # of the other lines that compete with the likeliest one
_TOOL = {
    "name": "read_file",
    "description": "Read a part of a file.",
    "parameters": {
        "type": "object",
        "properties": {"path": {"type": "string"}, "line": {"type": "integer"}},
        "required": ["path"],
    },
}


@dataclass(frozen=True)
class ReceivedAnswer:
    """A request and its answer."""

    kind: str
    client: int
    path: str
    body: dict[str, Any]
    reply: HTTPReply


@dataclass
class Tally:
    """Answers and errors of all clients."""

    answers: list[ReceivedAnswer] = field(default_factory=list)
    left: int = 0  # requests abandoned on purpose
    errors: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[HTTPReply]:
        return [answer.reply for answer in self.answers if answer.kind == kind]


class Crowd:
    """Threads that send requests to a server until time is up."""

    def __init__(self, url: str, text: str, *, model: str, api_key: str | None, seed: int) -> None:
        """`text` is the code that prompts are built from."""
        self._url, self._key, self._model, self._seed = url, api_key, model, seed
        self._lines = text.splitlines(keepends=True)
        self._lock = threading.Lock()
        self.tally = Tally()
        self._stop = threading.Event()

    def run(self, clients: int, seconds: float, tick: Callable[[], None] = lambda: None) -> Tally:
        """Run `clients` threads. Errors are recorded in the tally, not raised. Ctrl-C ends the run
        early."""
        threads = [threading.Thread(target=self._client, args=(i,)) for i in range(clients)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until and any(t.is_alive() for t in threads):
                time.sleep(0.2)
                tick()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        return self.tally

    def repeat(self, answers: Sequence[ReceivedAnswer]) -> list[ReceivedAnswer]:
        """Repeat the requests one by one; returns those whose text differs now."""
        with Client(self._url, self._key) as client:
            return [
                answer
                for answer in answers
                if said(answer.path, client.ask(answer.path, answer.body))
                != said(answer.path, answer.reply)
            ]

    def _client(self, number: int) -> None:
        choose = random.Random(self._seed * 1000 + number)
        with Client(self._url, self._key) as client:
            kinds = (self._agent, self._infill, self._chat, self._suffix)
            ask = kinds[number % len(kinds)]
            while not self._stop.is_set():
                try:
                    ask(client, number, choose)
                except (OSError, ValueError, LookupError) as error:
                    with self._lock:
                        self.tally.errors.append(f"client {number}: {error!r}"[:300])
                    time.sleep(0.5)

    def _ask(
        self,
        kind: str,
        client: Client,
        number: int,
        choose: random.Random,
        path: str,
        body: dict[str, Any],
    ) -> HTTPReply | None:
        """The answer, or None if the request was abandoned."""
        if choose.random() < _LEAVES:
            client.abandon(path, body, lambda: time.sleep(choose.random()))
            with self._lock:
                self.tally.left += 1
            return None
        reply = client.ask(path, body)
        with self._lock:
            self.tally.answers.append(ReceivedAnswer(kind, number, path, body, reply))
        return reply

    def _code(self, choose: random.Random, lines: int) -> str:
        first = choose.randrange(max(1, len(self._lines) - lines))
        return "".join(self._lines[first : first + lines])

    def _agent(self, client: Client, number: int, choose: random.Random) -> None:
        """A task, then tool calls and results; each request contains the whole history."""
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": "You change code.\n" + self._code(choose, 40)},
            {"role": "user", "content": "Explain:\n" + self._code(choose, 10)},
        ]
        for turn in range(_TURNS):
            if self._stop.is_set():
                return
            body = self._chat_body(messages, choose) | {
                "tools": [{"type": "function", "function": _TOOL}]
            }
            reply = self._ask("agent", client, number, choose, "/v1/chat/completions", body)
            if reply is None:
                continue
            text = said("/v1/chat/completions", reply)
            call = {"name": "read_file", "arguments": json.dumps({"path": "a.py", "line": turn})}
            calls = [{"id": f"call_{turn}", "type": "function", "function": call}]
            messages += [
                {"role": "assistant", "content": text, "tool_calls": calls},
                {"role": "tool", "tool_call_id": f"call_{turn}", "content": self._code(choose, 15)},
            ]

    def _chat(self, client: Client, number: int, choose: random.Random) -> None:
        messages = [{"role": "user", "content": self._code(choose, choose.randrange(1, 60))}]
        if choose.random() < 0.5:
            body = self._chat_body(messages, choose)
            self._ask("chat", client, number, choose, "/v1/chat/completions", body)
            return
        body = {"model": self._model, "max_tokens": 24, "messages": messages, "temperature": 0}
        self._ask("messages", client, number, choose, "/v1/messages", body)

    def _chat_body(self, messages: list[dict[str, Any]], choose: random.Random) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": list(messages),
            "max_tokens": choose.randrange(8, 40),
            "temperature": 0,
            "thinking": {"type": "disabled"},
            "stream": choose.random() < 0.5,
        }

    def _infill(self, client: Client, number: int, choose: random.Random) -> None:
        before, behind = self._gap(choose)
        for length in range(len(before) - min(8, len(before)), len(before)):
            if self._stop.is_set():
                return
            body = {
                "input_prefix": before[:length],
                "input_suffix": behind,
                "n_predict": 24,
                "t_max_predict_ms": 600_000,  # a time limit would change answers under load
                "temperature": 0,
                "seed": _SEED,
                "stream": False,
            }
            self._ask("infill", client, number, choose, "/infill", body)

    def _suffix(self, client: Client, number: int, choose: random.Random) -> None:
        before, behind = self._gap(choose)
        body = {
            "model": self._model,
            "prompt": before,
            "suffix": behind,
            "max_tokens": 24,
            "temperature": 0,
            "seed": _SEED,
        }
        self._ask("suffix", client, number, choose, "/v1/completions", body)

    def _gap(self, choose: random.Random) -> tuple[str, str]:
        return self._code(choose, choose.randrange(5, 40)), self._code(choose, 10)
