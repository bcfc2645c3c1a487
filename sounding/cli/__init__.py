"""The command line: arguments in, objects wired, answers on stdout and everything else on stderr.

A command's module is imported when that command runs, so starting costs no torch.
"""

import difflib
import importlib
import sys

import click

from sounding.engine.faults import EngineFault

# name: (module under sounding.cli, one-line help). The help is repeated here so that
# `sounding --help` imports none of the modules; a test keeps it equal to the command's own.
COMMANDS: dict[str, tuple[str, str]] = {
    "inspect": ("models", "Describe a model: layers, parameters, bytes, state."),
    "plan": ("models", "Say what running a model takes beside what this machine has."),
    "convert": ("conversion", "Rewrite a checkpoint in another format and report the error made."),
    "logits": ("generation", "Compute logits for given tokens."),
    "generate": ("generation", "Continue a prompt, streaming."),
    "bench": ("bench", "Measure prefill and decode beside this machine's limits."),
    "encode": ("prompts", "Turn conversations into prompt text, JSONL to JSONL."),
    "parse": ("prompts", "Turn completions into messages, JSONL to JSONL."),
    "tokenizer": ("prompts", "Train a tokenizer, or look into one."),
    "train": ("train", "Train a model by the recipe RUN, or resume the run in the folder RUN."),
    "finetune": ("finetune", "Train a model further on your code, and say how to try it."),
    "posttrain": ("posttrain", "Teach a model to answer: conversations, rewards, teachers."),
    "plot": ("train", "Draw loss, expert load and gradient norm of a run as PNG files."),
    "card": ("card", "Write the model card of a trained model from the files of its making."),
    "write": ("completion", "Continue code, streaming."),
    "complete": ("completion", "Fill in code at a place in a file."),
    "serve": ("serving", "Serve a model to editors, agents and SDKs."),
    "language-server": ("editor", "Complete code in an editor, over LSP on stdin and stdout."),
    "traffic": ("traffic", "Measure a running server by what editors and agents do to it."),
    "conformance": (
        "conformance",
        "Check a server's protocols against their documentation.",
    ),
    "chat": ("chat", "Talk with a model in the terminal."),
    "eval": ("evaluation", "Measure a model: bits per byte, filled lines, passed tests."),
    "data": ("data", "Build a corpus of documents and turn it into tokens."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`sounding --help` lists them"
            ctx.fail(f"there is no command {name!r}; {hint}")
        module = importlib.import_module(f"sounding.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="sounding")
def cli() -> None:
    """Sounding: a DeepSeek-V4 language model for code, and everything around it.

    Answers go to stdout, progress and warnings to stderr. `sounding COMMAND --help` explains one.
    """


def main() -> None:
    """Run the command line; a user's mistake and an engine's fault become one line on
    stderr and exit code 1. `sounding help COMMAND` is `sounding COMMAND --help`."""
    try:
        arguments = sys.argv[1:]
        if arguments[:1] == ["help"]:
            arguments = [*arguments[1:], "--help"]
        cli(arguments, prog_name="sounding", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except ModuleNotFoundError as error:
        from sounding.loading import how_to_install

        if (hint := how_to_install(error.name)) is None:
            raise
        click.echo(f"sounding: this command needs {hint}", err=True)
        sys.exit(1)
    except (ValueError, OSError, EngineFault) as error:
        message = f"{error}"
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename}: {error.strerror.lower()}"
        click.echo(f"sounding: {message}", err=True)
        sys.exit(1)
