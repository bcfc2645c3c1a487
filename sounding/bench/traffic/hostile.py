"""Measure a server under hostile input: how long other clients wait, and what remains afterwards.

Starts a server with few file handles and sends it the attacks of hostile_inputs.py one by one.
Meanwhile it requests /health and reads a stream. Then it serves a copy of the model with damaged
weights, and sends two signals to a busy server.
"""

import argparse
import contextlib
import http.client
import json
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sounding.bench.traffic.hostile_inputs import Attack, attacks
from sounding.loading import find_model

_MOST_WAIT_SECONDS = 0.5
_MOST_GROWTH_MB = 100.0
_MOST_LOG_BYTES = 1_000_000  # per minute
_HANDLES = 256
_SETTLED_SECONDS = 4.0  # after which memory has been released


class Served:
    """A server in its own process."""

    def __init__(self, model: str | None, log: Path, *options: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "sounding", "serve", *([model] if model else [])]
        with log.open("wb") as written:
            self.process = subprocess.Popen(
                [*command, "--port", "0", "--name", "nano", *options],
                stderr=written,
                preexec_fn=_few_handles,
            )
        while "serving" not in (text := log.read_text(errors="replace")):
            if self.process.poll() is not None:
                raise OSError(f"the server did not start: {text[-500:]}")
            time.sleep(0.1)
        self.port = int(text.partition("http://127.0.0.1:")[2].split()[0])

    @property
    def resident_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    @property
    def log_bytes(self) -> int:
        return self.log.stat().st_size

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _few_handles() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_HANDLES, _HANDLES))


class Watch:
    """Other clients during an attack: how often they were served, and their longest wait."""

    def __init__(self, port: int) -> None:
        self.health_seconds = self.stream_seconds = 0.0
        self.answers = 0
        self.faults: list[str] = []
        self._port, self._over = port, threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._ask, self._read)]

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._over.is_set():
            before = time.perf_counter()
            try:
                with contextlib.closing(self._connect()) as connection:
                    connection.request("GET", "/health")
                    connection.getresponse().read()
                self.answers += 1
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(f"/health: {error!r}")
            self.health_seconds = max(self.health_seconds, time.perf_counter() - before)
            self._over.wait(0.02)

    def _read(self) -> None:
        """Read one stream after another and record the longest wait between two tokens."""
        body = {"model": "nano", "prompt": "def f(x):", "max_tokens": 400, "stream": True}
        while not self._over.is_set():
            with contextlib.closing(self._connect()) as connection:
                try:
                    connection.request("POST", "/v1/completions", json.dumps(body))
                    response, last = connection.getresponse(), 0.0
                    while not self._over.is_set() and response.readline():
                        now = time.perf_counter()
                        self.stream_seconds = max(self.stream_seconds, now - (last or now))
                        last = now
                except (OSError, http.client.HTTPException) as error:
                    self.faults.append(f"a stream: {error!r}")

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)


@dataclass(frozen=True)
class AttackRow:
    """The effects of one attack."""

    name: str
    said: str
    seconds: float
    health_seconds: float
    stream_seconds: float
    before_mb: float
    after_mb: float
    log_bytes: int
    faults: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """What went wrong, or "ok"."""
        wrong = list(self.faults[:1])
        waits = {"/health": self.health_seconds, "a stream": self.stream_seconds}
        for what, seconds in waits.items():
            if seconds > _MOST_WAIT_SECONDS:
                wrong.append(f"{what} waited {seconds:.2f} s")
        if self.after_mb - self.before_mb > _MOST_GROWTH_MB:
            wrong.append(f"kept {self.after_mb - self.before_mb:.0f} MB")
        if self.log_bytes * 60 > _MOST_LOG_BYTES * max(60.0, self.seconds):
            wrong.append(f"logged {self.log_bytes} bytes")
        return "; ".join(wrong) or "ok"


def measure(served: Served, attack: Attack) -> AttackRow:
    """Run an attack while other clients use the server."""
    before_mb, before_log, start = served.resident_mb, served.log_bytes, time.perf_counter()
    with Watch(served.port) as watch:
        said = attack.run(served.port)
        seconds = time.perf_counter() - start
    time.sleep(_SETTLED_SECONDS)
    wrong = attack.verdict(said)
    return AttackRow(
        name=attack.name,
        said=said,
        seconds=seconds,
        health_seconds=watch.health_seconds,
        stream_seconds=watch.stream_seconds,
        before_mb=before_mb,
        after_mb=served.resident_mb,
        log_bytes=served.log_bytes - before_log,
        faults=(*([wrong] if wrong else []), *watch.faults),
    )


def second_signal(served: Served) -> str:
    """Stop a busy server with two signals; "ok", or what went wrong."""
    with Watch(served.port):
        time.sleep(1)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        served.process.send_signal(signal.SIGTERM)
        start = time.perf_counter()
        try:
            served.process.wait(60)
        except subprocess.TimeoutExpired:
            return "it did not end within a minute"
        seconds = time.perf_counter() - start
    wrong = [f"ended after {seconds:.2f} s"] if seconds > 1 else []
    if "Traceback" in served.log.read_text(errors="replace"):
        wrong.append("a traceback in the log")
    return "; ".join(wrong) or "ok"


def damage(model: Path, to: Path, tensor: str) -> None:
    """Copy a checkpoint and fill one tensor of the copy with NaN."""
    shutil.copytree(model, to)
    for path in to.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        (length,) = struct.unpack("<Q", data[:8])
        entry = json.loads(data[8 : 8 + length]).get(tensor)
        if entry is not None:
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            data[begin:end] = b"\xff" * (end - begin)
            path.write_bytes(data)
            return
    raise ValueError(f"{model} has no tensor {tensor!r}")


def answers_of_damaged(served: Served) -> str:
    """Return "ok" if NaN weights lead to status 500 with JSON, else what went wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    body = {"model": "nano", "prompt": "x", "max_tokens": 3, "logprobs": 1}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body))
        response = connection.getresponse()
        text = response.read().decode()
    if "NaN" in text:
        return f"answered {response.status} with a body that is not JSON: {text[:80]}"
    return "ok" if response.status == 500 else f"answered {response.status}: {text[:80]}"


@contextlib.contextmanager
def serving(model: str | None, log: Path, *options: str) -> Iterator[Served]:
    served = Served(model, log, *options)
    try:
        yield served
    finally:
        served.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a checkpoint's folder; else the shipped model")
    parser.add_argument("--scale", type=float, default=1.0, help="of the large inputs")
    parser.add_argument("--only", default="", help="attacks whose name has this text")
    given = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        with serving(given.model, Path(folder, "log"), "--grace-seconds", "60") as served:
            print(_line("attack", "answer", "s", "health", "stream", "MB", "log", "verdict"))
            for attack in attacks(given.scale):
                if given.only in attack.name:
                    row = measure(served, attack)
                    failed += row.verdict != "ok"
                    print(_shown(row), flush=True)
            verdicts = {"a second signal": second_signal(served)}
        if not given.only:
            damage(find_model(given.model), Path(folder, "nan"), "hc_head_base")
            with serving(f"{folder}/nan", Path(folder, "nan.log")) as served:
                verdicts["weights of NaN"] = answers_of_damaged(served)
    for name, verdict in verdicts.items():
        failed += verdict != "ok"
        print(f"{name:<34} {verdict}")
    return 1 if failed else 0


def _shown(row: AttackRow) -> str:
    return _line(
        row.name,
        row.said,
        f"{row.seconds:.1f}",
        f"{row.health_seconds:.2f}",
        f"{row.stream_seconds:.2f}",
        f"{row.before_mb:.0f} -> {row.after_mb:.0f}",
        str(row.log_bytes),
        row.verdict,
    )


def _line(*cells: str) -> str:
    widths = (34, 8, 6, 7, 7, 13, 7, 0)
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))


if __name__ == "__main__":
    sys.exit(main())
