"""`convert`: rewrite a checkpoint in another format."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich import box
from rich.console import Console
from rich.progress import DownloadColumn
from rich.table import Table

from sounding.loading import open_checkpoint
from sounding.progress import progress_bar

if TYPE_CHECKING:  # torch takes a second to import, and --help does without it
    from sounding.weights.quantize import Report


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "target",
    type=click.Choice(["bf16", "fp8", "fp4", "transformers", "gguf"]),
    required=True,
    help="Format of the result.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Dtype of a transformers result; float32 represents every source exactly.",
)
@click.option("--force", is_flag=True, help="Replace what is at DESTINATION.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def convert(
    source: Path,
    destination: Path,
    target: Literal["bf16", "fp8", "fp4", "transformers", "gguf"],
    dtype: Literal["bfloat16", "float32"],
    force: bool,
    as_json: bool,
) -> None:
    """Rewrite a checkpoint in another format and report the error made.

    SOURCE is a folder in the published layout or in that of transformers, in any format.
    DESTINATION appears only once it is complete. Formats:

    \b
      fp4           as V4 is published: experts FP4, other linears FP8
      fp8           experts and linears FP8; from fp4 this is exact
      bf16          nothing quantized; from fp4 or fp8 this is exact
      transformers  nothing quantized, named and laid out as the transformers library does
      gguf          one file for llama.cpp, with tokenizer and prompt template: FP4 experts as
                    MXFP4, other weights BF16; exact but for float32 weights

    \b
    Examples:
      sounding convert nano nano.gguf --to gguf
      sounding convert V4-Flash V4-Flash-fp8 --to fp8
      sounding convert V4-Flash V4-Flash-hf --to transformers --dtype bfloat16

    \b
    Keys of the JSON:
      target, exact       the format; whether every value is unchanged
      rows                [{component, source, target, num_tensors, num_exact, num_values,
                          saturated, underflowed, max_abs_error, relative_rms}]
      notes               further remarks, as sentences
    """
    from sounding.weights.gguf import convert_to_gguf
    from sounding.weights.quantize import convert as convert_checkpoint

    checkpoint = open_checkpoint(str(source))
    with progress_bar(DownloadColumn()) as progress:
        task = progress.add_task("converting", total=checkpoint.num_bytes)
        done = partial(progress.advance, task)
        if target == "gguf":
            report = convert_to_gguf(checkpoint, destination, overwrite=force, on_progress=done)
        else:
            report = convert_checkpoint(
                checkpoint,
                destination,
                target,
                plain=dtype,
                overwrite=force,
                on_progress=done,
            )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print_report(destination, report)


def _print_report(destination: Path, report: "Report") -> None:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("component", "change"):
        table.add_column(heading, no_wrap=True)
    for heading in ("exact", "rel. rms", "max abs", "cut off", "to zero"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        if row.source == row.target:
            continue
        table.add_row(
            row.component,
            f"{row.source} to {row.target}",
            f"{row.num_exact:,}/{row.num_tensors:,}",
            f"{row.relative_rms:.3g}",
            f"{row.max_abs_error:.3g}",
            f"{row.saturated:,}",
            f"{row.underflowed:,}",
        )
    copied = sum(row.num_tensors for row in report.rows if row.source == row.target)
    if table.rows:
        Console().print(table)
    click.echo(f"{copied:,} tensors already had the format and were copied")
    verdict = "exact: every value is unchanged" if report.exact else "not exact"
    click.echo(f"{destination}: {verdict}")
    for note in report.notes:
        click.echo(f"note: {note}")
