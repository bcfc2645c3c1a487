"""Options with units: sizes in bytes such as 12GiB, and rates such as 4GB/s."""

import re

import click

_UNITS = {
    f"{prefix}{kind}": base**power
    for power, prefix in enumerate(("", "k", "m", "g", "t"))
    for kind, base in (("b", 1000), ("ib", 1024))
    if power or kind == "b"
}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*(b|[kmgt]i?b)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as 12GiB. Raises ValueError."""
    found = _QUANTITY.fullmatch(text.strip())
    number = 0 if found is None else round(float(found[1]) * _UNITS[found[2].lower()])
    if number < 1:
        raise ValueError(f"{text!r} must be a number above 0 with its unit, such as 12GiB")
    return number


def size_option(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | None:
    """A callback of options for sizes."""
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def rate_option(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | None:
    """A callback of options for bytes per second, such as 4GB/s."""
    try:
        if value is not None and not value.strip().endswith("/s"):
            raise ValueError
        return None if value is None else parse_size(value.strip().removesuffix("/s"))
    except ValueError:
        example = f"{value!r} must be a number above 0 with its unit, such as 4GB/s"
        raise click.BadParameter(example) from None


memory_option = click.option(
    "--memory",
    "memory_bytes",
    callback=size_option,
    metavar="SIZE",
    help="Memory to keep within, such as 12GiB: routed experts that do not fit are read from disk "
    "as tokens need them.  [default: all weights in memory, or mapped]",
)
