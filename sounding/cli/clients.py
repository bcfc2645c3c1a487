"""Options of the commands that send requests to a running server."""

from pathlib import Path

import click

api_key_file_option = click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File whose first line is the API key of the server.",
)


def read_api_key(file: Path | None) -> str | None:
    """The API key in the first line of a file; None without a file."""
    return file.read_text().split("\n")[0].strip() if file else None
