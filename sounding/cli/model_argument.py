"""MODEL as the argument of a command, or as `--model`.

Commands whose argument is a text or a place have the option only, and nobody should have to
remember which ones.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_GIVEN = "sounding.model"  # where the option's value waits for the argument
Command = TypeVar("Command", bound=Callable[..., Any])


def model_argument(command: Command) -> Command:
    """Add the parameter `model`: None if it is not given."""
    option = click.option(
        "--model",
        "given",
        metavar="MODEL",
        is_eager=True,
        expose_value=False,
        callback=_keep,
        help="Another way to give MODEL.",
    )
    return click.argument("model", required=False, callback=_choose)(option(command))


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    context.meta[_GIVEN] = value


def _choose(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    given: str | None = context.meta.get(_GIVEN)
    if value is not None and given is not None:
        raise click.UsageError(f"the model is given twice: {value} and --model {given}")
    return given if value is None else value
