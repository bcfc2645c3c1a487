"""`conformance`: any server's behaviour beside the documentation of its protocols."""

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
@click.option("--model", default="nano", show_default=True, help="Its name at the server.")
@click.option(
    "--protocol",
    "protocols",
    type=click.Choice(_PROTOCOLS),
    multiple=True,
    help="Only this one; may be given again.  [default: all that the server speaks]",
)
@api_key_file_option
@click.option("--requests", default=400, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=300.0, show_default=True, type=click.FloatRange(min=1))
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

    URL is any server's: this project's, llama.cpp's, vLLM's, a hosted one. A protocol that it does
    not speak is skipped. No check needs a clever model, and a small one answers all in a few
    minutes; at most --requests and --seconds are spent. The exit status is 1 where something
    required deviates or nothing could be asked.

    \b
    Keys of the JSON:
      conforms            whether nothing that is required deviates
      results             [{protocol, name, rule, required, verdict, message, sent, got, seconds}]
    """
    from sounding.bench.conformance.check import Protocol, Result, run_checks
    from sounding.bench.conformance.exchange import Server
    from sounding.bench.conformance.kit import checks_of, conforms, summary, table_of

    chosen = [Protocol(name) for name in protocols or _PROTOCOLS]
    server = Server(url, model, read_api_key(api_key_file), requests=requests, seconds=seconds)
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
        click.echo(f"in all: {summary(results)}")
    context.exit(0 if conforms(results) else 1)
