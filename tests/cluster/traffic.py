"""Mixed traffic over replicas, some of them killed, held against one engine."""

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sounding.bench.traffic.crowd import Crowd, ReceivedAnswer, Tally
from sounding.engine.requests import EngineLike
from sounding.loading import SHIPPED, load_tokenizer, open_model
from sounding.server.options import ServerOptions
from tests.cluster.conftest import replica_processes
from tests.server.live import live

_CLIENTS = 8  # two of each kind
_ERROR = '"error":'  # in a stream that had begun
_TEXT = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8")


@dataclass
class Outcome:
    """What became of the requests of a run."""

    tally: Tally
    killed: int = 0

    @property
    def whole(self) -> list[ReceivedAnswer]:
        return [one for one in self.tally.answers if _ERROR not in one.reply.text]

    @property
    def broken(self) -> list[ReceivedAnswer]:
        """Answers that ended with an error after they had begun."""
        return [one for one in self.tally.answers if _ERROR in one.reply.text]

    @property
    def hit_share(self) -> float:
        """Share of prompt tokens that were hits, of answers that say so."""
        usages = [usage for usage in map(_usage, self.whole) if usage is not None]
        return sum(hit for _, hit in usages) / max(1, sum(prompt for prompt, _ in usages))


def run_traffic(
    engine: EngineLike, seconds: float, *, kill_every: float | None = None, seed: int = 1
) -> Outcome:
    """Traffic for some seconds over a server on `engine`, one replica killed every so often."""
    killed = 0
    done = threading.Event()

    def kill() -> None:
        nonlocal killed
        choose = random.Random(seed)
        until = time.monotonic() + seconds
        while not done.wait(kill_every) and time.monotonic() < until:
            # One that starts anew may take longer than this, and one has to be left.
            while not done.wait(0.1) and len(engine.stats().extra["replicas"]) < 2:
                pass
            if not done.is_set():
                choose.choice(replica_processes()).send_signal(signal.SIGKILL)
                killed += 1

    killer = threading.Thread(target=kill)
    with _server(engine) as crowd_of:
        if kill_every is not None:
            killer.start()
        try:
            tally = crowd_of(seed).run(_CLIENTS, seconds)
        finally:
            done.set()
            if kill_every is not None:
                killer.join()
    return Outcome(tally, killed)


def run_on_one_engine(seconds: float, seed: int = 1) -> Outcome:
    """The same traffic, over one engine in this process."""
    opened = open_model(SHIPPED)
    engine = opened.engine()
    try:
        return run_traffic(engine, seconds, seed=seed)
    finally:
        opened.close()


def wrong_answers(answers: Sequence[ReceivedAnswer], most: int) -> list[ReceivedAnswer]:
    """Those of up to `most` answers, drawn at random, that one idle engine gives otherwise."""
    drawn = random.Random(0).sample(list(answers), min(most, len(answers)))
    opened = open_model(SHIPPED)
    try:
        with _server(opened.engine()) as crowd_of:
            return crowd_of(0).repeat(drawn)
    finally:
        opened.close()


@contextmanager
def _server(engine: EngineLike) -> Iterator[Callable[[int], Crowd]]:
    """A server on an engine, which stays open; yields what makes a crowd of a seed."""
    kept = _KeptOpen(engine)
    settings = ServerOptions(model_names=("nano",), thinking=False)
    with live(kept, settings, tokenizer=load_tokenizer(SHIPPED)) as running:
        yield lambda seed: Crowd(running.url, _TEXT, model="nano", api_key=None, seed=seed)


class _KeptOpen:
    """An engine that a server does not close."""

    def __init__(self, engine: EngineLike) -> None:
        self._engine = engine
        self.check, self.submit, self.stats = engine.check, engine.submit, engine.stats

    @property
    def context_tokens(self) -> int:
        return self._engine.context_tokens

    def close(self, grace_seconds: float = 0.0) -> None:
        """Wait until the engine is idle, as cancelled requests end."""
        until = time.monotonic() + grace_seconds
        while self.stats().running and time.monotonic() < until:
            time.sleep(0.05)


def _usage(answer: ReceivedAnswer) -> tuple[int, int] | None:
    """Prompt tokens and hits of an answer; None where it does not say."""
    if answer.reply.text.startswith(("data:", ":", "event:")):
        return None
    said = json.loads(answer.reply.text)
    if "timings" in said:
        hit = said["timings"]["cache_n"]
        return said["timings"]["prompt_n"] + hit, hit
    usage = said.get("usage", {})
    if "prompt_cache_hit_tokens" not in usage:
        return None
    return usage["prompt_tokens"], usage["prompt_cache_hit_tokens"]
