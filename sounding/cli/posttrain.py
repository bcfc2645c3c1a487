"""`posttrain`: fine-tuning on conversations, GRPO, distillation."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sounding.loading import find_model

if TYPE_CHECKING:
    from sounding.config import ModelConfig
    from sounding.train.run_config import RunConfig
    from sounding.train.trainer import Trainer

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_RESULT = "model"  # in the folder of a run


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """The options that all stages share."""
    options = [
        click.option("--from", "model", help="Model to start from.  [default: the shipped model]"),
        click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE",
                     help="Set a field; can be given repeatedly."),
        click.option("--out", type=_FOLDER, help="Folder of the run.  [default: runs/STAGE]"),
        click.option("--change", is_flag=True,
                     help="Change the settings of a saved run from here on."),
        click.option("--print", "only_print", is_flag=True,
                     help="Print the resolved settings and exit."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _sampled(command: Callable[..., None]) -> Callable[..., None]:
    """The options of stages that sample rollouts."""
    options = [
        click.option("--actors", type=click.IntRange(min=1),
                     help="Sample rollouts in so many processes by Ray.  [default: in this one]"),
        click.option("--ray-address", metavar="ADDRESS",
                     help="With --actors: a running cluster, 'auto' for the one that this machine "
                     "is part of.  [default: a cluster of this machine alone]"),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def posttrain() -> None:
    """Post-train a model: fine-tuning, GRPO, distillation.

    Each command creates a run in a folder, as `train` does. Ctrl-C saves and stops after the
    current step; the same command resumes, also after a crash, with the same unfinished answers.
    The result is OUT/model, in the deployment format.
    """


@posttrain.command()
@click.option("--data", type=_FILE, help="JSONL file of training conversations.")
@click.option("--held-out", type=_FILE, help="JSONL file of validation conversations.")
@click.option("--epochs", type=float, help="Number of epochs, instead of train.steps.")
@_shared
def sft(
    data: Path | None,
    held_out: Path | None,
    epochs: float | None,
    model: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    change: bool,
    only_print: bool,
) -> None:
    """Fine-tune a model on conversations.

    A row of --data has `messages` in the format of /v1/chat/completions, and may have `tools` and
    `thinking` (true, false or an effort). The loss covers the tokens of the assistant: reasoning,
    content, calls, the end of its turn. A message with `"loss": false` is context only.

    \b
    Example:
      sounding posttrain sft --data chats.jsonl --held-out more.jsonl --epochs 2
    """
    from sounding.posttrain.open_runs import open_sft, tokenizer_of
    from sounding.posttrain.run_configs import SftRun, sft_recipe
    from sounding.posttrain.sft import read_samples, steps_of

    place = out or Path("runs") / "sft"
    given = _paths({"conversations.path": data, "conversations.held_out": held_out})
    run = _resolved(SftRun, sft_recipe, place, model, [*given, *settings])
    if epochs is not None:
        if epochs <= 0:
            raise ValueError(f"--epochs = {epochs} must be above 0")
        samples = read_samples(Path(run.conversations.path or ""), run, tokenizer_of(run, place))
        run = _changed(run, [f"train.steps={steps_of(samples, run, epochs)}"], settings)
    _train(run, place, lambda report: open_sft(run, place, report=report, allow_change=change),
           only_print)  # fmt: skip


@posttrain.command()
@click.option(
    "--tasks", type=_FILE, help="JSONL file of tasks: messages, and how answers are graded."
)
@_sampled
@_shared
def grpo(
    tasks: Path | None,
    actors: int | None,
    ray_address: str | None,
    model: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    change: bool,
    only_print: bool,
) -> None:
    """Train a model with rewards for its answers (GRPO).

    GRPO is group relative policy optimisation. In each round the engine samples answers from the
    current weights, and they are graded. A row of --tasks is a conversation up to the answer, with
    the `answer` that scores 1; rows of `data textbook tasks` have a `check` that grades any answer.

    \b
    Example:
      sounding posttrain grpo --tasks traces.jsonl --from runs/sft --set rollouts.group=16
    """
    from sounding.posttrain.open_runs import open_grpo
    from sounding.posttrain.run_configs import GrpoRun, grpo_recipe

    place = out or Path("runs") / "grpo"
    given = _paths({"rollouts.tasks": tasks})
    run = _resolved(GrpoRun, grpo_recipe, place, model, [*given, *settings])
    with _samplers(actors, ray_address) as sampled:
        _train(
            run,
            place,
            lambda report: open_grpo(run, place, report=report, allow_change=change, **sampled),
            only_print,
        )


@posttrain.command()
@click.option(
    "--teacher",
    "teachers",
    nargs=2,
    multiple=True,
    metavar="MODEL PROMPTS",
    help="A teacher, and a JSONL file of conversations that it answers; can be given repeatedly.",
)
@_sampled
@_shared
def distill(
    teachers: tuple[tuple[str, str], ...],
    actors: int | None,
    ray_address: str | None,
    model: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    change: bool,
    only_print: bool,
) -> None:
    """Distill one or more teachers into a model, on its own answers (on-policy distillation).

    The model answers the prompts of each teacher and, at every token of its answers, learns the
    teacher's probabilities of the whole vocabulary. Teachers may be runs or models.

    \b
    Example:
      sounding posttrain distill --from runs/sft --teacher runs/repair repair.jsonl \\
        --teacher runs/trace trace.jsonl
    """
    from sounding.posttrain.open_runs import open_distill
    from sounding.posttrain.run_configs import DistillRun, distill_recipe

    place = out or Path("runs") / "distill"
    rows = [
        {"name": f"{number} {Path(name).name}", "model": str(find_model(name).resolve()),
         "prompts": str(Path(prompts).resolve())}
        for number, (name, prompts) in enumerate(teachers)
    ]  # fmt: skip
    given = [f"distill.teachers={json.dumps(rows)}"] if rows else []
    run = _resolved(DistillRun, distill_recipe, place, model, [*given, *settings])
    with _samplers(actors, ray_address) as sampled:
        _train(
            run,
            place,
            lambda report: open_distill(run, place, report=report, allow_change=change, **sampled),
            only_print,
        )


@posttrain.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=_FOLDER, help="Folder of the plots.  [default: FOLDER/plots]")
def plot(folder: Path, out: Path | None) -> None:
    """Plot rewards, pass rates, lengths, entropy and differences of a run as PNG files."""
    from sounding.posttrain.reward_plots import draw

    for path in draw(folder, out or folder / "plots"):
        click.echo(path)


# --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _samplers(actors: int | None, address: str | None) -> Iterator[dict[str, Any]]:
    """What `open_grpo` and `open_distill` are given where actors sample, while these live.

    Raises ValueError where Ray is missing."""
    if actors is None:
        if address is not None:
            raise ValueError(f"--ray-address {address} needs --actors: how many there are to be")
        yield {}
        return
    from sounding.cluster import require_ray

    require_ray("--actors")
    from sounding.cluster.rollout_actors import rollout_actors

    with rollout_actors(actors, address) as make_sampler:
        yield {"make_sampler": make_sampler}


def _paths(named: dict[str, Path | None]) -> list[str]:
    return [f"{name}={path.resolve()}" for name, path in named.items() if path is not None]


def _resolved(
    kind: Any,
    recipe: "Callable[[ModelConfig], Any]",
    place: Path,
    model: str | None,
    settings: list[str],
) -> Any:
    """The run that a folder holds, or a new one, with `settings` applied."""
    from sounding.train.resolve import RUN_NAME, read_run_as
    from sounding.train.runs import change

    if (place / RUN_NAME).is_file():
        click.echo(f"resuming the run in {place}; delete that folder to start again", err=True)
        return change(read_run_as(kind, place), settings)
    begins = find_model(model).absolute()
    new = recipe(_config_of(begins))
    return _changed(new, [*settings, f"train.initial_weights={begins}"], settings)


def _config_of(model: Path) -> "ModelConfig":
    """The config of a model. For a checkpoint of a run it is that of the run, which has the
    deployment format of the float32 weights."""
    from sounding.train.resolve import RUN_NAME, read_run_model
    from sounding.weights.checkpoint import read_config

    run = model.parent.parent.parent  # RUN/checkpoints/step-N/model
    if (run / RUN_NAME).is_file():
        return read_run_model(run)
    return read_config(model)[1]


def _changed(run: Any, settings: list[str], given: "tuple[str, ...] | list[str]") -> Any:
    """A run with settings. A new number of steps scales the schedule, unless that is given."""
    from sounding.train.resolve import scaled_schedule
    from sounding.train.runs import change

    named = {setting.partition("=")[0].strip() for setting in given}
    scaled = [one for one in scaled_schedule(run, settings) if one.partition("=")[0] not in named]
    return change(run, [*scaled, *settings])


def _train(
    run: "RunConfig",
    place: Path,
    open_run: "Callable[[Callable[[dict[str, Any]], None]], Trainer[Any]]",
    only_print: bool,
) -> None:
    """Train until finished or interrupted; write a finished model in the deployment format."""
    from sounding.cli.posttrain_progress import progress_lines
    from sounding.train.allocator import keep_freed_memory

    click.echo(json.dumps(run.to_dict(), indent=2))
    if only_print:
        return
    keep_freed_memory()
    trainer = open_run(progress_lines(run.train.steps))
    finished = trainer.train()
    if not finished:
        click.echo(f"stopped at step {trainer.step:,} of {run.train.steps:,}: {place}", err=True)
        return
    _write_result(place, "fp4" if run.train.qat else "bf16")
    click.echo(f"finished: {place / _RESULT}", err=True)
    click.echo(f"try it:  sounding chat --model {place / _RESULT}", err=True)


def _write_result(place: Path, target: Any) -> None:
    from sounding.weights.checkpoint import Checkpoint
    from sounding.weights.quantize import convert

    convert(Checkpoint(find_model(place)), place / _RESULT, target, overwrite=True)
