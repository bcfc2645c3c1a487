"""`traffic`: load-test a running server with typing, many clients and disconnects."""

import inspect
import json
import re
import statistics
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from sounding.cli.clients import api_key_file_option, read_api_key
from sounding.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sounding.bench.traffic.crowd import Crowd, Tally

_PROCESS = (
    "process_resident_memory_bytes",
    "process_open_fds",
    "sounding_state_bytes",
    "sounding_prefix_bytes",
)


@click.group()
def traffic() -> None:
    """Load-test a running server as editors and agents use it."""


_file = click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Source file that requests contain.  [default: a module of the standard library]",
)
_model = click.option(
    "--model", default="nano", show_default=True, help="Name of the model at the server."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@traffic.command()
@click.argument("url", required=False)
@click.option(
    "--protocol",
    type=click.Choice(["infill", "suffix", "lsp"]),
    default="infill",
    show_default=True,
    help="llama.cpp's /infill, OpenAI's /v1/completions, or a language server, which is started.",
)
@_file
@click.option("--line", default=200, show_default=True, help="Line where typing starts.")
@click.option(
    "--keys",
    default=300,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of keys to type.",
)
@_model
@api_key_file_option
@_json
def typing(
    url: str | None,
    protocol: Literal["infill", "suffix", "lsp"],
    file: Path | None,
    line: int,
    keys: int,
    model: str,
    api_key_file: Path | None,
    as_json: bool,
) -> None:
    """Type part of a file and request a completion at every key.

    The latency is measured from the key to the completion; the next key is typed after it. URL is
    the address of a server; with --protocol lsp it is optional, and the language server then uses
    it instead of loading a model.

    \b
    Keys of the JSON: protocol, keys, p50_ms, p95_ms, largest_ms, and the shares of keys after which
    a completion was "shown" and was "right", that is, continues as the file does.
    """
    from sounding.bench.traffic.http import Client
    from sounding.bench.traffic.typist import trace_of, type_in_an_editor, type_over_http

    trace = trace_of(_text(file), line=line, keys=keys)
    if protocol == "lsp":
        options = ["--server", url] if url else []
        options += ["--api-key-file", str(api_key_file)] if api_key_file else []
        pressed = type_in_an_editor(trace, options)
    elif url is None:
        raise click.UsageError("give the URL of a server, or --protocol lsp")
    else:
        with Client(url, read_api_key(api_key_file)) as client:
            typed = type_over_http(client, trace, protocol, model)
            with progress_bar() as bar:
                pressed = list(bar.track(typed, trace.end - trace.begin, description="typing"))
    seconds = [key.seconds for key in pressed]
    report = {
        "protocol": protocol,
        "keys": len(pressed),
        **_quantiles(seconds),
        "shown": statistics.fmean(bool(key.shown.strip()) for key in pressed),
        "right": statistics.fmean(key.right for key in pressed),
    }
    _print(report, as_json)


@traffic.command()
@click.argument("url")
@click.option(
    "--clients",
    default=64,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of clients.",
)
@click.option(
    "--minutes",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0.05),
    help="Duration of the load.",
)
@click.option(
    "--repeat",
    default=64,
    show_default=True,
    help="Number of requests to repeat one at a time.",
)
@click.option("--seed", default=0, show_default=True)
@_file
@_model
@api_key_file_option
@_json
def crowd(
    url: str,
    clients: int,
    minutes: float,
    repeat: int,
    seed: int,
    file: Path | None,
    model: str,
    api_key_file: Path | None,
    as_json: bool,
) -> None:
    """Simulate many clients at once: agents, chats and editors, some of which disconnect.

    Afterwards some requests are repeated one at a time; their answers must be the same. Memory and
    open files of the server are read before the load (after a warm-up) and after it.

    \b
    Keys of the JSON: clients, seconds, requests, left (deliberate disconnects), errors, different
    (answers that changed when repeated alone), compared, kinds {requests, p50_ms, p95_ms,
    largest_ms, first_p95_ms}, fewest and most (answers per client), before and after (from
    /metrics).
    """
    from sounding.bench.traffic.crowd import Crowd

    key = read_api_key(api_key_file)
    text = _text(file)
    warm = Crowd(url, text, model=model, api_key=key, seed=seed + 1)
    warm.run(4, 3.0)
    before = _metrics(url, key)
    made = Crowd(url, text, model=model, api_key=key, seed=seed)
    start = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("crowd", total=60 * minutes)
        shown = partial(bar.update, task)
        tally = made.run(clients, 60 * minutes, lambda: shown(completed=time.monotonic() - start))
    report = _crowd_report(made, tally, clients, repeat) | {
        "seconds": round(time.monotonic() - start, 1),
        "before": before,
        "after": _metrics(url, key),
    }
    _print(report, as_json)
    if tally.errors or report["different"]:
        raise click.exceptions.Exit(1)


@traffic.command()
@click.argument("url")
@click.option(
    "--times",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of disconnects of each kind.",
)
@click.option("--characters", default=60_000, show_default=True, help="Length of the long prompt.")
@_file
@_model
@api_key_file_option
@_json
def leaving(
    url: str,
    times: int,
    characters: int,
    file: Path | None,
    model: str,
    api_key_file: Path | None,
    as_json: bool,
) -> None:
    """Disconnect during requests, and measure how long the server keeps running them.

    The server must be idle otherwise. Half of the requests are dropped during the prefill of a long
    prompt, half while an answer is generated.

    \b
    Keys of the JSON: reading and writing, each with times, p50_ms, p95_ms, largest_ms.
    """
    from sounding.bench.traffic.leaving import measure_leaving

    key = read_api_key(api_key_file)
    text = _text(file)
    left = measure_leaving(url, text, model=model, api_key=key, characters=characters, times=times)
    with progress_bar() as bar:
        seconds = list(bar.track(left, 2 * times, description="leaving"))
    report = {}
    for kind in ("reading", "writing"):
        report[kind] = {"times": times, **_quantiles([s for k, s in seconds if k == kind])}
    _print(report, as_json)


def _crowd_report(made: "Crowd", tally: "Tally", clients: int, repeat: int) -> dict[str, Any]:
    kinds = {}
    for kind in sorted({answer.kind for answer in tally.answers}):
        replies = tally.of_kind(kind)
        first = _quantiles([reply.first_seconds for reply in replies])["p95_ms"]
        kinds[kind] = {
            "requests": len(replies),
            **_quantiles([reply.seconds for reply in replies]),
            "first_p95_ms": first,
        }
    step = max(1, len(tally.answers) // max(1, repeat))
    chosen = tally.answers[::step][:repeat]
    different = made.repeat(chosen)
    counts = [sum(answer.client == i for answer in tally.answers) for i in range(clients)]
    return {
        "clients": clients,
        "requests": len(tally.answers),
        "left": tally.left,
        "errors": tally.errors,
        "different": [f"client {answer.client}: {answer.kind}" for answer in different],
        "compared": len(chosen),
        "kinds": kinds,
        "fewest": min(counts),
        "most": max(counts),
    }


def _metrics(url: str, api_key: str | None) -> dict[str, float]:
    """Memory and open files of the server once it is idle; {} if /metrics lacks them."""
    from sounding.bench.traffic.http import Client

    with Client(url, api_key) as client:
        for _ in range(100):
            text = client.get("/metrics")
            found = dict(re.findall(r"^(\w+) ([\d.e+]+)$", text, re.MULTILINE))
            if float(found.get("sounding_running", 0)) == 0:
                break
            time.sleep(0.1)
    return {name: float(found[name]) for name in _PROCESS if name in found}


def _quantiles(seconds: "Sequence[float]") -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p50_ms": 0.5, "p95_ms": 0.95, "largest_ms": 1.0}
    last = len(ordered) - 1
    return {name: round(1000 * ordered[round(share * last)], 1) for name, share in at.items()}


def _text(file: Path | None) -> str:
    if file is not None:
        return file.read_text(encoding="utf-8")
    return inspect.getsource(textwrap)


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        if isinstance(value, dict) and value and isinstance(next(iter(value.values())), dict):
            for kind, numbers in value.items():
                click.echo(f"{kind:>12}  {_words(numbers)}")
        else:
            click.echo(f"{name:>12}  {_words(value) if isinstance(value, dict) else value}")


def _words(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in numbers.items())
