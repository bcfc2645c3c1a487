"""`language-server`: completions inside of an editor."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sounding.cli.clients import api_key_file_option, read_api_key
from sounding.cli.completion import open_model

if TYPE_CHECKING:
    from sounding.editor.suggest import Suggest


@click.command("language-server")
@click.argument("model", required=False)
@click.option("--server", metavar="URL", help="Ask a running server rather than load a model.")
@api_key_file_option
@click.option(
    "--pause-ms",
    default=40,
    show_default=True,
    type=click.IntRange(min=0),
    help="How long the keyboard must rest before a completion is begun.",
)
@click.option(
    "--budget-ms",
    default=250,
    show_default=True,
    type=click.IntRange(min=0),
    help="Time for a completion from its first token on; what is there then is shown. 0: no limit.",
)
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--context-tokens",
    default=1024,
    show_default=True,
    help="What the model sees, its answer included.",
)
def language_server(
    model: str | None,
    server: str | None,
    api_key_file: Path | None,
    pause_ms: int,
    budget_ms: int,
    max_tokens: int,
    context_tokens: int,
) -> None:
    """Complete code in an editor, over LSP on stdin and stdout.

    MODEL is the folder of a checkpoint with a tokenizer.json; without one, the shipped model is
    taken, with the adapter in `.sounding/adapter` of the workspace where `sounding tune` has made
    one. An editor starts this command: docs/editors.md has the lines for Neovim, VS Code, Emacs
    and Zed. The model is loaded when the editor has connected, and what goes wrong is shown there.
    """
    from sounding.completion.prompt import CompletionSettings
    from sounding.editor.language_server import CodeServer
    from sounding.editor.suggest import FromModel, FromServer, through
    from sounding.editor.workspace_adapter import WorkspaceAdapter

    if model is not None and server is not None:
        raise click.UsageError("give either MODEL or --server: a server has loaded its own")
    if api_key_file is not None and server is None:
        raise click.UsageError("--api-key-file goes with --server")
    seconds = budget_ms / 1000

    def open_suggest() -> "Suggest":
        if server is not None:
            key = read_api_key(api_key_file)
            return FromServer(server, api_key=key, max_tokens=max_tokens, seconds=seconds)
        settings = CompletionSettings(
            max_tokens=max_tokens, context_tokens=context_tokens, typing=True
        )
        opened = open_model(model)
        engine = opened.engine()
        adapter = WorkspaceAdapter(
            *(engine.adapters, opened.read_adapter),
            roots=lambda: code_server.roots,
            tell=code_server.tell_from_worker,
        )
        generate = through(engine, adapter)
        return FromModel(opened.tokenizer, generate, settings, seconds=seconds)

    if sys.stdin.isatty():
        click.echo("this command is for an editor to start: see docs/editors.md", err=True)
    # pygls would take an interrupt for a reason to wait until stdin is closed.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    code_server = CodeServer(open_suggest, pause_seconds=pause_ms / 1000)
    code = code_server.run()
    # The worker may be loading a model; nobody waits for it any more.
    sys.stderr.flush()
    os._exit(code)
