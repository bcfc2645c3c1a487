"""`pack`: a copy of a model whose experts are quick to read from disk."""

from functools import partial
from pathlib import Path

import click
from rich.progress import DownloadColumn, TransferSpeedColumn

from sounding.loading import open_checkpoint
from sounding.progress import progress_bar


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def pack(model: str, out: Path) -> None:
    """Write a copy of a model whose experts are quick to read from disk.

    OUT becomes a checkpoint with the same tensors, for all commands. Each routed expert lies in one
    piece and, in the published models, begins at a page, so that --memory takes one read for an
    expert where the published files take two. Every tensor has a checksum, which is checked at each
    read. If packing is interrupted, the same command goes on after the last complete file.

    \b
    Example:
      sounding pack DeepSeek-V4-Flash V4-Flash-packed
      sounding serve V4-Flash-packed --memory 24GiB
    """
    from sounding.weights.pack import pack as write

    checkpoint = open_checkpoint(model)
    with progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task("packing", total=checkpoint.num_bytes)
        write(checkpoint, out, partial(progress.advance, task))
    click.echo(f"{out}: {checkpoint.num_bytes:,} bytes of weights, checksummed")
