"""`train` and `plot`: run a training and plot its metrics."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sounding.train.run_config import RunConfig

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Set a field; can be given repeatedly.",
)
@click.option("--out", type=_FOLDER, help="Folder of a new run.  [default: runs/NAME]")
@click.option(
    "--from",
    "model",
    type=_FOLDER,
    help="Start from the weights of a model, or from the weights and optimizer moments of a run's "
    "checkpoint, instead of random weights; sets train.initial_weights.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ... or auto.")
@click.option("--change", is_flag=True, help="Change the settings of a saved run from here on.")
@click.option("--print", "only_print", is_flag=True, help="Print the resolved settings and exit.")
def train(
    run: str,
    settings: tuple[str, ...],
    out: Path | None,
    model: Path | None,
    device: str,
    change: bool,
    only_print: bool,
) -> None:
    """Train a model by the recipe RUN, or resume the run in the folder RUN.

    \b
    Recipes:
      copying   repeat random sequences; needs no data, minutes on a CPU
      nano      the shipped code model, from a dataset; about ten hours on two cores
      repeats   train a nano to find repeated tokens, from a dataset; minutes

    \b
    From text to completions (`finetune` trains the shipped model on your code):
      sounding data build corpus --source my-project
      sounding data vocabulary corpus --vocab-size 8192 --out tokenizer.json
      sounding data tokenize corpus --tokenizer tokenizer.json --out tokens
      sounding train nano --set data.path=tokens --set train.steps=300
      sounding complete FILE:LINE --model runs/nano

    The folder of a run holds its settings, metrics and checkpoints. Ctrl-C saves and stops; `train
    RUN` resumes from the last checkpoint with the saved settings. Progress goes to stderr, the
    resolved settings to stdout. Setting train.steps scales the schedule of a new run; `--print`
    shows it.

    Start several processes for one run with torchrun:
    `torchrun --nproc-per-node 2 -m sounding train RUN`. They take batches of their own, unless
    parallel.expert or parallel.context has some of them share experts or sequences.
    """
    from sounding.train.resolve import resolve_run

    if model is not None:
        settings = (*settings, f"train.initial_weights={model.resolve()}")
    resolved = resolve_run(run, settings, out)
    for note in resolved.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps(resolved.config.to_dict(), indent=2))
    if not only_print:
        run_training(resolved.config, resolved.folder, device, allow_change=change)


def run_training(
    config: "RunConfig",
    folder: Path,
    device: str,
    *,
    allow_change: bool = False,
    measure_first: bool = False,
    advise: bool = True,
) -> bool:
    """Train a run until it is finished or interrupted, showing progress on stderr.

    `measure_first` validates a new run before its first step; `advise` prints the next commands.
    Returns whether the run is finished.
    """
    import torch

    from sounding.cli.train_progress import train_progress
    from sounding.parallel.group import processes
    from sounding.train.allocator import keep_freed_memory
    from sounding.train.drafter import DrafterObjective
    from sounding.train.numerics import warn_of_slow_products
    from sounding.train.source import files_beside, open_held_out, open_source
    from sounding.train.supervised import Supervised
    from sounding.train.trainer import Trainer

    keep_freed_memory()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    dtypes = {
        "train.dtype": config.train.dtype,
        "optimizer.muon_dtype": config.optimizer.muon_dtype,
    }
    shared = config.parallel
    with (
        processes(where, data=shared.data, expert=shared.expert, context=shared.context) as group,
        train_progress(config, shown=group.is_main) as progress,
    ):
        warn_of_slow_products(dtypes, where)
        if group.world > 1 and where.type == "cuda":
            where = torch.device("cuda", torch.cuda.current_device())
        # A network with a DSpark drafter stays as it is: the drafter alone is trained.
        held_out = open_held_out(config)
        objective = (
            Supervised(config, held_out, group)
            if config.model.dspark is None
            else DrafterObjective(config, held_out, group)
        )
        trainer = Trainer(
            config,
            folder,
            open_source(config, group.batch_rank, group.batch_world),
            objective,
            device=where,
            report=progress.show,
            beside=files_beside(config, folder),
            group=group,
            allow_change=allow_change,
        )
        if measure_first and trainer.step == 0:
            trainer.validate()
        progress.start_at(trainer.step)
        finished = trainer.train()
    if group.is_main:
        verb = "finished" if finished else "stopped"
        click.echo(f"{verb} at step {trainer.step:,} of {config.train.steps:,}: {folder}", err=True)
    if group.is_main and advise:
        _advise(folder, finished)
    return finished


def _advise(folder: Path, finished: bool) -> None:
    if not finished:
        click.echo(f"resume:  sounding train {folder}", err=True)
    elif any(folder.glob("checkpoints/step-*/model/tokenizer.json")):
        click.echo(f"try it:  sounding complete FILE:LINE --model {folder}", err=True)
    click.echo(f"plot it:  sounding plot {folder}", err=True)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=_FOLDER, help="Folder of the plots.  [default: FOLDER/plots]")
def plot(folder: Path, out: Path | None) -> None:
    """Plot loss, expert load and gradient norm of a run as PNG files.

    FOLDER is the folder of a run. The files are loss.png, expert_load.png and gradient_norm.png.

    \b
    Example:
      sounding plot runs/nano
    """
    from sounding.train.plots import draw

    for path in draw(folder, out or folder / "plots"):
        click.echo(path)
