"""The command line: arguments in, objects wired, results on stdout and everything else on stderr.

A command's module is imported when that command runs, so `--help` does not import torch.
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
    "plan": ("models", "Compare what a model needs with what this machine, or a cluster, has."),
    "convert": ("conversion", "Convert a checkpoint to another format and report the error."),
    "drafter": ("conversion", "Write a trained DSpark drafter as a file of its own."),
    "pack": ("packing", "Write a copy of a model whose experts are quick to read from disk."),
    "logits": ("generation", "Compute the logits of tokens."),
    "generate": ("generation", "Continue a prompt and stream the result."),
    "bench": ("bench", "Measure the speed of prefill, decode or training."),
    "encode": ("prompts", "Render conversations as prompts, JSONL to JSONL."),
    "parse": ("prompts", "Parse completions into messages, JSONL to JSONL."),
    "tokenizer": ("prompts", "Train or describe a tokenizer."),
    "train": ("train", "Train a model by the recipe RUN, or resume the run in the folder RUN."),
    "tune": (
        "tune",
        "Learn the code in a folder or git repository: an adapter of a few MB beside a model.",
    ),
    "finetune": (
        "tune",
        "Train all weights of a model on your code: the older name of `tune --full`.",
    ),
    "adapter": ("adapters", "Look into an adapter, and exchange it with the PEFT library."),
    "posttrain": ("posttrain", "Post-train a model: fine-tuning, GRPO, distillation."),
    "plot": ("train", "Plot loss, expert load and gradient norm of a run as PNG files."),
    "card": ("card", "Write the model card of a trained model."),
    "write": ("completion", "Continue code and stream the result."),
    "complete": ("completion", "Fill in code at the cursor in a file."),
    "serve": ("serving", "Serve a model to editors, agents and SDKs."),
    "language-server": ("editor", "Complete code in an editor, over LSP on stdin and stdout."),
    "traffic": ("traffic", "Load-test a running server as editors and agents use it."),
    "conformance": (
        "conformance",
        "Check a server's protocols against their documentation.",
    ),
    "chat": ("chat", "Chat with a model in the terminal."),
    "eval": ("evaluation", "Evaluate a model: bits per byte, infilling, pass@k."),
    "data": ("data", "Build and tokenize training data."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`sounding --help` lists them"
            ctx.fail(f"unknown command {name!r}; {hint}")
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

    Results go to stdout, progress and warnings to stderr. `sounding COMMAND --help` describes a
    command.
    """


def main() -> None:
    """Run the command line; errors of the user and of the engine are printed as one line
    on stderr, with exit code 1. `sounding help COMMAND` is `sounding COMMAND --help`."""
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
