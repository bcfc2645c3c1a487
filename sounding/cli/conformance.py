"""`conformance`: check a server against the documentation of its protocols."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn

from sounding.cli.clients import api_key_file_option, read_api_key
from sounding.progress import progress_bar

_PROTOCOLS = ["chat", "completions", "responses", "messages", "infill", "ollama"]


@click.command()
@click.argument("url")
@click.option("--model", default="nano", show_default=True, help="Name of the model at the server.")
@click.option(
    "--protocol",
    "protocols",
    type=click.Choice(_PROTOCOLS),
    multiple=True,
    help="Only this protocol; can be given repeatedly.  [default: all that the server supports]",
)
@api_key_file_option
@click.option(
    "--requests",
    default=400,
    show_default=True,
    type=click.IntRange(min=1),
    help="Maximum number of requests.",
)
@click.option(
    "--seconds",
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Time limit of all checks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def conformance(
    context: click.Context,
    url: str,
    model: str,
    protocols: tuple[str, ...],
    api_key_file: Path | None,
    requests: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Check a server's protocols against their documentation.

    URL is the address of any server: this project's, llama.cpp, vLLM, a hosted one. Protocols that
    it does not support are skipped. The checks do not depend on the quality of the model; with a
    small one they take a few minutes, and never more than --requests and --seconds. The exit status
    is 1 if a required rule is violated or no check could be made.

    \b
    Keys of the JSON:
      conforms            whether all required rules hold
      results             [{protocol, name, rule, required, verdict, message, sent, got, seconds}]
    """
    from sounding.bench.conformance.check import Protocol, Result, run_checks
    from sounding.bench.conformance.kit import checks_of, conforms, summary, table_of
    from sounding.bench.conformance.remote_server import RemoteServer

    chosen = [Protocol(name) for name in protocols or _PROTOCOLS]
    server = RemoteServer(
        url, model, read_api_key(api_key_file), requests=requests, seconds=seconds
    )
    checks = checks_of(chosen)
    results: list[Result] = []
    with progress_bar(MofNCompleteColumn()) as bar:
        results.extend(bar.track(run_checks(server, checks), len(checks), description="checks"))
    if as_json:
        found = [result.to_dict() for result in results]
        click.echo(json.dumps({"conforms": conforms(results), "results": found}, indent=2))
    else:
        console = Console()
        for protocol in chosen:
            console.print(table_of(protocol, results))
        click.echo(f"total: {summary(results)}")
    context.exit(0 if conforms(results) else 1)
