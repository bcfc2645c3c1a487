"""`eval tasks` and `eval compare`: pass@k of tasks asked in conversations."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sounding.cli.completion import open_model
from sounding.cli.evaluation_options import (
    common_options,
    k_option,
    report,
    samples_option,
    sandbox_options,
)
from sounding.evaluation.eval_options import EvalOptions
from sounding.evaluation.measuring import Measured, fingerprint, limited, sandbox

if TYPE_CHECKING:
    from sounding.agent.loop import Chat

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("file", type=_FILE)
@common_options
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    help="Only tasks of this kind, such as write or tools; can be given repeatedly.",
)
@samples_option
@k_option
@click.option("--max-tokens", default=512, show_default=True, help="Token limit of an answer.")
@click.option(
    "--context-tokens", default=2048, show_default=True, help="Token limit of a conversation."
)
@click.option(
    "--turns", default=8, show_default=True, help="Maximum number of answers in a conversation."
)
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--width", default=16, show_default=True, help="Conversations run at the same time.")
@click.option(
    "--url", help="Evaluate a running server, such as http://127.0.0.1:8000, instead of a model."
)
@click.option("--key", envvar="SOUNDING_API_KEY", help="API key of the server.")
@sandbox_options
def tasks(
    file: Path,
    model: str | None,
    as_json: bool,
    kinds: tuple[str, ...],
    turns: int,
    url: str | None,
    key: str | None,
    **settings: Any,
) -> None:
    """pass@k of tasks asked in conversations, by kind and difficulty.

    FILE is made by `data textbook tasks`. Tasks with tools take several turns; the tools run in the
    sandbox, and the files they leave are graded. With --url a running server is evaluated instead
    of a model.
    """
    from sounding.evaluation import chats
    from sounding.tasks.chat_task import ChatTask, read_chat_problems
    from sounding.textbook.running import sandboxed

    options = EvalOptions(**settings)
    problems = read_chat_problems(file)
    known = sorted({problem.kind for problem in problems})
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"--kind {kind} is not in {file}, which has {', '.join(known)}")
    chosen = [problem for problem in problems if not kinds or problem.kind in kinds]
    task = ChatTask(
        limited(chosen, options.limit, options.seed),
        sandbox(options.timeout, options.unsafe),
        sandboxed(options.timeout, isolate=not options.unsafe),
    )
    chat, source = _chat(url, model, key, options)
    measured = chats.measure_chats(task, chat, options, source, most_turns=turns)
    report(measured, as_json=as_json)


@click.command()
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@k_option
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(before: Path, after: Path, ks: tuple[int, ...], seed: int, as_json: bool) -> None:
    """Difference of pass@k between two results of `eval tasks`, paired by task.

    BEFORE and AFTER are results that it wrote with --out. The tasks that both hold are compared.
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
    url: str | None, model: str | None, key: str | None, options: EvalOptions
) -> "tuple[Chat, dict[str, Any]]":
    """The model or server that answers, and the settings that identify it."""
    if url is not None:
        from sounding.agent.http_chat import HTTPChat

        if model is not None:
            raise ValueError("--url evaluates the model of the server; leave --model out")
        http_chat = HTTPChat(
            url,
            key=key,
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_tokens,
        )
        return http_chat, {"url": url}
    from sounding.agent.engine_chat import EngineChat
    from sounding.engine.sampling import SamplingParams

    opened = open_model(model)
    params = SamplingParams(temperature=options.temperature, top_p=options.top_p)
    engine_chat = EngineChat(
        opened.engine(width=options.width),
        opened.tokenizer,
        params,
        options.max_tokens,
        context_tokens=options.context_tokens,
    )
    source = {"model": fingerprint(opened.folder), "context_tokens": options.context_tokens}
    return engine_chat, source
