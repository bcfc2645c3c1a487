"""`chat`: talk with a model in the terminal, or answer a question from stdin."""

import contextlib
import difflib
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sounding.cli.chat_session import EFFORTS, ChatSession, Effort, Write
from sounding.cli.completion import drafter_option, open_model
from sounding.cli.model_argument import model_argument
from sounding.cli.sizes import memory_option
from sounding.engine.faults import EngineFault
from sounding.loading import LoadedModel, can_converse

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from sounding.engine.sampling import SamplingParams

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?\Z", re.DOTALL)  # "/usr/bin is ..." is a message
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@click.command()
@model_argument
@memory_option
@click.option("--system", default="", help="System message.")
@click.option(
    "--think",
    type=click.Choice(EFFORTS),
    default="off",
    show_default=True,
    help="Reasoning effort.",
)
@click.option("--max-tokens", default=2048, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--temperature", default=1.0, show_default=True, help="0 chooses the most likely token."
)
@click.option("--top-p", default=0.95, show_default=True)
@click.option("--seed", type=int, help="The same seed gives the same answers.  [default: random]")
@click.option(
    "--history",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the input history.  [default: chat-history in the settings folder]",
)
@drafter_option
def chat(
    model: str | None,
    memory_bytes: int | None,
    system: str,
    think: Effort,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    history: Path | None,
    drafter: str | None,
) -> None:
    """Chat with a model in the terminal.

    MODEL is the folder of a checkpoint with a tokenizer.json; by default the shipped model is used.
    Enter sends; Alt-Enter, or Enter after a backslash, starts a new line. Ctrl-C stops an answer,
    Ctrl-D ends the conversation, and /help lists the commands. Text piped to stdin is sent as one
    question: its answer goes to stdout and everything else to stderr.

    \b
    Examples:
      sounding chat
      git diff | sounding chat --system 'Review this change.'
    """
    from sounding.engine.sampling import SamplingParams

    seed = random.getrandbits(32) if seed is None else seed
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
    question = None if sys.stdin.isatty() else sys.stdin.read().strip()
    if question == "":
        raise ValueError(
            "stdin is empty; pipe a question to it, or run the command in a terminal to chat"
        )
    opened = open_model(model, memory_bytes, drafter)
    if not can_converse(opened.folder):
        click.echo(
            "this is a base model: it completes code and is not trained to chat; try "
            "`sounding complete FILE:LINE`",
            err=True,
        )
    conversation = ChatSession(writer(opened, params, max_tokens), system=system, effort=think)
    if question is not None:
        answer(conversation, question)
    else:
        talk(conversation, history or Path(click.get_app_dir("sounding")) / "chat-history")


def writer(opened: LoadedModel, params: "SamplingParams", max_tokens: int) -> Write:
    """A function that continues prompts; each answer is sampled with its own seed."""
    import dataclasses

    from sounding.engine.requests import Finished, GenerationRequest
    from sounding.text.markup import EOS
    from sounding.text.tokenizer import TooManyTokens

    engine = opened.engine(width=1)
    answers = 0

    def write(prompt: str) -> Iterator[str]:
        nonlocal answers
        try:
            ids = opened.tokenizer.encode(prompt, most_tokens=engine.context_tokens - 1)
        except TooManyTokens as error:
            about = "" if error.exact else "at least "
            raise ValueError(
                f"the conversation has {about}{error.num_tokens} tokens and fills the context of "
                f"{engine.context_tokens}; /clear starts a new one"
            ) from None
        budget = min(max_tokens, engine.context_tokens - len(ids))
        how = dataclasses.replace(params, seed=(params.seed + answers) % 2**63)
        answers += 1
        stream = engine.submit(GenerationRequest(prompt=ids, params=how, max_tokens=budget))
        try:
            for event in stream:
                yield event.text
                if isinstance(event, Finished) and event.error is not None:
                    raise EngineFault(f"generation failed: {event.error}")
                if isinstance(event, Finished) and event.reason == "stop":
                    yield EOS
        finally:
            stream.cancel()  # the caller may have stopped reading

    return write


# --------------------------------------------------------------------------------------------------
# Answers


def answer(conversation: ChatSession, question: str) -> None:
    """Stream one answer: the reasoning dimmed, or on stderr if stdout is piped."""
    from sounding.text import CallBegun, ContentDelta, ReasoningDelta

    terminal = sys.stdout.isatty()
    thinking = False
    with contextlib.closing(conversation.ask(question)) as events:
        for event in events:
            match event:
                case ReasoningDelta(text):
                    _show(text, terminal, dim=True)
                    thinking = True
                case ContentDelta(text):
                    if thinking:
                        click.echo("\n", err=not terminal)
                    _show(text, terminal)
                    thinking = False
                case CallBegun(_, name):
                    _note(f"the model calls the tool {name!r}; this chat has no tools")
    click.echo()
    if conversation.cut_off:
        _note("the answer was cut off at --max-tokens or at the end of the context")


def _show(text: str, terminal: bool, *, dim: bool = False) -> None:
    if terminal:  # a model must not control the terminal
        text = _UNPRINTABLE.sub("�", text)
    click.echo(click.style(text, dim=True) if dim else text, nl=False, err=dim and not terminal)
    (sys.stderr if dim and not terminal else sys.stdout).flush()


def _note(text: str) -> None:
    click.secho(f"({text})", err=True, dim=True)


# --------------------------------------------------------------------------------------------------
# The conversation


def talk(conversation: ChatSession, history: Path) -> None:
    """Read lines and answer them, until the input ends."""
    lines = _session(conversation, _history(history))
    _note("/help lists the commands; Ctrl-D exits")
    going = True
    while going:
        try:
            going = _turn(conversation, lines.prompt("> ").strip())
        except EOFError:
            return
        except KeyboardInterrupt:
            click.echo()
            _note("stopped; Ctrl-D exits")
        except (ValueError, OSError, EngineFault) as error:
            click.secho(f"{error}", err=True, fg="red")


def _turn(conversation: ChatSession, text: str) -> bool:
    """Answer a message or run a command. Returns whether the conversation continues."""
    command = _COMMAND.match(text)
    if command is not None and command[1] in ("exit", "quit"):
        return False
    if command is not None:
        _run_command(conversation, command[1], (command[2] or "").strip())
    elif text:
        answer(conversation, text)
    return True


def _help(conversation: ChatSession, text: str) -> None:
    """list the commands"""
    for name, command in _COMMANDS.items():
        click.echo(f"  /{name:<8} {command.__doc__}", err=True)
    click.echo(f"  {'/exit':<9} exit, as Ctrl-D does", err=True)
    click.echo(
        "Enter sends. Alt-Enter, or Enter after a backslash, starts a new line. Ctrl-C stops "
        "an answer.",
        err=True,
    )


def _think(conversation: ChatSession, text: str) -> None:
    """[off|high|max]  set the reasoning effort"""
    if text:
        if text not in EFFORTS:
            raise ValueError(f"/think {text}: must be one of {', '.join(EFFORTS)}")
        conversation.effort = next(effort for effort in EFFORTS if effort == text)
    _note(f"thinking is {conversation.effort}")


def _read(conversation: ChatSession, text: str) -> None:
    """FILE  add a file to the next message"""
    if not text:
        raise ValueError("/read requires the name of a file")
    path = Path(text).expanduser()
    read = conversation.read(path)
    _note(f"{path}: {len(read.splitlines())} lines, sent with the next message")


def _system(conversation: ChatSession, text: str) -> None:
    """[TEXT]  set the system message; "none" removes it"""
    if text:
        conversation.system = "" if text == "none" else text
    _note(f"system: {conversation.system or 'none'}")


def _clear(conversation: ChatSession, text: str) -> None:
    """start a new conversation"""
    conversation.clear()
    _note("cleared")


def _save(conversation: ChatSession, text: str) -> None:
    """FILE  write the conversation as a row for `sounding encode`"""
    if not text:
        raise ValueError("/save requires the name of a file")
    path = Path(text).expanduser()
    conversation.save(path)
    _note(f"saved to {path}")


_COMMANDS: dict[str, Callable[[ChatSession, str], None]] = {
    "help": _help,
    "think": _think,
    "read": _read,
    "system": _system,
    "clear": _clear,
    "save": _save,
}


def _run_command(conversation: ChatSession, name: str, text: str) -> None:
    if name not in _COMMANDS:
        near = difflib.get_close_matches(name, [*_COMMANDS, "exit"], 1)
        raise ValueError(
            f"unknown command /{name}; "
            + (f"did you mean /{near[0]}?" if near else "/help lists them")
        )
    _COMMANDS[name](conversation, text)


# --------------------------------------------------------------------------------------------------
# Line editing


def _session(conversation: ChatSession, history: "History") -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    return PromptSession(
        multiline=True,
        history=history,
        key_bindings=_keys(),
        completer=_completer(),
        complete_while_typing=False,
        prompt_continuation="  ",
        bottom_toolbar=lambda: f" thinking {conversation.effort} · /help",
        output=create_output(always_prefer_tty=True),  # stdout may be a file
    )


def _keys() -> "KeyBindings":
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: "KeyPressEvent") -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _completer() -> "Completer":
    """Tab completes commands, and the paths they take."""
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class Commands(Completer):
        def get_completions(
            self, document: "Document", event: "CompleteEvent"
        ) -> "Iterable[Completion]":
            text = document.text_before_cursor
            name, space, rest = text.partition(" ")
            if not space and text.startswith("/"):
                names = (f"/{command}" for command in (*_COMMANDS, "exit"))
                yield from (Completion(n, -len(text)) for n in names if n.startswith(text))
            elif space and name in ("/read", "/save"):
                paths = PathCompleter(expanduser=True)
                yield from paths.get_completions(Document(rest), event)
            elif space and name == "/think":
                yield from (Completion(e, -len(rest)) for e in EFFORTS if e.startswith(rest))

    return Commands()


def _history(path: Path) -> "History":
    """The input history, readable by its owner only; in memory if it cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        _note(f"the input history is not saved: {error}")
        return InMemoryHistory()
    return FileHistory(path)
