"""`language-server`: code completion in an editor."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sounding.cli.clients import api_key_file_option, read_api_key
from sounding.cli.completion import drafter_option, open_model
from sounding.cli.model_argument import model_argument
from sounding.completion import SHOWN_FROM

if TYPE_CHECKING:
    from sounding.editor.suggest import Suggest


@click.command("language-server")
@model_argument
@click.option("--server", metavar="URL", help="Use a running server instead of loading a model.")
@api_key_file_option
@click.option(
    "--pause-ms",
    default=40,
    show_default=True,
    type=click.IntRange(min=0),
    help="Pause in typing before a completion is requested.",
)
@click.option(
    "--budget-ms",
    default=250,
    show_default=True,
    type=click.IntRange(min=0),
    help="Time limit of a completion after its first token; it then ends as it is. 0: no limit.",
)
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--context-tokens",
    default=1024,
    show_default=True,
    help="Maximum number of tokens of prompt and answer.",
)
@click.option(
    "--min-confidence",
    default=SHOWN_FROM,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Suggest a line only if it is at least this likely to be exactly right. 0: always.",
)
@drafter_option
def language_server(
    model: str | None,
    server: str | None,
    api_key_file: Path | None,
    pause_ms: int,
    budget_ms: int,
    max_tokens: int,
    context_tokens: int,
    min_confidence: float,
    drafter: str | None,
) -> None:
    """Complete code in an editor, over LSP on stdin and stdout.

    MODEL is the folder of a checkpoint with a tokenizer.json; by default the shipped model is
    used, with the adapter in .sounding/adapter of the workspace if `sounding tune` has made one. An
    editor starts this command: docs/editors.md has the settings for Neovim, VS Code, Emacs and Zed.
    The model is loaded once the editor has connected, and errors are shown there.
    """
    from sounding.completion.prompt import TYPING_CANDIDATES, CompletionSettings
    from sounding.editor.language_server import CodeServer
    from sounding.editor.suggest import FromModel, FromServer, through
    from sounding.editor.workspace_adapter import WorkspaceAdapter

    if model is not None and server is not None:
        raise click.UsageError(
            "give either MODEL or --server, not both: a server has its own model"
        )
    if drafter is not None and server is not None:
        raise click.UsageError("--drafter belongs to MODEL; a server has its own")
    if api_key_file is not None and server is None:
        raise click.UsageError("--api-key-file requires --server")
    seconds = budget_ms / 1000

    def open_suggest() -> "Suggest":
        if server is not None:
            key = read_api_key(api_key_file)
            return FromServer(
                server,
                api_key=key,
                max_tokens=max_tokens,
                seconds=seconds,
                min_confidence=min_confidence,
            )
        settings = CompletionSettings(
            max_tokens=max_tokens,
            context_tokens=context_tokens,
            candidates=TYPING_CANDIDATES,
            typing=True,
        )
        opened = open_model(model, drafter=drafter)
        engine = opened.engine()
        adapter = WorkspaceAdapter(
            *(engine.adapters, opened.read_adapter),
            roots=lambda: code_server.roots,
            tell=code_server.tell_from_worker,
        )
        return FromModel(
            opened.tokenizer,
            opened.fim_format,
            through(engine, adapter),
            settings,
            seconds=seconds,
            min_confidence=min_confidence,
        )

    if sys.stdin.isatty():
        click.echo("an editor starts this command; see docs/editors.md", err=True)
    # On an interrupt pygls would wait until stdin is closed.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    code_server = CodeServer(open_suggest, pause_seconds=pause_ms / 1000)
    code = code_server.run()
    # Do not wait for the worker, which may be loading a model.
    sys.stderr.flush()
    os._exit(code)
