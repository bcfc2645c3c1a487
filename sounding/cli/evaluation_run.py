"""`eval run`: evaluate the saved models of a training run."""

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from sounding.cli.completion import open_model
from sounding.cli.evaluation_options import PLAIN_BOX, sandbox_options, warn
from sounding.loading import how_to_install

if TYPE_CHECKING:
    from sounding.evaluation.training_curve import TrainingCurve


@click.command("run")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--infilling",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Problems of `eval infilling`.  [default: none, and no programs are run]",
)
@click.option(
    "--documents", default=40, show_default=True, help="Documents of PATH for bits per byte."
)
@click.option("--lines", default=300, show_default=True, help="Lines of PATH to fill in.")
@click.option("--problems", type=int, help="Number of infilling problems.  [default: all]")
@click.option(
    "--context-tokens", default=1024, show_default=True, help="Token limit of prompt and answer."
)
@click.option(
    "--width", default=16, show_default=True, help="Sequences generated at the same time."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the results and the plot.  [default: FOLDER/evaluations]",
)
@sandbox_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def run(
    folder: Path,
    path: Path,
    infilling: Path | None,
    documents: int,
    lines: int,
    problems: int | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate every saved model of a run, by the number of training tokens.

    FOLDER is the folder of a run; its milestones (`log.milestone_every`) and checkpoints are
    evaluated. PATH is held-out text, as for `eval bpb` and `eval lines`; `copy` and `best_copy` are
    the baselines of `eval lines`. Models with results are skipped, so the same command adds the new
    ones while training continues. With Matplotlib, the table is also drawn as growth.png.
    """
    from sounding.evaluation.eval_options import EvalOptions
    from sounding.evaluation.measuring import read_texts
    from sounding.evaluation.training_curve import TrainingCurve
    from sounding.tasks.code import read_problems
    from sounding.train.saved_models import saved_models

    found = saved_models(folder)
    if not found:
        raise ValueError(
            f"{folder} has no saved model; give the folder of a run that has a checkpoint"
        )
    results = out or folder / "evaluations"
    results.mkdir(parents=True, exist_ok=True)
    curve = TrainingCurve(
        results,
        read_texts(path, (".py",), warn),
        None if infilling is None else read_problems(infilling, infilling=True),
        EvalOptions(limit=problems, **options),
        documents=documents,
        lines=lines,
    )
    interrupt = None
    for step, tokens, model in found:
        click.echo(f"step {step:,}", err=True)
        interrupt = curve.add(step, tokens, open_model(str(model)))
        if interrupt is not None:
            break
    _draw(curve, results / "growth.png")
    if as_json:
        answer = {"evaluation": "run", "settings": curve.settings(), "rows": curve.rows()}
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(curve.rows(), curve.settings())
    if interrupt is not None:
        raise interrupt


def _draw(curve: "TrainingCurve", path: Path) -> None:
    from sounding.evaluation.training_curve import draw

    if not curve.points:
        return
    if importlib.util.find_spec("matplotlib") is None:
        warn(f"{path} is not drawn: drawing requires {how_to_install('matplotlib')}")
        return
    draw(curve.points, curve.copying, path)


def _show(rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    from sounding.evaluation.training_curve import MEASURES

    click.echo("  ".join(f"{name}={value}" for name, value in settings.items()))
    table = Table("", "tokens", *MEASURES.values(), box=PLAIN_BOX)
    for row in rows:
        tokens = f"{row['tokens']:,}" if "tokens" in row else ""
        table.add_row(row["name"], tokens, *(_interval(row.get(name)) for name in MEASURES))
    Console(width=120).print(table)


def _interval(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate['value']:.4f} ({estimate['low']:.4f} to {estimate['high']:.4f})"
