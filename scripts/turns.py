"""Two checkouts measured by turns; called by `scripts/against-commit`.

A machine changes its pace within minutes, so only what runs in the same minutes is compared: each
turn measures both, in alternating order, and the ratio of a figure is the median of its turns.
"""

import argparse
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

MODEL = "sounding/assets/nano"
BENCH = {
    "prefill": ["bench", MODEL, "--prefill", "2048", "--decode", "0", "--runs", "3", "--json"],
    "decode": ["bench", MODEL, "--prefill", "", "--decode", "64", "--runs", "3", "--json"],
    "train": [
        "bench",
        "nano",
        "--train",
        "--no-mtp",
        "--tokens",
        "4x1024",
        "--runs",
        "2",
        "--json",
    ],
}
COLD = ["complete", "examples/total.py:6"]
BYTECODE_OFF = "PYTHONDONTWRITEBYTECODE"  # set, it makes every start compile its sources anew
GAP = {"input_prefix": "def add(a, b):\n    return ", "input_suffix": "\n", "n_predict": 16}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != BYTECODE_OFF}
SETTLED_SECONDS = 3  # in which memory has not changed: nothing is being loaded any more


def speed(what: str, tree: Path) -> float:
    """Tokens per second, as `bench` measures them."""
    report = json.loads(output(tree, BENCH[what]))
    figures = [report] if what == "train" else [r for r in report["rows"] if r["kind"] == what]
    return float(figures[0]["tokens_per_second"])


def cold(tree: Path) -> float:
    """Completions per second when each is a process of its own."""
    start = time.perf_counter()
    output(tree, COLD)
    return 1 / (time.perf_counter() - start)


def ready(tree: Path) -> float:
    """Starts of a server per second, each until /health answers."""
    with server(tree) as (url, start):
        health(url)
        return 1 / (time.perf_counter() - start)


def first(tree: Path) -> float:
    """Starts of a server per second, each until a gap has been filled."""
    with server(tree) as (url, start):
        health(url)
        asked = urllib.request.Request(
            url + "/infill", json.dumps(GAP).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked) as answer:
            answer.read()
        return 1 / (time.perf_counter() - start)


def idle(tree: Path) -> float:
    """One over the resident GiB of a language server that has been opened and waits."""
    opening = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"processId": None, "rootUri": None, "capabilities": {}},
    }
    opened = {"jsonrpc": "2.0", "method": "initialized", "params": {}}
    with started(tree, ["language-server"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for message in (opening, opened):
            body = json.dumps(message).encode()
            process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            process.stdin.flush()
        resident, since = 0, time.monotonic()
        while time.monotonic() < since + SETTLED_SECONDS:
            time.sleep(0.1)
            now = psutil.Process(process.pid).memory_info().rss
            if abs(now - resident) > 1 << 20:
                resident, since = now, time.monotonic()
        return 2**30 / resident


FIGURES: dict[str, Callable[[Path], float]] = {
    what: functools.partial(speed, what) for what in BENCH
} | {"cold": cold, "ready": ready, "first": first, "idle": idle}


def output(tree: Path, arguments: list[str]) -> str:
    """What a command of a checkout prints."""
    done = subprocess.run(
        [sys.executable, "-m", "sounding", *arguments],
        cwd=tree,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{tree}: {arguments[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


@contextmanager
def started(
    tree: Path, arguments: list[str], stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A command of a checkout in the background."""
    command = [sys.executable, "-m", "sounding", *arguments]
    silent = subprocess.DEVNULL
    process = subprocess.Popen(
        command, cwd=tree, env=ENVIRONMENT, stdin=stdin, stdout=silent, stderr=silent
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def server(tree: Path) -> Iterator[tuple[str, float]]:
    """A server of a checkout: its address, and when it was started."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    start = time.perf_counter()
    with started(tree, ["serve", "--port", str(port)]):
        yield f"http://127.0.0.1:{port}", start


def health(url: str) -> None:
    """Wait until a server says that it is ready."""
    while True:
        try:
            with urllib.request.urlopen(url + "/health") as answer:
                answer.read()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.005)


def main() -> None:
    """Measure, and print a row per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mine", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--what", default=",".join(FIGURES))
    asked = parser.parse_args()
    for what in asked.what.split(","):
        pairs = []
        for turn in range(asked.turns):
            order = (asked.mine, asked.other) if turn % 2 else (asked.other, asked.mine)
            found = {tree: FIGURES[what](tree) for tree in order}
            pairs.append((found[asked.mine], found[asked.other]))
            print(f"{what}: turn {turn + 1} of {asked.turns}", end="\r", file=sys.stderr)
        ratio = statistics.median(mine / other for mine, other in pairs)
        mine, other = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"{what:8} ratio {ratio:.3f}   {mine:10.3f} and {other:10.3f}", flush=True)


if __name__ == "__main__":
    main()
