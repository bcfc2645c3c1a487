"""MODEL can be an argument or an option, and not both.

Catches: a command that takes MODEL in only one of the two ways.
"""

import click
import pytest
from click.testing import CliRunner

from sounding.cli import cli
from sounding.cli.model_argument import model_argument


@click.command()
@model_argument
def show(model: str | None) -> None:
    click.echo(repr(model))


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ((), "None"),
        (("nano",), "'nano'"),
        (("--model", "nano"), "'nano'"),
        (("--model=a b",), "'a b'"),
    ],
)
def test_it_is_given_once(arguments: tuple[str, ...], shown: str) -> None:
    assert CliRunner().invoke(show, arguments).output == shown + "\n"


def test_it_cannot_be_given_twice() -> None:
    done = CliRunner().invoke(show, ["one", "--model", "two"])
    assert done.exit_code == 2 and "given twice: one and --model two" in done.output


@pytest.mark.parametrize(
    "command",
    "complete write chat serve generate bench inspect plan language-server".split(),
)
def test_every_command_that_reads_a_model_takes_the_option(command: str) -> None:
    assert "--model" in CliRunner().invoke(cli, [command, "--help"]).output
