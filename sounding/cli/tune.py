"""`tune` and `finetune`: from a folder of code to an adapter, or a model, that has read it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sounding.loading import find_model, open_checkpoint, weights_digest

if TYPE_CHECKING:
    from sounding.posttrain.tune_adapter import AdapterSettings
    from sounding.posttrain.tune_data import TuneData
    from sounding.train.run_config import RunConfig
    from sounding.weights.adapters import Adapter

_FOLDER = click.Path(file_okay=False, path_type=Path)
_EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)
HOME, ADAPTER, FULL = ".sounding", "adapter", "full"
_TRAINING, _LEARNED, _REPORT = "tune", "learned.json", "report.json"  # in `HOME`
_DATA, _MODEL = "data", "model"  # in the folder of a training of all weights
_RANK, _ALPHA = 16, 32.0
_LEAST_SHARE = 0.1  # of the time, for however small a change

_model_option = click.option("--model", help="Model to tune.  [default: the shipped one]")
_suffix_option = click.option(
    "--suffix", "suffixes", multiple=True, default=(".py",), show_default=True
)


@click.command()
@click.argument("folder", metavar="PATH", type=_EXISTING)
@_model_option
@click.option(
    "--minutes",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Time to train at most, about.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps to take at most.")
@click.option(
    "--full",
    is_flag=True,
    help="Train all weights and make a model of its own, not an adapter beside the model.",
)
@click.option(
    "--since",
    metavar="COMMIT",
    help="Learn the code as it was in this commit, and measure on lines that came later.",
)
@click.option(
    "--rank",
    type=click.IntRange(1, 256),
    help=f"Of the adapter.  [default: {_RANK}, or that of the one to go on from]",
)
@_suffix_option
@click.option("--out", type=_FOLDER, help=f"Where to write.  [default: PATH/{HOME}]")
@click.option("--anew", is_flag=True, help="Forget what an earlier call has learned or begun.")
@click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="End with a table of what the adapter changes.",
)
def tune(
    folder: Path,
    model: str | None,
    minutes: float,
    steps: int | None,
    full: bool,
    since: str | None,
    rank: int | None,
    suffixes: tuple[str, ...],
    out: Path | None,
    anew: bool,
    measure: bool,
) -> None:
    """Learn the code in a folder or git repository: an adapter of a few MB beside a model.

    Files that git ignores and files with credentials are left out, every tenth is held out, and
    training ends when the held-out ones are predicted worse. Nothing leaves this machine, but the
    adapter holds pieces of the code it saw: give it to those who may read that code. It lies in
    PATH/.sounding/adapter, where the language server finds it, and git ignores it.

    Ctrl-C saves and stops; the same command goes on. After a change of the code it goes on from
    the adapter, in a time that is in proportion to what is new.

    \b
    Examples:
      sounding tune .
      sounding serve --adapter mine=./.sounding/adapter     and ask for the model nano:mine
      sounding tune . --since v1.0 --out /tmp/trial
    """
    if full:
        place = out or folder / HOME / FULL
        _ignore(folder / HOME if out is None else out)
        _tune_full(folder, model, minutes, steps, suffixes, place, since)
        return
    home = out or folder / HOME
    _ignore(home)
    base = find_model(model)
    before = _Before(home, base, anew=anew)
    data = _prepare(folder, base, home / _TRAINING, suffixes, since=since, learned=before.learned)
    if before.adapter is not None and not data.fresh_share:
        click.echo(f"nothing is new since {home / ADAPTER} was made; --anew begins anew", err=True)
        return
    run, settings = _settings(folder, base, data, minutes, steps, rank, before)
    if not _train(base, before, run, settings, home):
        return
    _finish(folder, base, data, home, since=since, suffixes=suffixes, measure=measure)


class _Before:
    """What earlier calls have left in a folder."""

    def __init__(self, home: Path, base: Path, *, anew: bool) -> None:
        from sounding.posttrain.tune_adapter import STATE_NAME
        from sounding.posttrain.tune_data import read_learned
        from sounding.weights.adapters import ADAPTER_NAME, read_adapter, require_base

        self.digest = weights_digest(base)
        self.adapter: Adapter | None = None
        self.learned: list[str] = []
        if anew:
            (home / _TRAINING / STATE_NAME).unlink(missing_ok=True)
            return
        file = home / ADAPTER / ADAPTER_NAME
        self.learned = read_learned(home / _LEARNED)
        if self.learned and file.is_file():  # else it is what an interrupted call has so far
            self.adapter = read_adapter(file, open_checkpoint(base).config)
            require_base(self.adapter, self.digest, str(file))

    @property
    def rank(self) -> int | None:
        """Of the adapter to go on from."""
        if self.adapter is None:
            return None
        return next(iter(self.adapter.deltas.values())).rank


def _ignore(home: Path) -> None:
    """An ignore file of its own: adapters hold pieces of the code."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / ".gitignore").exists():
        (home / ".gitignore").write_text("*\n", encoding="utf-8")


def _prepare(
    folder: Path,
    model: Path,
    out: Path,
    suffixes: tuple[str, ...],
    *,
    since: str | None,
    learned: list[str],
) -> "TuneData":
    from rich.progress import MofNCompleteColumn

    from sounding.posttrain.tune_data import prepare
    from sounding.progress import progress_bar

    with progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task("starting", total=None)
        data = prepare(
            folder,
            model,
            out,
            since=since,
            suffixes=suffixes,
            learned=learned,
            progress=lambda what, done, total: progress.update(
                task, description=what, completed=done, total=total
            ),
        )
    held = len(data.held_out_texts)
    click.echo(
        f"{folder}: {data.documents:,} files, {held} of them held out; {data.tokens:,} tokens to "
        "train on",
        err=True,
    )
    return data


def _settings(
    folder: Path,
    base: Path,
    data: "TuneData",
    minutes: float,
    steps: int | None,
    rank: int | None,
    before: _Before,
) -> "tuple[RunConfig, AdapterSettings]":
    from sounding.posttrain.tune_adapter import AdapterSettings
    from sounding.posttrain.tune_run import tune_run, useful_steps

    # The number of steps is no part of what is resumed: it is the settings' that counts.
    run = tune_run(folder.resolve().name, base, data, steps=1000)
    share = 1.0 if before.adapter is None else max(_LEAST_SHARE, data.fresh_share)
    most = useful_steps(run, data) if steps is None else steps
    rank = rank or before.rank or _RANK
    alpha = _ALPHA if before.adapter is None else before.adapter.factor * rank
    settings = AdapterSettings(
        rank=rank, alpha=alpha, seconds=60 * minutes * share, most_steps=max(1, round(most * share))
    )
    return run, settings


def _train(
    base: Path, before: _Before, run: "RunConfig", settings: "AdapterSettings", home: Path
) -> bool:
    """Train with a bar; returns whether it is finished."""
    from rich.progress import TextColumn

    from sounding.posttrain.tune_adapter import AdapterTraining
    from sounding.progress import progress_bar
    from sounding.train.allocator import keep_freed_memory

    keep_freed_memory()
    with progress_bar(TextColumn("{task.percentage:.0f} %")) as bar:
        task = bar.add_task("loading", total=1.0)

        def show(row: dict[str, Any]) -> None:
            if "bits_per_byte" in row:
                bits = row["bits_per_byte"]
                bar.console.print(f"step {row['step']:,}: held-out files {bits:.3f} bits per byte")
            else:
                words = f"step {row['step']:,}, loss {row['loss']:.2f}"
                bar.update(task, description=words, completed=training.done)

        training = AdapterTraining(
            open_checkpoint(base),
            before.digest,
            run,
            settings,
            state=home / _TRAINING,
            out=home / ADAPTER,
            begin=before.adapter,
            report=show,
        )
        if training.progress.step:
            bar.console.print(f"going on at step {training.progress.step:,}")
        finished = training.train()
    if not finished:
        click.echo(
            f"stopped at step {training.progress.step:,}; the same command goes on", err=True
        )
    return finished


def _finish(
    folder: Path,
    base: Path,
    data: "TuneData",
    home: Path,
    *,
    since: str | None,
    suffixes: tuple[str, ...],
    measure: bool,
) -> None:
    """Draw, measure, keep what was learned, and say how to use it."""
    from sounding.cli.tune_report import measure_change, print_change
    from sounding.files import write_file
    from sounding.posttrain.tune_adapter import STATE_NAME
    from sounding.posttrain.tune_data import write_learned
    from sounding.train.plots import draw
    from sounding.weights.adapters import ADAPTER_NAME

    draw(home / _TRAINING, home)
    if not (home / ADAPTER / ADAPTER_NAME).is_file():
        (home / _TRAINING / STATE_NAME).unlink()
        click.echo(
            "training did not help on the held-out files, so there is no adapter; see "
            f"{home / 'loss.png'}",
            err=True,
        )
        return
    if measure:
        rows = measure_change(folder, base, data, home / ADAPTER, since=since, suffixes=suffixes)
        print_change(rows)
        write_file(home / _REPORT, json.dumps(rows, indent=1).encode())
    write_learned(home / _LEARNED, data.learned)
    (home / _TRAINING / STATE_NAME).unlink()
    size = (home / ADAPTER / ADAPTER_NAME).stat().st_size / 1e6
    name = folder.resolve().name
    click.echo(
        f"{home / ADAPTER}: {size:.1f} MB; it holds pieces of the code it has seen", err=True
    )
    click.echo(f"serve it:  sounding serve --adapter {name}={home / ADAPTER}", err=True)
    click.echo("editors:   `sounding language-server` finds it in its workspace", err=True)


# --------------------------------------------------------------------------------------------------
# All weights


@click.command()
@click.argument("folder", type=_EXISTING)
@_model_option
@click.option("--minutes", default=10.0, show_default=True, help="Time to train, about.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps to take, instead of --minutes.")
@_suffix_option
@click.option("--out", type=_FOLDER, help="Folder of the result.  [default: runs/NAME of FOLDER]")
def finetune(
    folder: Path,
    model: str | None,
    minutes: float,
    steps: int | None,
    suffixes: tuple[str, ...],
    out: Path | None,
) -> None:
    """Train all weights of a model on your code: the older name of `tune --full`.

    The result is OUT/model. Ctrl-C saves and stops; the same command goes on.

    \b
    Example:
      sounding finetune my-project
      sounding complete my-project/main.py:12 --model runs/my-project/model
    """
    place = out or Path("runs") / folder.resolve().name
    _tune_full(folder, model, minutes, steps, suffixes, place, None)


def _tune_full(
    folder: Path,
    model: str | None,
    minutes: float,
    steps: int | None,
    suffixes: tuple[str, ...],
    place: Path,
    since: str | None,
) -> None:
    from sounding.cli.train import run_training

    if minutes <= 0:
        raise ValueError(f"--minutes = {minutes} must be above 0")
    run = _begun(place) or _new_run(
        folder, find_model(model), place, minutes, steps, suffixes, since
    )
    if run_training(run, place, "cpu", measure_first=True, advise=False):
        _finish_full(place)


def _begun(place: Path) -> "RunConfig | None":
    """The run over all weights that was begun in a folder, if any."""
    from sounding.train.resolve import RUN_NAME, read_run

    if not (place / RUN_NAME).is_file():
        return None
    run = read_run(place)
    own = (place / _DATA).resolve()
    if not run.data.mixture or own not in Path(run.data.mixture[0].path).parents:
        raise ValueError(
            f"{place} holds a run of {run.name!r} that `tune` did not make; choose another "
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
    since: str | None,
) -> "RunConfig":
    from sounding.posttrain.tune_run import affordable_steps, tune_run

    data = _prepare(folder, model, place / _DATA, suffixes, since=since, learned=[])
    name = folder.resolve().name
    if steps is None:
        click.echo("measuring how long a step takes here", err=True)
        trial = tune_run(name, model, data, steps=2)
        steps, seconds = affordable_steps(trial, data, 60 * minutes)
        few = "; fewer would learn nothing" if seconds > 60 * minutes else ""
        click.echo(f"{steps} steps, about {seconds / 60:.1f} minutes{few}", err=True)
    return tune_run(name, model, data, steps=steps)


def _finish_full(place: Path) -> None:
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
