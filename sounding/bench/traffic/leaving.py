"""Measure how long a server keeps working on a request after its client disconnects."""

import json
import time
from collections.abc import Callable, Iterator

from sounding.bench.traffic.http import Client

_WRITE_CHARACTERS = 600
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.002  # polling takes the server's time too


def measure_leaving(
    url: str, text: str, *, model: str, api_key: str | None, characters: int, times: int
) -> Iterator[tuple[str, float]]:
    """Seconds from a disconnect until nothing runs: ("reading", s) during prefill and
    ("writing", s) during decoding, in alternation.

    `text` is the code of the prompts; the prefill of `characters` of it must take long. Raises
    OSError if no server answers, and ValueError if the server is not ours, refuses, or does not
    stop.
    """
    with Client(url, api_key) as client, Client(url, api_key) as watch:
        for number in range(times):
            for kind in ("reading", "writing"):
                size = characters if kind == "reading" else _WRITE_CHARACTERS
                # A unique start, so that every prompt misses the prefix cache.
                prompt = f"# {kind} {number} {time.time()}\n" + text * (1 + size // len(text))
                body = {"model": model, "prompt": prompt[:size], "max_tokens": 400, "stream": True}
                if kind == "reading":
                    leave = _after(watch, "running")
                else:
                    leave = _after(watch, "completion_tokens")
                client.abandon("/v1/completions", body, leave)
                start = time.perf_counter()
                _wait(lambda: _number(watch, "running") == 0, "keeps working after the disconnect")
                yield kind, time.perf_counter() - start


def _after(watch: Client, name: str) -> Callable[[], None]:
    """Return a function that waits until a number of the server exceeds its present value."""
    before = _number(watch, name)
    return lambda: _wait(lambda: _number(watch, name) > before, "did not begin")


def _wait(done: Callable[[], bool], complaint: str) -> None:
    until = time.perf_counter() + _PATIENCE_SECONDS
    while not done():
        if time.perf_counter() > until:
            raise ValueError(f"the server {complaint} for {_PATIENCE_SECONDS:.0f} seconds")
        time.sleep(_POLL_SECONDS)


def _number(watch: Client, name: str) -> float:
    """Read a number from `/status`, which costs less than `/metrics`."""
    text = watch.get("/status")
    try:
        return float(json.loads(text)["engine"][name])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"the server's /status has no engine.{name}; only `sounding serve` can be measured"
        ) from None
