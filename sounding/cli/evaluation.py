"""`eval`: measure a model, with the settings and the uncertainty beside every number."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from sounding.cli.chat_tasks import tasks
from sounding.cli.completion import open_model
from sounding.cli.evaluation_options import (
    common_options,
    report,
    sampling_options,
    sandbox_options,
    syntax_option,
    warn,
)
from sounding.cli.growth import run
from sounding.evaluation import measures
from sounding.evaluation.measuring import collect, limited, read_texts, sandbox

if TYPE_CHECKING:
    from sounding.tasks.code import Problem

_PATH = click.Path(exists=True, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_suffix_option = click.option(
    "--suffix", "suffixes", multiple=True, default=(".py",), show_default=True, help="Of files."
)


def _numbers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    parts = (text or "").replace(",", " ").split()
    if text is not None and not (parts and all(part.isdecimal() and int(part) for part in parts)):
        raise click.BadParameter(f"{text!r} must be numbers such as 1,10")
    return tuple(map(int, parts))


@click.group()
def eval() -> None:  # the builtin is missed by nobody
    """Measure a model: bits per byte, filled lines, passed tests.

    Every command prints its settings, and 95 % intervals. With --out, results are kept in a file
    as they are made: after Ctrl-C or a crash the same command goes on.
    """


eval.add_command(run)
eval.add_command(tasks)


@eval.command()
@click.argument("path", type=_PATH)
@common_options
@_suffix_option
@click.option("--context-tokens", default=1024, show_default=True, help="Of a window, with BOS.")
@click.option("--stride", type=int, help="Between windows.  [default: half of the context]")
@click.option("--batch-tokens", default=4096, show_default=True, help="Read together.")
@click.option("--compressors/--no-compressors", default=True, help="What xz and brotli reach.")
def bpb(
    path: Path,
    model: str | None,
    limit: int | None,
    seed: int,
    out: Path | None,
    as_json: bool,
    suffixes: tuple[str, ...],
    context_tokens: int,
    stride: int | None,
    batch_tokens: int,
    compressors: bool,
) -> None:
    """Bits per byte of a file, a folder's files, or a corpus's held-out split.

    Each document by itself, in overlapping windows; beside it what xz and brotli make of the same
    bytes, as one stream and document by document.
    """
    documents = limited(read_texts(path, suffixes, warn), limit, seed)
    measured = measures.measure_bits(
        open_model(model),
        documents,
        seed=seed,
        out=out,
        context_tokens=context_tokens,
        stride=stride,
        batch_tokens=batch_tokens,
        compressors=compressors,
    )
    report(measured, as_json=as_json)


@eval.command()
@click.argument("path", type=_PATH)
@common_options
@_suffix_option
@sampling_options(64)
@syntax_option
@click.option("--per-file", default=5, show_default=True, help="Lines of each file.")
@click.option(
    "--cursor",
    type=click.Choice(["indent", "inside"]),
    default="indent",
    show_default=True,
    help="Take a line out from behind its indentation, or from somewhere inside of it.",
)
def lines(
    path: Path,
    model: str | None,
    limit: int | None,
    seed: int,
    out: Path | None,
    as_json: bool,
    suffixes: tuple[str, ...],
    per_file: int,
    cursor: Literal["indent", "inside"],
    **how: Any,
) -> None:
    """Single-line infilling of a file, a folder's files, or a corpus's held-out split.

    Shares of exactly written lines and mean edit similarities, of the model and of two copyists:
    `copy` puts the line of the file whose neighbours are most like the gap's, `best_copy` knows
    the answer and puts the most similar line, the most that copying can reach.
    """
    from sounding.evaluation.lines import choose_lines

    texts = read_texts(path, suffixes, warn)
    items = limited(choose_lines(texts, per_file=per_file, cursor=cursor, seed=seed), limit, seed)
    measured = measures.measure_lines(
        open_model(model), items, seed=seed, out=out, per_file=per_file, cursor=cursor, **how
    )
    report(measured, as_json=as_json)


@eval.command()
@click.argument("path", type=_PATH)
@common_options
@_suffix_option
@click.option("--context-tokens", default=4096, show_default=True, help="Read of a document.")
@click.option("--at-least", default=2048, show_default=True, help="Tokens of a document.")
@click.option(
    "-k",
    "sizes",
    callback=_numbers,
    help="Entries picked, such as 16,64.  [default: 16, 32, 64 where fewer, and the model's own]",
)
def mechanisms(
    path: Path,
    model: str | None,
    limit: int | None,
    seed: int,
    out: Path | None,
    as_json: bool,
    suffixes: tuple[str, ...],
    context_tokens: int,
    at_least: int,
    sizes: tuple[int, ...],
) -> None:
    """Accepted drafts, expert load, and what the indexers pick, on long documents.

    `mtp_acceptance` is how often the MTP block's likeliest token after next is the network's own
    likeliest one, given the text. `index_recall@k` is the share of the k entries most attended to
    that the indexers pick, over queries that see more than k; attention is what CSA layers would
    pay if they read all entries. By layer: `covered` is the share of that attention the picked
    entries get, `coverable` the most that k entries can get, `chance` the recall of random picks.
    """
    from sounding.evaluation.mechanisms import long_documents

    if not 1 <= at_least <= context_tokens:
        raise ValueError(
            f"--at-least {at_least} must be from 1 to --context-tokens {context_tokens}"
        )
    texts = read_texts(path, suffixes, warn)
    opened = open_model(model)

    def encode(text: str) -> list[int]:
        return opened.tokenizer.encode(text, named=False)

    long = list(long_documents(texts, encode, at_least=at_least, at_most=context_tokens - 1))
    if not long:
        raise ValueError(f"no document of {path} has {at_least} tokens; lower --at-least")
    measured = measures.measure_mechanisms(
        opened,
        limited(long, limit, seed),
        seed=seed,
        out=out,
        context_tokens=context_tokens,
        at_least=at_least,
        sizes=measures.recall_sizes(opened.network.config, sizes),
    )
    report(measured, as_json=as_json)


@eval.command()
@click.argument("file", type=_FILE)
@common_options
@sampling_options(128)
@syntax_option
@sandbox_options
@click.option(
    "--until",
    type=click.Choice(["line", "block", "end"]),
    help="Where answers end.  [default: line if all canonical solutions are, else end]",
)
def infilling(file: Path, until: str | None, **how: Any) -> None:
    """pass@1 of gaps filled in, by running the tests.

    FILE has JSON rows of task_id, prompt, suffix, canonical_solution, test and entry_point.
    """
    from sounding.tasks.code import read_problems

    problems = read_problems(file, infilling=True)
    until = until or measures.natural_end(problems)
    _evaluate("infilling", problems, until, samples=1, ks=(1,), notes={}, **how)


_samples_option = click.option("--samples", default=1, show_default=True, help="Per problem.")
_k_option = click.option(
    "-k", "ks", default="1", show_default=True, callback=_numbers, help="Of pass@k, such as 1,10."
)


@eval.command()
@click.argument("file", type=_FILE)
@common_options
@sampling_options(256)
@sandbox_options
@_samples_option
@_k_option
def functions(file: Path, samples: int, ks: tuple[int, ...], **how: Any) -> None:
    """pass@k of functions written from signature and docstring.

    FILE has HumanEval's JSON rows: task_id, prompt, canonical_solution, test and entry_point. An
    answer ends with the function. More than one sample needs a --temperature above 0.
    """
    from sounding.tasks.code import read_problems

    problems = read_problems(file, infilling=False)
    _evaluate("functions", problems, "block", samples=samples, ks=ks, notes={}, **how)


def _ids(context: click.Context, option: click.Parameter, text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise click.BadParameter(f"{text!r} must be two ids such as 11-510")
    return range(int(first), int(last) + 1)


_ids_option = click.option(
    "--ids", default="11-510", show_default=True, callback=_ids, help="The test split is 11-510."
)


@eval.command()
@click.argument("file", type=_FILE)
@common_options
@sampling_options(256)
@sandbox_options
@_samples_option
@_k_option
@_ids_option
@click.option("--examples", default=3, show_default=True, help="Tests shown in the docstring.")
def mbpp(
    file: Path, samples: int, ks: tuple[int, ...], ids: range, examples: int, **how: Any
) -> None:
    """pass@k of functions written from MBPP's descriptions.

    FILE has MBPP's JSON rows. Each becomes a signature, taken from its solution, and a docstring
    with the description and some of the tests.
    """
    from sounding.tasks.mbpp import function_problem, read_mbpp

    rows = read_mbpp(file, ids)
    problems = [problem for row in rows if (problem := function_problem(row, examples))]
    notes = {"examples": examples, "rows_without_a_function": len(rows) - len(problems)}
    _evaluate("mbpp", problems, "block", samples=samples, ks=ks, notes=notes, **how)


def _evaluate(
    title: str,
    problems: "Sequence[Problem]",
    until: str,
    *,
    samples: int,
    ks: Sequence[int],
    notes: dict[str, Any],
    model: str | None,
    limit: int | None,
    seed: int,
    out: Path | None,
    as_json: bool,
    timeout: float,
    workers: int,
    unsafe: bool,
    **how: Any,
) -> None:
    from sounding.tasks.code import CodeTask

    if max(ks) > samples:
        raise ValueError(f"pass@{max(ks)} needs at least as many --samples; there are {samples}")
    if samples > 1 and not how["temperature"]:
        raise ValueError(f"{samples} samples at temperature 0 are all the same; set --temperature")
    task = CodeTask(limited(problems, limit, seed), sandbox(timeout, unsafe))
    measured = measures.measure_programs(
        title,
        open_model(model),
        task,
        until,
        samples=samples,
        ks=ks,
        notes=notes,
        seed=seed,
        out=out,
        timeout=timeout,
        workers=workers,
        unsafe=unsafe,
        **how,
    )
    report(measured, as_json=as_json)


@eval.command("make-infilling")
@click.argument("file", type=_FILE)
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@_ids_option
@click.option("--per-problem", default=2, show_default=True, type=click.IntRange(min=1))
@sandbox_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def make_infilling(
    file: Path,
    out: Path,
    ids: range,
    per_problem: int,
    timeout: float,
    workers: int,
    unsafe: bool,
    as_json: bool,
) -> None:
    """Make rows for `eval infilling` from MBPP's solutions.

    One line is taken out of a solution, from behind its indentation to its end: a line inside of a
    function that is a statement of its own, with at least four letters and digits. A solution must
    pass its own tests, and fail them with `pass` in the line's place. Of the lines that are left,
    --per-problem are taken, by a hash of their names; so the same FILE gives the same OUT.
    """
    from sounding.evaluation.results import Results
    from sounding.files import write_file
    from sounding.tasks.mbpp import MBPPRow, fair_problems, read_mbpp

    rows = read_mbpp(file, ids)
    judge = sandbox(timeout, unsafe)
    made: dict[int, list[Problem]] = {}
    reasons: Counter[str] = Counter()

    def try_row(row: MBPPRow) -> "tuple[MBPPRow, list[Problem], str]":
        return row, *fair_problems(row, judge, per_problem)

    def attempts() -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(workers) as pool:
            try:
                for row, problems, reason in pool.map(try_row, rows):
                    made[row.number] = problems
                    if reason:
                        reasons[reason] += 1
                    yield {"id": str(row.number)}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    interrupt = collect(Results(None, {}), "solutions", len(rows), attempts())
    if interrupt is not None:
        raise interrupt
    problems = [problem for number in sorted(made) for problem in made[number]]
    lines = [json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in problems]
    write_file(out, "".join(lines).encode())
    answer = {"rows": len(problems), "problems": len(rows), "left_out": dict(reasons)}
    if as_json:
        click.echo(json.dumps(answer))
    else:
        click.echo(f"wrote {len(problems)} rows from {len(rows)} problems to {out}")
        for reason, count in reasons.most_common():
            click.echo(f"left out {count}: {reason}")
