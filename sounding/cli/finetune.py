"""`finetune`: from a folder of code to a model that has read it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sounding.loading import find_model

if TYPE_CHECKING:
    from sounding.train.run_config import RunConfig

_FOLDER = click.Path(file_okay=False, path_type=Path)
_DATA, _MODEL = "data", "model"  # in the folder of the result


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", help="Model to train further.  [default: the shipped one]")
@click.option("--minutes", default=10.0, show_default=True, help="Time to train, about.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps to take, instead of --minutes.")
@click.option("--suffix", "suffixes", multiple=True, default=(".py",), show_default=True)
@click.option("--out", type=_FOLDER, help="Folder of the result.  [default: runs/NAME of FOLDER]")
def finetune(
    folder: Path,
    model: str | None,
    minutes: float,
    steps: int | None,
    suffixes: tuple[str, ...],
    out: Path | None,
) -> None:
    """Train a model further on your code, and say how to try it.

    The code in FOLDER (of a git working tree, the files that git knows) is filtered, tokenized and
    trained on; every tenth document is held out, and shows what was gained. Nothing leaves this
    machine. A small model learns names, idioms and style of a project, not how it works.

    The result is OUT/model. Ctrl-C saves and stops; the same command goes on.

    \b
    Example:
      sounding finetune my-project
      sounding complete my-project/main.py:12 --model runs/my-project/model
    """
    from sounding.cli.train import run_training

    place = out or Path("runs") / folder.resolve().name
    run = _resumed(place) or _new_run(folder, find_model(model), place, minutes, steps, suffixes)
    if run_training(run, place, "cpu", measure_first=True, advise=False):
        _finish(place)


def _resumed(place: Path) -> "RunConfig | None":
    """The run that was begun in a folder, if any."""
    from sounding.train.resolve import RUN_NAME, read_run

    if not (place / RUN_NAME).is_file():
        return None
    run = read_run(place)
    if run.data.path is None or Path(run.data.path).parent != (place / _DATA).resolve():
        raise ValueError(
            f"{place} holds a run of {run.name!r} that `finetune` did not make; choose another "
            "folder (--out)"
        )
    click.echo(f"resuming the run in {place}; remove that folder to begin anew", err=True)
    return run


def _new_run(
    folder: Path,
    model: Path,
    place: Path,
    minutes: float,
    steps: int | None,
    suffixes: tuple[str, ...],
) -> "RunConfig":
    from rich.progress import MofNCompleteColumn

    from sounding.progress import progress_bar
    from sounding.train.finetune import affordable_steps, finetune_run, prepare_data

    if minutes <= 0:
        raise ValueError(f"--minutes = {minutes} must be above 0")
    with progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task("starting", total=None)
        data = prepare_data(
            folder,
            model,
            place / _DATA,
            suffixes=suffixes,
            progress=lambda what, done, total: progress.update(
                task, description=what, completed=done, total=total
            ),
        )
    click.echo(f"{folder}: {data.documents:,} files, {data.tokens:,} tokens to train on", err=True)
    name = folder.resolve().name
    if steps is None:
        click.echo("measuring how long a step takes here", err=True)
        trial = finetune_run(name, model, data, steps=2)
        steps = affordable_steps(trial, data, 60 * minutes)
    return finetune_run(name, model, data, steps=steps)


def _finish(place: Path) -> None:
    """Write the model as it is deployed, and say what was gained and how to try it."""
    from sounding.train.metrics import METRICS_NAME, read_metrics
    from sounding.weights.checkpoint import Checkpoint
    from sounding.weights.quantize import convert

    convert(Checkpoint(find_model(place)), place / _MODEL, "fp4", overwrite=True)
    rows = [row for row in read_metrics(place / METRICS_NAME) if "bits_per_byte" in row]
    if rows:
        before, after = (row["bits_per_byte"] for row in (rows[0], rows[-1]))
        click.echo(f"held-out files: {before:.3f} bits per byte before, {after:.3f} now", err=True)
    else:
        click.echo("too few files to hold any out, so nothing says what was gained", err=True)
    click.echo(f"try it:  sounding complete FILE:LINE --model {place / _MODEL}", err=True)
