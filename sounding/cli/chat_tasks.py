"""`eval tasks`: tasks asked in a conversation, with tools where they have any."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sounding.cli.completion import open_model
from sounding.cli.evaluation_options import common_options, report, sandbox_options
from sounding.evaluation.measuring import (
    Measured,
    collect,
    digest_of,
    fingerprint,
    limited,
    sandbox,
)

if TYPE_CHECKING:
    from sounding.agent.loop import Chat

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _numbers(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    parts = text.replace(",", " ").split()
    if not (parts and all(part.isdecimal() and int(part) for part in parts)):
        raise click.BadParameter(f"{text!r} must be numbers such as 1,8")
    return tuple(map(int, parts))


@click.command()
@click.argument("file", type=_FILE)
@common_options
@click.option("--kind", "kinds", multiple=True, help="Only these, such as write or tools.")
@click.option("--samples", default=1, show_default=True, help="Per task.")
@click.option(
    "-k", "ks", default="1", show_default=True, callback=_numbers, help="Of pass@k, such as 1,8."
)
@click.option("--max-tokens", default=512, show_default=True, help="Per answer.")
@click.option("--context-tokens", default=2048, show_default=True, help="Of a conversation.")
@click.option("--turns", default=8, show_default=True, help="Answers of one conversation.")
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--width", default=16, show_default=True, help="Conversations at a time.")
@click.option("--url", help="Ask the server there, such as http://127.0.0.1:8000, over HTTP.")
@click.option("--key", envvar="SOUNDING_API_KEY", help="Of the server.")
@sandbox_options
def tasks(
    file: Path,
    model: str | None,
    limit: int | None,
    seed: int,
    out: Path | None,
    as_json: bool,
    kinds: tuple[str, ...],
    samples: int,
    ks: tuple[int, ...],
    max_tokens: int,
    context_tokens: int,
    turns: int,
    temperature: float,
    top_p: float,
    width: int,
    url: str | None,
    key: str | None,
    timeout: float,
    workers: int,
    unsafe: bool,
) -> None:
    """pass@k of tasks asked in a conversation, by kind and difficulty.

    FILE is made by `data textbook tasks`. Tasks with tools are conversations of several turns whose
    tools run in the sandbox; the files are graded as they were left. With --url a running server is
    measured instead of a model.
    """
    from sounding.evaluation import chats
    from sounding.evaluation.execution import attempt_id
    from sounding.evaluation.results import Results
    from sounding.tasks.chat import ChatTask, read_chat_problems
    from sounding.textbook.running import sandboxed

    if max(ks) > samples:
        raise ValueError(f"pass@{max(ks)} needs at least as many --samples; there are {samples}")
    if samples > 1 and not temperature:
        raise ValueError(f"{samples} samples at temperature 0 are all the same; set --temperature")
    problems = read_chat_problems(file)
    known = sorted({problem.kind for problem in problems})
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"--kind {kind}: {file} has {', '.join(known)}")
    problems = limited([p for p in problems if not kinds or p.kind in kinds], limit, seed)
    task = ChatTask(problems, sandbox(timeout, unsafe), sandboxed(timeout, isolate=not unsafe))
    sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    chat, asked = _chat(url, model, key, width, context_tokens, sampling)
    settings = {
        **asked,
        "tasks": digest_of([json.dumps(problem.row()) for problem in problems]),
        "seed": seed,
        "samples": samples,
        "turns": turns,
        "timeout": timeout,
        "isolated": not unsafe,
        **sampling,
    }
    results = Results(out, settings)
    attempts = [(index, sample) for index in range(len(task)) for sample in range(samples)]
    names = [attempt_id(task[index].task_id, sample) for index, sample in attempts]
    left = [attempt for attempt, name in zip(attempts, names, strict=True) if name not in results]
    rows = chats.evaluate_chats(task, left, chat, seed=seed, most_turns=turns, width=width)
    interrupt = collect(results, "tasks", len(attempts), rows)
    done = results.select(names)
    metrics = chats.summarise_chats(done, samples=samples, ks=ks, seed=seed)
    more = {
        "by difficulty": chats.by_difficulty(done, samples=samples, ks=ks),
        "outcomes": chats.reasons(done),
    }
    measured = Measured("tasks", settings, metrics, len(done), len(attempts), more, interrupt)
    report(measured, as_json=as_json)


@click.command()
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.option(
    "-k", "ks", default="1", show_default=True, callback=_numbers, help="Of pass@k, such as 1,8."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(before: Path, after: Path, ks: tuple[int, ...], seed: int, as_json: bool) -> None:
    """How much pass@k has risen between two results of `eval tasks`, in pairs of tasks.

    BEFORE and AFTER are files of its --out. What both have is compared.
    """
    from sounding.evaluation.chats import compared
    from sounding.evaluation.results import read_results

    first, second = read_results(before), read_results(after)
    metrics = compared(list(first.values()), list(second.values()), ks=ks, seed=seed)
    both = len(first.keys() & second.keys())
    settings = {"before": str(before), "after": str(after), "seed": seed}
    total = len(first.keys() | second.keys())
    report(Measured("compare", settings, metrics, both, total, {}, None), as_json=as_json)


def _chat(
    url: str | None,
    model: str | None,
    key: str | None,
    width: int,
    context_tokens: int,
    sampling: dict[str, Any],
) -> "tuple[Chat, dict[str, Any]]":
    """What answers, and the settings that name it."""
    if url is not None:
        from sounding.agent.http_chat import HTTPChat

        if model is not None:
            raise ValueError("--url measures what the server has loaded; leave --model out")
        return HTTPChat(url, key=key, **sampling), {"url": url}
    from sounding.agent.engine_chat import EngineChat
    from sounding.engine.sampling import SamplingParams

    opened = open_model(model)
    params = SamplingParams(temperature=sampling["temperature"], top_p=sampling["top_p"])
    chat = EngineChat(
        opened.engine(width=width),
        opened.tokenizer,
        params,
        sampling["max_tokens"],
        context_tokens=context_tokens,
    )
    return chat, {"model": fingerprint(opened.folder), "context_tokens": context_tokens}
