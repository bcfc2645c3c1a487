"""What commands share that ask a running server."""

from pathlib import Path

import click

api_key_file_option = click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the server asks for, in the first line of a file.",
)


def read_api_key(file: Path | None) -> str | None:
    """The key in such a file; None without one."""
    return file.read_text().split("\n")[0].strip() if file else None
