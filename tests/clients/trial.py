"""One client tried against a server with a scripted model: what it does, and what comes of it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sounding.server.options import ServerOptions
from tests.clients.catalogue import Client, Place, Scenario
from tests.clients.scripted_model import STORY_END, TOOL_OUTPUT, answer
from tests.server.live import Live, live
from tests.server.scripted import ScriptedEngine

_CONTEXT_TOKENS = 262_144
_MOST_SECONDS = 150.0  # for one command of a client: they start slowly, and wait before they retry
_CANCEL_SECONDS = 4.0
_PACE_SECONDS = 0.04  # a token of a story that a client is to leave, or to lose


class Failed(Exception):
    """Why a client did not do what a scenario asks for."""


@dataclass(frozen=True)
class Running:
    """A client at work, and the file that all its output goes to."""

    process: "subprocess.Popen[str]"
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> str:
        """What it has said in the end. Raises Failed if it has none."""
        try:
            self.process.wait(_MOST_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"no end within {_MOST_SECONDS:.0f} s: {_tail(self.said)}") from None
        return self.said


class Harbour:
    """A server that can stop and come back under the same address."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._running: Live | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine(self) -> ScriptedEngine:
        assert self._running is not None and isinstance(self._running.engine, ScriptedEngine)
        return self._running.engine

    def start(self, pace_seconds: float = 0.0) -> None:
        engine = ScriptedEngine(answer, context_tokens=_CONTEXT_TOKENS)
        engine.pace_seconds = pace_seconds
        options = ServerOptions(model_names=("nano",))
        self._running = self._stack.enter_context(
            live(engine, options, grace_seconds=0.0, port=self.port)
        )
        self.port = self._running.port

    def stop(self) -> None:
        self._stack.close()
        self._running = None

    def is_telling(self) -> bool:
        """Whether an answer is on its way to the client."""
        return any(len(s.tokens) > 8 and not s.cancelled.is_set() for s in self.engine.streams)


def try_client(client: Client, place: Place) -> dict[str, str]:
    """The outcome of each scenario: "works", what else is so, or "fails: ..." with the reason."""
    outcomes: dict[str, str] = {}
    scenarios: dict[Scenario, Callable[[Client, Place, Harbour], str]] = {
        "conversation": _converse,
        "tool": _use_tool,
        "cancel": _cancel,
        "reconnect": _reconnect,
    }
    for name, scenario in scenarios.items():
        if name in client.without:
            outcomes[name] = client.without[name]
            continue
        harbour = Harbour()
        harbour.start(_PACE_SECONDS if name in ("cancel", "reconnect") else 0.0)
        here = place.at(harbour.url, name)
        client.prepare(here)
        try:
            outcomes[name] = scenario(client, here, harbour)
        except Failed as error:
            outcomes[name] = f"fails: {error}"
        finally:
            harbour.stop()
    return outcomes


def _converse(client: Client, place: Place, harbour: Harbour) -> str:
    said = ""
    for turn in range(client.turns):
        said = _run(client, place, "conversation", turn)
    _expect(said, "greeting 2")
    return "works"


def _use_tool(client: Client, place: Place, harbour: Harbour) -> str:
    _expect(_run(client, place, "tool", 0), f"The tool said {TOOL_OUTPUT}")
    return "works"


def _cancel(client: Client, place: Place, harbour: Harbour) -> str:
    with _running(client, place, "cancel") as running:
        _await_answer(harbour, running)
        if client.cancels_itself and _is_left(harbour):
            return "works"
        if not client.cancels_itself:
            for number, outcome in ((signal.SIGINT, "works"), (signal.SIGTERM, "when ended")):
                os.killpg(running.process.pid, number)  # as a terminal does
                if _is_left(harbour):
                    return outcome
    raise Failed("the server went on with the answer")


def _is_left(harbour: Harbour) -> bool:
    """Whether the server soon notices that nobody reads its answers."""
    deadline = time.monotonic() + _CANCEL_SECONDS
    while time.monotonic() < deadline:
        if all(stream.cancelled.is_set() for stream in harbour.engine.streams):
            return True
        time.sleep(0.05)
    return False


def _reconnect(client: Client, place: Place, harbour: Harbour) -> str:
    with _running(client, place, "reconnect") as running:
        _await_answer(harbour, running)
        harbour.stop()
        time.sleep(1.0)
        harbour.start()
        said = running.wait()
    if STORY_END in said:
        return "goes on by itself"
    _expect(_run(client, place, "reconnect", 0), STORY_END)
    return "at the next request"


def _run(client: Client, place: Place, scenario: Scenario, turn: int) -> str:
    with _running(client, place, scenario, turn) as running:
        return running.wait()


@contextmanager
def _running(client: Client, place: Place, scenario: Scenario, turn: int = 0) -> Iterator[Running]:
    """A client's process, with what it started ended at the end of the block."""
    log = place.home / f"turn-{turn}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            client.command(place, scenario, turn),
            cwd=place.work,
            env={**_environment(place), **client.environment(place)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield Running(process, log)
        finally:
            _end(process)


def _environment(place: Place) -> dict[str, str]:
    """What a client is told of this machine: nothing of its user's own settings and keys."""
    kept = {name: os.environ[name] for name in ("LANG", "TERM") if name in os.environ}
    return {**kept, "PATH": f"{place.folder}/bin:{os.environ['PATH']}", "HOME": str(place.home)}


def _await_answer(harbour: Harbour, running: Running) -> None:
    deadline = time.monotonic() + _MOST_SECONDS
    while not harbour.is_telling():
        if running.process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"no answer was begun: {_tail(running.said)}")
        time.sleep(0.02)


def _expect(said: str, words: str) -> None:
    if words not in said:
        raise Failed(_tail(said))


def _tail(said: str) -> str:
    return " ".join(said.split())[-300:] or "no output"


def _end(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
