"""`eval`: evaluate a model, with settings and confidence intervals."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from sounding.cli.completion import open_model
from sounding.cli.evaluation_options import (
    common_options,
    k_option,
    numbers,
    report,
    samples_option,
    sampling_options,
    sandbox_options,
    syntax_option,
    warn,
)
from sounding.cli.evaluation_run import run
from sounding.cli.evaluation_tasks import compare, tasks
from sounding.evaluation import measuring
from sounding.evaluation.eval_options import EvalOptions
from sounding.evaluation.measuring import limited, read_texts, sandbox

if TYPE_CHECKING:
    from sounding.tasks.code import Problem

_PATH = click.Path(exists=True, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_suffix_option = click.option(
    "--suffix",
    "suffixes",
    multiple=True,
    default=(".py",),
    show_default=True,
    help="Suffix of the files to read; can be given repeatedly.",
)


@click.group()
def eval() -> None:  # shadows a builtin, which this module does not use
    """Evaluate a model: bits per byte, infilling, pass@k.

    Every command prints its settings and 95 % confidence intervals. With --out, results are written
    to a file one by one, and the same command resumes after Ctrl-C or a crash.
    """


eval.add_command(run)
eval.add_command(tasks)
eval.add_command(compare)


@eval.command()
@click.argument("path", type=_PATH)
@common_options
@_suffix_option
@click.option(
    "--context-tokens", default=1024, show_default=True, help="Tokens in a window, including BOS."
)
@click.option(
    "--stride",
    type=int,
    help="Tokens between the starts of windows.  [default: half of the context]",
)
@click.option("--batch-tokens", default=4096, show_default=True, help="Tokens in a forward pass.")
@click.option(
    "--compressors/--no-compressors", default=True, help="Also compress with xz and brotli."
)
def bpb(
    path: Path,
    model: str | None,
    as_json: bool,
    suffixes: tuple[str, ...],
    stride: int | None,
    batch_tokens: int,
    compressors: bool,
    **settings: Any,
) -> None:
    """Bits per byte of a file, the files of a folder, or the held-out split of a corpus.

    Each document is scored separately, in overlapping windows. For comparison, xz and brotli
    compress the same bytes, as one stream and document by document.
    """
    options = EvalOptions(**settings)
    documents = limited(read_texts(path, suffixes, warn), options.limit, options.seed)
    measured = measuring.measure_bits(
        open_model(model),
        documents,
        options,
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
@click.option("--per-file", default=5, show_default=True, help="Number of lines per file.")
@click.option(
    "--cursor",
    type=click.Choice(["indent", "inside"]),
    default="indent",
    show_default=True,
    help="Remove a line after its indentation, or from a position inside it.",
)
def lines(
    path: Path,
    model: str | None,
    as_json: bool,
    suffixes: tuple[str, ...],
    per_file: int,
    cursor: Literal["indent", "inside"],
    **settings: Any,
) -> None:
    """Single-line infilling of a file, the files of a folder, or the held-out split of a corpus.

    Exact matches and mean edit similarity of the model and of two baselines that copy a line of the
    file: `copy` takes the line whose neighbours are most similar to those of the gap, `best_copy`
    the line most similar to the answer, which is the upper bound of copying.
    """
    from sounding.evaluation.lines import choose_lines

    options = EvalOptions(**settings)
    texts = read_texts(path, suffixes, warn)
    chosen = choose_lines(texts, per_file=per_file, cursor=cursor, seed=options.seed)
    items = limited(chosen, options.limit, options.seed)
    measured = measuring.measure_lines(
        open_model(model), items, options, per_file=per_file, cursor=cursor
    )
    report(measured, as_json=as_json)


@eval.command()
@click.argument("path", type=_PATH)
@common_options
@_suffix_option
@click.option(
    "--context-tokens",
    default=4096,
    show_default=True,
    help="Maximum number of tokens read from a document.",
)
@click.option(
    "--at-least", default=2048, show_default=True, help="Minimum number of tokens of a document."
)
@click.option(
    "-k",
    "sizes",
    callback=numbers,
    help="Values of k, such as 16,64.  [default: 16, 32, 64 up to the model's k]",
)
def mechanisms(
    path: Path,
    model: str | None,
    as_json: bool,
    suffixes: tuple[str, ...],
    at_least: int,
    sizes: tuple[int, ...],
    **settings: Any,
) -> None:
    """MTP acceptance, expert load and indexer recall on long documents.

    `mtp_acceptance` is how often the MTP block and the network agree on the most likely token after
    the next one, given the text. `index_recall@k` is the share of the k entries with the most
    attention that the indexers select, over queries that can see more than k entries; attention is
    that of CSA layers when they read all entries. By layer, `covered` is the share of this
    attention on the selected entries, `coverable` the maximum for k entries, `chance` the recall of
    random entries.
    """
    from sounding.evaluation.mechanisms import long_documents, measure_mechanisms, recall_sizes

    options = EvalOptions(**settings)
    most = options.context_tokens
    if not 1 <= at_least <= most:
        raise ValueError(f"--at-least {at_least} must be from 1 to --context-tokens {most}")
    texts = read_texts(path, suffixes, warn)
    opened = open_model(model)

    def encode(text: str) -> list[int]:
        return opened.tokenizer.encode(text, named=False)

    long = list(long_documents(texts, encode, at_least=at_least, at_most=most - 1))
    if not long:
        raise ValueError(f"no document of {path} has {at_least} tokens; lower --at-least")
    measured = measure_mechanisms(
        opened,
        limited(long, options.limit, options.seed),
        options,
        at_least=at_least,
        sizes=recall_sizes(opened.network.config, sizes),
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
    help="Where answers end.  [default: line if all solutions are single lines, else end]",
)
def infilling(
    file: Path, model: str | None, as_json: bool, until: str | None, **settings: Any
) -> None:
    """pass@1 of infilling: the tests of each problem are run.

    FILE has JSON lines with task_id, prompt, suffix, canonical_solution, test and entry_point.
    """
    from sounding.tasks.code import read_problems

    problems = read_problems(file, infilling=True)
    until = until or measuring.natural_end(problems)
    measured = _programs("infilling", problems, until, model, EvalOptions(**settings))
    report(measured, as_json=as_json)


@eval.command()
@click.argument("file", type=_FILE)
@common_options
@sampling_options(256)
@sandbox_options
@samples_option
@k_option
def functions(file: Path, model: str | None, as_json: bool, **settings: Any) -> None:
    """pass@k of functions, given their signature and docstring.

    FILE has JSON lines as HumanEval: task_id, prompt, canonical_solution, test and entry_point. An
    answer ends with the function. More than one sample requires a --temperature above 0.
    """
    from sounding.tasks.code import read_problems

    problems = read_problems(file, infilling=False)
    measured = _programs("functions", problems, "block", model, EvalOptions(**settings))
    report(measured, as_json=as_json)


def _ids(context: click.Context, option: click.Parameter, text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise click.BadParameter(f"{text!r} must be two ids such as 11-510")
    return range(int(first), int(last) + 1)


_ids_option = click.option(
    "--ids",
    default="11-510",
    show_default=True,
    callback=_ids,
    help="Ids of the rows to use; 11-510 is the test split.",
)


@eval.command()
@click.argument("file", type=_FILE)
@common_options
@sampling_options(256)
@sandbox_options
@samples_option
@k_option
@_ids_option
@click.option(
    "--examples", default=3, show_default=True, help="Number of tests shown in the docstring."
)
def mbpp(
    file: Path, model: str | None, as_json: bool, ids: range, examples: int, **settings: Any
) -> None:
    """pass@k of functions, given the descriptions of MBPP.

    FILE has the JSON lines of MBPP. Each becomes a signature, taken from its solution, and a
    docstring with the description and some of the tests.
    """
    from sounding.tasks.mbpp import function_problem, read_mbpp

    rows = read_mbpp(file, ids)
    problems = [problem for row in rows if (problem := function_problem(row, examples))]
    notes = {"examples": examples, "rows_without_a_function": len(rows) - len(problems)}
    measured = _programs("mbpp", problems, "block", model, EvalOptions(**settings), notes)
    report(measured, as_json=as_json)


def _programs(
    title: str,
    problems: "Sequence[Problem]",
    until: str,
    model: str | None,
    options: EvalOptions,
    notes: dict[str, Any] | None = None,
) -> measuring.Measured:
    from sounding.tasks.code import CodeTask

    judge = sandbox(options.timeout, options.unsafe)
    task = CodeTask(limited(problems, options.limit, options.seed), judge)
    return measuring.measure_programs(title, open_model(model), task, until, options, notes)


@eval.command("make-infilling")
@click.argument("file", type=_FILE)
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@_ids_option
@click.option(
    "--per-problem",
    default=2,
    show_default=True,
    type=click.IntRange(min=1),
    help="Maximum number of rows per problem.",
)
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
    """Make problems for `eval infilling` from the solutions of MBPP.

    A problem removes one line from a solution, except its indentation: a complete statement inside
    a function, with at least four letters and digits. The solution must pass its tests, and fail
    them if `pass` replaces the line. Of these lines, --per-problem are chosen by a hash of their
    names, so the same FILE gives the same OUT.
    """
    from sounding.evaluation.make_infilling import infilling_rows
    from sounding.files import write_file
    from sounding.tasks.mbpp import read_mbpp

    rows = read_mbpp(file, ids)
    made, reasons = infilling_rows(rows, sandbox(timeout, unsafe), per_problem, workers)
    lines = [json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in made]
    write_file(out, "".join(lines).encode())
    if as_json:
        answer = {"rows": len(made), "problems": len(rows), "left_out": dict(reasons)}
        click.echo(json.dumps(answer))
        return
    click.echo(f"wrote {len(made)} rows from {len(rows)} problems to {out}")
    for reason, count in reasons.most_common():
        click.echo(f"left out {count}: {reason}")
