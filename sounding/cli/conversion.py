"""`convert`: convert a checkpoint to another format."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich import box
from rich.console import Console
from rich.progress import DownloadColumn
from rich.table import Table

from sounding.loading import open_checkpoint, weights_digest
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
@click.option(
    "--adapter",
    type=click.Path(exists=True, path_type=Path),
    help="Merge this adapter of `sounding tune` into the weights.",
)
@click.option("--force", is_flag=True, help="Replace DESTINATION if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def convert(
    source: Path,
    destination: Path,
    target: Literal["bf16", "fp8", "fp4", "transformers", "gguf"],
    dtype: Literal["bfloat16", "float32"],
    adapter: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Convert a checkpoint to another format and report the error.

    SOURCE is a folder in the published layout or in that of transformers, in any format.
    DESTINATION is created when it is complete. Formats:

    \b
      fp4           the published format: experts in FP4, other linears in FP8
      fp8           experts and other linears in FP8; exact from fp4
      bf16          not quantized; exact from fp4 and fp8
      transformers  not quantized, in the layout of the transformers library
      gguf          one file for llama.cpp, with tokenizer and prompt template: FP4 experts as
                    MXFP4, other weights as BF16; exact except for float32 weights

    With --adapter the report's errors are those of rounding after the deltas were added: bf16 keeps
    nearly all of them, FP8 and FP4 little of small ones.

    \b
    Examples:
      sounding convert nano nano.gguf --to gguf
      sounding convert V4-Flash V4-Flash-fp8 --to fp8
      sounding convert V4-Flash V4-Flash-hf --to transformers --dtype bfloat16

    \b
    Keys of the JSON:
      target, exact       the format; whether all values are unchanged
      rows                [{component, source, target, num_tensors, num_exact, num_values,
                          saturated, underflowed, max_abs_error, relative_rms}]
      notes               further notes, as sentences
    """
    from sounding.weights.gguf import convert_to_gguf
    from sounding.weights.quantize import convert as convert_checkpoint

    checkpoint = open_checkpoint(str(source))
    merged = None
    if adapter is not None:
        from sounding.weights.adapters import read_adapter, require_base

        merged = read_adapter(adapter, checkpoint.config)
        if merged.base:
            require_base(merged, weights_digest(checkpoint.folder), str(adapter))
    with progress_bar(DownloadColumn()) as progress:
        task = progress.add_task("converting", total=checkpoint.num_bytes)
        done = partial(progress.advance, task)
        if target == "gguf":
            if merged is not None:
                raise ValueError(
                    "--adapter does not go with --to gguf: merge it with --to bf16 first, and "
                    "convert the result"
                )
            report = convert_to_gguf(checkpoint, destination, overwrite=force, on_progress=done)
        else:
            report = convert_checkpoint(
                checkpoint,
                destination,
                target,
                plain=dtype,
                adapter=merged,
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
    for heading in ("exact", "rel. rms", "max abs", "saturated", "to zero"):
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
    click.echo(f"{copied:,} tensors are in this format already and were copied")
    verdict = "exact: all values are unchanged" if report.exact else "not exact"
    click.echo(f"{destination}: {verdict}")
    for note in report.notes:
        click.echo(f"note: {note}")


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--model",
    "base",
    help="Model that the drafter was trained for.  [default: the shipped model]",
)
def drafter(source: Path, destination: Path, base: str | None) -> None:
    """Write a trained DSpark drafter as a file of its own.

    SOURCE is a checkpoint with a DSpark drafter, or the folder of a run that has trained one;
    DESTINATION becomes a folder with config.json and drafter.safetensors. The drafter keeps the
    format it has in SOURCE; `convert --to bf16` first makes it smaller. The network in SOURCE must
    be that of --model, in whatever format. Then --drafter DESTINATION runs the model with it, and
    so does the name `drafter` in the model's own folder.

    \b
    Examples:
      sounding convert runs/nano-drafter/checkpoints/step-00001600/model trained --to bf16
      sounding drafter trained nano-drafter
      sounding serve --drafter nano-drafter
    """
    from sounding.weights.drafter import open_drafter, write_drafter

    write_drafter(open_checkpoint(str(source)), open_checkpoint(base), destination)
    written = open_drafter(destination)
    assert written.config.dspark is not None
    click.echo(
        f"{written.path}: {written.path.stat().st_size:,} bytes, "
        f"{written.config.num_dspark_blocks} blocks, "
        f"{written.config.dspark.block_size} tokens at once, for weights {written.base[:12]}"
    )
