"""`train` and `plot`: run a training, watch it, draw what it measured."""

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from sounding.train.metrics import Row
    from sounding.train.run_config import RunConfig

_FOLDER = click.Path(file_okay=False, path_type=Path)
_RUNS = Path("runs")


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change one field.")
@click.option("--out", type=_FOLDER, help="Folder of the run.  [default: runs/RUN]")
@click.option(
    "--from",
    "model",
    type=_FOLDER,
    help="Begin with the weights of this model, or the weights and moments of this checkpoint "
    "of a run, at step 0; sets train.initial_weights.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ... or auto.")
@click.option("--change", is_flag=True, help="Go on with a saved run under other settings.")
@click.option("--print", "only_print", is_flag=True, help="Print the resolved run and stop.")
def train(
    run: str,
    settings: tuple[str, ...],
    out: Path | None,
    model: Path | None,
    device: str,
    change: bool,
    only_print: bool,
) -> None:
    """Train the named RUN, or go on where it was stopped.

    Everything is kept in the run's folder: settings, metrics, checkpoints. Ctrl-C saves and stops;
    the same command goes on. Progress goes to stderr, the resolved settings to stdout.

    Several processes share a run when torchrun starts them:
    `torchrun --nproc-per-node 2 -m sounding train RUN`.
    """
    from sounding.train import runs

    if model is not None:
        settings = (*settings, f"train.initial_weights={model.resolve()}")
    config = runs.change(runs.named_run(run), settings)
    click.echo(json.dumps(config.to_dict(), indent=2))
    if only_print:
        return
    import torch

    from sounding.train.allocator import keep_freed_memory
    from sounding.train.numerics import warn_of_slow_products
    from sounding.train.parallel import processes
    from sounding.train.source import files_beside, open_held_out, open_source
    from sounding.train.trainer import Trainer

    keep_freed_memory()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    where = torch.device(device)
    warn_of_slow_products(
        {"train.dtype": config.train.dtype, "optimizer.muon_dtype": config.optimizer.muon_dtype},
        where,
    )
    bar = _Bar(console, config)
    folder = out or _RUNS / config.name
    with processes(where) as group, bar.progress if group.is_main else nullcontext():
        if group.world > 1 and where.type == "cuda":
            where = torch.device("cuda", torch.cuda.current_device())
        trainer = Trainer(
            config,
            folder,
            open_source(config, group.rank, group.world),
            device=where,
            held_out=open_held_out(config),
            report=bar.show,
            beside=files_beside(config, folder),
            group=group,
            allow_change=change,
        )
        bar.start_at(trainer.step)
        finished = trainer.train()
    if not group.is_main:
        return
    verb = "finished" if finished else "stopped, the same command goes on"
    console.print(f"{verb} at step {trainer.step:,} of {config.train.steps:,}: {trainer.folder}")


class _Bar:
    """How far the run is, its loss, its speed and the time left, on one line."""

    def __init__(self, console: Console, run: "RunConfig") -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[measured]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self.progress.add_task(run.name, total=run.train.steps, measured="")
        self._bits = ""

    def show(self, row: "Row") -> None:
        """Take in one row of metrics."""
        if "bits_per_byte" in row:
            self._bits = f", held out {row['bits_per_byte']:.3f} bits per byte"
        elif "tokens_per_second" in row:
            loss = f"loss {row['loss']:.3f}" if "loss" in row else f"KL {row['index_loss']:.3f}"
            measured = f"{loss}{self._bits}, {row['tokens_per_second']:,.0f} tokens/s"
            self.progress.update(self._task, completed=row["step"], measured=measured)

    def start_at(self, step: int) -> None:
        """Count from a resumed step, so that the time left is judged by this sitting alone."""
        self.progress.reset(self._task, completed=step, start=True)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=_FOLDER, help="Where the pictures go.  [default: FOLDER/plots]")
def plot(folder: Path, out: Path | None) -> None:
    """Draw loss, expert load and gradient norm of a run as PNG files.

    FOLDER is that of the run.
    """
    from sounding.train.plots import draw

    for path in draw(folder, out or folder / "plots"):
        click.echo(path)
