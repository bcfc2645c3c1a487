"""The progress bar of commands that take long: on stderr, nothing where that is no terminal."""

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


def progress_bar(*columns: ProgressColumn) -> Progress:
    """What is done, a bar, what `columns` say, the time left; gone when the work is."""
    return Progress(
        *(TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn()),
        console=Console(stderr=True),
        transient=True,
    )
