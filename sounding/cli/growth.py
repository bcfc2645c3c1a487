"""`eval run`: the models that a training run kept, measured one after the other."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from sounding.cli.completion import open_model
from sounding.cli.evaluation_options import PLAIN_BOX, sandbox_options, warn
from sounding.evaluation import measures
from sounding.evaluation.measuring import Measured, limited, read_texts, sandbox
from sounding.loading import LoadedModel

if TYPE_CHECKING:
    from sounding.evaluation.lines import Item
    from sounding.evaluation.statistics import Estimate
    from sounding.evaluation.training_curve import Point

_COPYISTS = ("copy", "best_copy")
_PER_FILE = 5
_HOW: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "heal": True,
    "copying": False,  # what the network has learned is looked for
    "syntax": True,
}


class _Work:
    """What every model is asked, the same for all of them."""

    def __init__(
        self,
        path: Path,
        infilling: Path | None,
        counts: tuple[int, int, int | None],
        seed: int,
        context_tokens: int,
        width: int,
        programs: dict[str, Any],
    ) -> None:
        from sounding.evaluation.lines import choose_lines
        from sounding.tasks.code import CodeTask, read_problems

        num_documents, num_lines, num_problems = counts
        texts = read_texts(path, (".py",), warn)
        lines = choose_lines(texts, per_file=_PER_FILE, cursor="indent", seed=seed)
        self.documents = limited(texts, num_documents, seed)
        self.lines: list[Item] = limited(lines, num_lines, seed)
        self.task = None
        self.until = "line"
        if infilling is not None:
            problems = read_problems(infilling, infilling=True)
            self.until = measures.natural_end(problems)
            run = sandbox(programs["timeout"], programs["unsafe"])
            self.task = CodeTask(limited(problems, num_problems, seed), run)
        self.seed, self.context_tokens = seed, context_tokens
        self.how = {**_HOW, "width": width, "context_tokens": context_tokens}
        self.programs = programs

    def settings(self) -> dict[str, Any]:
        """What decides the results, but for the models."""
        return {
            "seed": self.seed,
            "documents": len(self.documents),
            "lines": len(self.lines),
            "problems": len(self.task) if self.task else 0,
            "context_tokens": self.context_tokens,
            **_HOW,
        }

    def measure(self, model: LoadedModel, out: Path, name: str) -> list[Measured]:
        """Everything about one model; an interrupted measurement is the last one."""
        done = [
            measures.measure_bits(
                model,
                self.documents,
                seed=self.seed,
                out=out / f"{name}-bpb.jsonl",
                context_tokens=self.context_tokens,
                stride=None,
                batch_tokens=4096,
                compressors=False,
            )
        ]
        if done[-1].interrupt is None:
            done.append(
                measures.measure_lines(
                    model,
                    self.lines,
                    seed=self.seed,
                    out=out / f"{name}-lines.jsonl",
                    per_file=_PER_FILE,
                    cursor="indent",
                    max_tokens=64,
                    **self.how,
                )
            )
        if self.task is not None and done[-1].interrupt is None:
            done.append(
                measures.measure_programs(
                    "infilling",
                    model,
                    self.task,
                    self.until,
                    samples=1,
                    ks=(1,),
                    notes={},
                    seed=self.seed,
                    out=out / f"{name}-infilling.jsonl",
                    max_tokens=128,
                    **self.programs,
                    **self.how,
                )
            )
        return done


@click.command("run")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--infilling",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Rows of `eval infilling`; without them no programs are run.",
)
@click.option("--documents", default=40, show_default=True, help="Of PATH, for bits per byte.")
@click.option("--lines", default=300, show_default=True, help="Of PATH, to be filled in.")
@click.option("--problems", type=int, help="Of the infilling rows.  [default: all]")
@click.option("--context-tokens", default=1024, show_default=True)
@click.option("--width", default=16, show_default=True, help="Sequences at a time.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of results and the picture.  [default: FOLDER/evaluations]",
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
    context_tokens: int,
    width: int,
    seed: int,
    out: Path | None,
    as_json: bool,
    **programs: Any,
) -> None:
    """What more training brings: every model a run kept, over its training tokens.

    FOLDER is that of the run: its milestones (`log.milestone_every`) and checkpoints are measured.
    PATH is held-out text, as for `eval bpb` and `eval lines`. `copy` and `best_copy` are the
    copyists of `eval lines`. Measured models are not measured again: as training goes on, the same
    command adds the new ones. The table is drawn as growth.png, too.
    """
    from sounding.evaluation import training_curve
    from sounding.train.run_checkpoint import saved_models

    found = saved_models(folder)
    if not found:
        raise ValueError(f"{folder} keeps no model; is it the folder of a run that has saved?")
    results = out or folder / "evaluations"
    results.mkdir(parents=True, exist_ok=True)
    work = _Work(
        path, infilling, (documents, lines, problems), seed, context_tokens, width, programs
    )
    points: list[Point] = []
    copying: dict[str, Estimate] = {}
    interrupt = None
    for step, tokens, model in found:
        click.echo(f"step {step:,}", err=True)
        done = work.measure(open_model(str(model)), results, f"step-{step:08d}")
        interrupt = done[-1].interrupt
        if interrupt is not None:
            break
        metrics = {name: value for each in done for name, value in each.metrics.items()}
        copying = {name: metrics[f"{name}_exact"] for name in _COPYISTS}
        points.append({"step": step, "tokens": tokens, **_chosen(metrics)})
    if points:
        training_curve.draw(points, copying, results / "growth.png")
    rows = training_curve.rows_of(points, copying)
    if as_json:
        answer = {"evaluation": "run", "settings": work.settings(), "rows": rows}
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(rows, work.settings())
    if interrupt is not None:
        raise interrupt


def _chosen(metrics: "dict[str, Estimate]") -> "dict[str, Estimate]":
    names = {
        "bits_per_byte": "bits_per_byte",
        "model_exact": "line_exact",
        "pass@1": "infilling_pass@1",
    }
    return {ours: metrics[name] for name, ours in names.items() if name in metrics}


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
