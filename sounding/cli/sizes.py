"""Options with units: sizes in bytes such as 12GiB, and rates such as 4GB/s."""

import re

import click

_UNITS = {
    f"{prefix}{kind}": base**power
    for power, prefix in enumerate(("", "k", "m", "g", "t"))
    for kind, base in (("b", 1000), ("ib", 1024))
    if power or kind == "b"
}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b)", re.IGNORECASE)


class Size(click.ParamType):
    """A number of bytes with its unit; with `rate` per second."""

    def __init__(self, *, rate: bool = False) -> None:
        self.name = "rate" if rate else "size"
        self._ending, self._example = ("/s", "4GB/s") if rate else ("", "12GiB")

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        text = value.strip()
        found = _QUANTITY.fullmatch(text.removesuffix(self._ending).strip())
        if found is None or not text.endswith(self._ending) or found[2].lower() not in _UNITS:
            self.fail(f"{value!r} must be a number with its unit, such as {self._example}")
        number = round(float(found[1]) * _UNITS[found[2].lower()])
        if number < 1:
            self.fail(f"{value!r} must be more than nothing, such as {self._example}")
        return number


memory_option = click.option(
    "--memory",
    "memory_bytes",
    type=Size(),
    help="Memory to keep within, such as 12GiB: routed experts that do not fit are read from disk "
    "as tokens need them.  [default: all weights in memory, or mapped]",
)
