"""A client that hangs up: how long the server goes on for nobody."""

import json
import time
from collections.abc import Callable, Iterator

from sounding.bench.traffic.http import Client

_WRITE_CHARACTERS = 600
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.002  # asking takes the server's time too


def measure_leaving(
    url: str, text: str, *, model: str, api_key: str | None, characters: int, times: int
) -> Iterator[tuple[str, float]]:
    """Seconds from hanging up until nothing runs: ("reading", s) in the middle of a prompt and
    ("writing", s) in the middle of an answer, by turns.

    `text` is the code of the prompts; `characters` of it take long to read. Raises OSError without
    a server, ValueError for one that is not ours, refuses, or goes on and on.
    """
    with Client(url, api_key) as client, Client(url, api_key) as watch:
        for number in range(times):
            for kind in ("reading", "writing"):
                size = characters if kind == "reading" else _WRITE_CHARACTERS
                # Another beginning each time, so that no prefix is found.
                prompt = f"# {kind} {number} {time.time()}\n" + text * (1 + size // len(text))
                body = {"model": model, "prompt": prompt[:size], "max_tokens": 400, "stream": True}
                if kind == "reading":
                    leave = _after(watch, "running")
                else:
                    leave = _after(watch, "completion_tokens")
                client.abandon("/v1/completions", body, leave)
                start = time.perf_counter()
                _wait(lambda: _number(watch, "running") == 0, "goes on for nobody")
                yield kind, time.perf_counter() - start


def _after(watch: Client, name: str) -> Callable[[], None]:
    """What waits until a number of the server is larger than it is now."""
    before = _number(watch, name)
    return lambda: _wait(lambda: _number(watch, name) > before, "did not begin")


def _wait(done: Callable[[], bool], complaint: str) -> None:
    until = time.perf_counter() + _PATIENCE_SECONDS
    while not done():
        if time.perf_counter() > until:
            raise ValueError(f"the server {complaint} for {_PATIENCE_SECONDS:.0f} seconds")
        time.sleep(_POLL_SECONDS)


def _number(watch: Client, name: str) -> float:
    """Of `/status`, which is made faster than `/metrics`."""
    text = watch.get("/status")
    try:
        return float(json.loads(text)["engine"][name])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"the server's /status does not tell what is {name}: it is not one of ours"
        ) from None
