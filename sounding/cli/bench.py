"""The command that measures speed."""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.progress import MofNCompleteColumn
from rich.table import Table

from sounding.bench.drafting import DraftingReport, print_drafting
from sounding.bench.training import compare_training, print_training
from sounding.cli.completion import drafter_option, open_model
from sounding.cli.model_argument import model_argument
from sounding.cli.sizes import memory_option
from sounding.loading import SHIPPED_NAME, open_checkpoint
from sounding.progress import progress_bar
from sounding.runtime import peak_resident_bytes

if TYPE_CHECKING:
    from sounding.bench.experts import DiskMeter
    from sounding.bench.inference import Measurement
    from sounding.bench.peers.transformers_v4 import Peer
    from sounding.engine.network import Network
    from sounding.loading import LoadedModel


def _counts(ctx: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """Parse numbers of tokens, such as 512,2048."""
    parts = [part for part in value.split(",") if part]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{value!r} must be numbers of tokens such as 512,2048")
    return [int(part) for part in parts]


def _sequences(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """Parse the number of sequences and the tokens of each, such as 4x1024."""
    if value is None:
        return None
    parts = value.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(
            f"{value!r} must be sequences x tokens per sequence, such as 4x1024"
        )
    return int(parts[0]), int(parts[1])


# Options that only inference or only training has.
_INFERENCE = (
    "memory_bytes",
    "prefill",
    "decode",
    "context",
    "simulate",
    "drafts",
    "places",
    "drafter",
)
_TRAINING = ("tokens", "phase", "no_mtp")
_PLACE_TOKENS = 256  # before a place, if --context does not say


def _refuse_others(ctx: click.Context, train: bool) -> None:
    """Raise UsageError for an option that would have no effect."""
    for name in _INFERENCE if train else _TRAINING:
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            kind = "cannot be combined with" if train else "requires"
            raise click.UsageError(f"--{name.replace('_', '-')} {kind} --train")


@click.command()
@model_argument
@memory_option
@click.option(
    "--prefill", default="512,2048", show_default=True, callback=_counts, help="Prompt lengths."
)
@click.option(
    "--decode",
    default=64,
    show_default=True,
    type=click.IntRange(min=0),
    help="Number of tokens to decode.",
)
@click.option(
    "--context",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Tokens of context before decoding.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Number of threads.  [default: one per core]"
)
@click.option(
    "--runs",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of measurements, of which the median is reported.",
)
@click.option("--train", is_flag=True, help="Measure training steps instead of inference.")
@click.option(
    "--tokens",
    callback=_sequences,
    help="Batch of a step: sequences x tokens of each.  [default: 4x1024]",
)
@click.option(
    "--phase",
    type=click.Choice(["dense", "sparse"]),
    help="Attention phase of training.  [default: dense]",
)
@click.option("--no-mtp", is_flag=True, help="Train without the MTP block, as transformers does.")
@click.option(
    "--simulate", is_flag=True, help="Round activations and pack the state as in deployment."
)
@click.option(
    "--against", type=click.Choice(["transformers"]), help="Compare with another library."
)
@click.option(
    "--drafts",
    type=click.Path(exists=True, path_type=Path),
    help="Measure the drafters along this text: a file, a folder, or a corpus's held-out split.",
)
@click.option(
    "--places",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    help="Places of the text behind which --decode tokens are continued.",
)
@drafter_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def bench(
    ctx: click.Context,
    model: str | None,
    memory_bytes: int | None,
    prefill: list[int],
    decode: int,
    context: int,
    threads: int | None,
    runs: int,
    train: bool,
    tokens: tuple[int, int] | None,
    phase: str | None,
    no_mtp: bool,
    simulate: bool,
    against: str | None,
    drafts: Path | None,
    places: int,
    drafter: str | None,
    as_json: bool,
) -> None:
    """Measure the speed of prefill, decode or training.

    Each figure is the median of several runs after a warm-up. Prefill is compared with the
    machine's matrix multiplication speed and decode with its memory bandwidth; both limits are
    measured in the same run. With --memory they are those of the longer of a prompt's reads and
    operations, and of reading what a token misses from disk, then the rest from memory; the table
    then shows what of the reads was hidden by computing meanwhile. By default MODEL is the shipped
    model. With --train it may be a preset; training then starts from random weights and reads
    random tokens. With --drafts the network continues a text behind many places, with each drafter
    alone, without drafts, and as the engine chooses, by turns.

    \b
    Examples:
      sounding bench MODEL --prefill 512,2048 --decode 64
      sounding bench MODEL --decode 64 --context 100000 --prefill ''
      sounding bench nano --train --tokens 4x1024 --against transformers
      sounding bench nano --drafts src --drafter trained

    \b
    Keys of the JSON:
      native, threads     whether the C++ kernels run the network, and the number of threads
      first_token_seconds from the start of the process to the first token
      peak_bytes          peak resident memory, including that of the peer
      state_bytes         size of the state of the decoded sequence
      formula_state_bytes size of its packed state as `plan` computes it; --simulate measures it
      read_bytes_per_second, flops_per_second    measured limits; products are in flops_dtype
      memory_bytes, slots, chunk_tokens, disk_bytes_per_second    with --memory: the budget, the
                          experts and the tokens of a step that fit, and direct reads of experts
      rows                [{kind, tokens, context, tokens_per_second, fraction, bytes_per_token,
                          flops_per_token, peer_tokens_per_second, ratio, experts}]
                          experts: {hit_rate, ahead_rate, bytes_read, waited_seconds,
                          disk_seconds, hidden_seconds} per token, with --memory

    \b
    Keys of the JSON with --train:
      model, threads, phase, mtp, sequences, sequence_tokens, steps    the settings
      tokens_per_second, peak_bytes    median over the steps; peak memory of the process
      peer_tokens_per_second, peer_peak_bytes, differences    the same for the peer, and how the
                                       two setups differ
      ratio, memory_ratio              median ratio of alternating steps; ratio of the peaks

    \b
    Keys of the JSON with --drafts (costs are in steps without drafts):
      places, tokens      how many places, and tokens continued behind each
      rows                [{name, tokens_per_second, gain, expected_gain, tokens_per_step,
                          drafts_per_step, acceptance by position, draft_cost of a draft or a
                          block, row_cost, step_cost}]; expected_gain = tokens_per_step / step_cost
    """
    import psutil

    _refuse_others(ctx, train)
    model = model or SHIPPED_NAME
    threads = threads or psutil.cpu_count() or 1
    if drafts is not None:
        from sounding.native.kernels import set_num_threads

        set_num_threads(threads)
        opened = open_model(model, memory_bytes, drafter)
        sizes = (places, decode, context or _PLACE_TOKENS)
        drafting = _measure_drafts(ctx, opened, drafts, sizes)
        if as_json:
            click.echo(json.dumps(drafting.to_dict(), indent=2))
        else:
            print_drafting(drafting)
        return
    if train:
        report = compare_training(
            model,
            tokens or (4, 1024),
            sparse=phase == "sparse",
            mtp=not no_mtp,
            threads=threads,
            steps=runs,
            against=against,
        )
        show = print_training
    else:
        how = {"prefill": prefill, "decode": decode, "context": context, "runs": runs}
        report = _infer(
            model, how, threads, simulate=simulate, against=against, memory_bytes=memory_bytes
        )
        show = _print
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show(report)


def _measure_drafts(
    ctx: click.Context, opened: "LoadedModel", text: Path, sizes: tuple[int, int, int]
) -> DraftingReport:
    """Measure drafters; `sizes` are places, tokens behind each, and tokens before each."""
    from sounding.bench.drafting import measure_drafters, places_in
    from sounding.evaluation.measuring import read_texts

    for name in ("prefill", "simulate", "against"):
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} cannot be combined with --drafts")
    count, tokens, context = sizes
    texts = read_texts(text, (".py",), lambda note: click.echo(note, err=True))
    documents = [opened.tokenizer.encode(each, named=False) for _, each in texts]
    prompts = places_in(documents, count, context)
    with progress_bar(MofNCompleteColumn()) as bar:
        task = bar.add_task("places", total=len(prompts))
        return measure_drafters(
            opened.network, opened.tokenizer, prompts, tokens, lambda: bar.advance(task)
        )


def _infer(
    model: str,
    how: dict[str, Any],
    threads: int,
    *,
    simulate: bool,
    against: str | None,
    memory_bytes: int | None,
) -> dict[str, Any]:
    """Measure prefill and decode; `how` holds the arguments of `measure`."""
    import psutil

    from sounding.bench.experts import DiskMeter
    from sounding.bench.inference import Ours, between, measure, measure_ceilings, token_cost
    from sounding.loading import load_network
    from sounding.native.kernels import set_num_threads
    from sounding.native.network import KernelNetwork
    from sounding.weights.description import StateSize

    set_num_threads(threads)
    network = load_network(model, simulate=simulate, memory_bytes=memory_bytes)
    prefill = how["prefill"]
    longest = max([how["context"] + how["decode"] * how["runs"] + 1, *prefill])
    runner = Ours(network, packed_tokens=longest if simulate else None)
    runner.read([0] * (prefill[0] if prefill else 1))
    first = time.time() - psutil.Process().create_time()
    ceilings = measure_ceilings()
    disk = DiskMeter(network)
    with progress_bar(MofNCompleteColumn()) as bar:
        task = bar.add_task("reading the context", total=how["context"], visible=how["context"] > 0)

        def on_read(done: int) -> None:
            bar.update(task, completed=done)

        rows = measure(network, runner, ceilings, **how, on_read=on_read, disk=disk)
    peers: list[Measurement] = []
    if against:
        with tempfile.TemporaryDirectory() as folder:
            peer: Peer = _peer(model, Path(folder))
            peers = measure(network, peer, ceilings, **how)
        # The speed of a machine drifts within minutes: measure before and after the peer.
        rows = between(rows, measure(network, runner, ceilings, **how, disk=disk))
    costs = [token_cost(network, row.context or row.tokens // 2) for row in rows]
    return {
        "native": isinstance(network, KernelNetwork),
        "threads": threads,
        "first_token_seconds": round(first, 3),
        "peak_bytes": peak_resident_bytes(),
        "state_bytes": runner.state.nbytes,
        "formula_state_bytes": StateSize(network.config).bytes_at(longest),
        "read_bytes_per_second": round(ceilings.read_bytes_per_second),
        "flops_per_second": round(ceilings.flops_per_second),
        "flops_dtype": ceilings.dtype,
        **_budget(network, disk),
        "rows": [
            _as_json(row, cost.bytes, cost.flops, peers[number] if peers else None)
            for number, (row, cost) in enumerate(zip(rows, costs, strict=True))
        ],
    }


def _budget(network: "Network", disk: "DiskMeter") -> dict[str, Any]:
    """The keys of the JSON that a memory budget adds."""
    if network.store is None or network.store.plan is None:
        return {}
    plan = network.store.plan
    return {
        "memory_bytes": plan.budget_bytes,
        "slots": plan.slots,
        "chunk_tokens": plan.chunk_tokens,
        "disk_bytes_per_second": round(disk.bytes_per_second),
    }


def _print_experts(report: dict[str, Any]) -> None:
    """What each measurement took from the disk, per token."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("experts", "hits", "read ahead", "MB/token", "disk", "hidden", "waited"):
        table.add_column(heading, justify="left" if heading == "experts" else "right")
    for row in report["rows"]:
        use = row["experts"]
        table.add_row(
            f"{row['kind']} {row['tokens']:,}",
            f"{use['hit_rate']:.1%}",
            f"{use['ahead_rate']:.1%}",
            f"{use['bytes_read'] / 1e6:,.1f}",
            *(f"{1000 * use[f'{what}_seconds']:,.1f} ms" for what in ("disk", "hidden", "waited")),
        )
    Console(width=max(100, Console().width)).print(table)
    limit = report["memory_bytes"] / 1e6
    click.echo(
        f"experts are read at {report['disk_bytes_per_second'] / 1e9:.2f} GB/s; "
        f"{report['slots']:,} of them fit in the {limit:,.0f} MB given"
    )


def _peer(model: str, folder: Path) -> "Peer":
    from sounding.bench.peers.transformers_v4 import Peer
    from sounding.weights.quantize import convert

    convert(open_checkpoint(model), folder / "peer", "transformers", plain="bfloat16")
    return Peer(folder / "peer")


def _as_json(
    row: "Measurement", num_bytes: float, flops: float, peer: "Measurement | None"
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "kind": row.kind,
        "tokens": row.tokens,
        "context": row.context,
        "tokens_per_second": round(row.tokens_per_second, 1),
        "fraction": round(row.fraction, 3),
        "bytes_per_token": round(num_bytes),
        "flops_per_token": round(flops),
    }
    if row.experts is not None:
        result["experts"] = {**asdict(row.experts), "hidden_seconds": row.experts.hidden_seconds}
    if peer is not None:
        result["peer_tokens_per_second"] = round(peer.tokens_per_second, 1)
        result["ratio"] = round(row.tokens_per_second / peer.tokens_per_second, 2)
    return result


def _print(report: dict[str, Any]) -> None:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("what", "tokens/s", "of limit", "MB/token", "MFLOP/token", "peer", "ratio"):
        table.add_column(heading, justify="left" if heading == "what" else "right", no_wrap=True)
    for row in report["rows"]:
        what = f"{row['kind']} {row['tokens']:,}"
        if row["context"]:
            what += f" after {row['context']:,}"
        table.add_row(
            what,
            f"{row['tokens_per_second']:,.1f}",
            f"{row['fraction']:.0%}",
            f"{row['bytes_per_token'] / 1e6:,.1f}",
            f"{row['flops_per_token'] / 1e6:,.0f}",
            f"{row['peer_tokens_per_second']:,.1f}" if "ratio" in row else "",
            f"{row['ratio']:.1f}x" if "ratio" in row else "",
        )
    Console(width=max(100, Console().width)).print(table)
    if any("experts" in row for row in report["rows"]):
        _print_experts(report)
    click.echo(
        f"this machine reads {report['read_bytes_per_second'] / 1e9:.1f} GB/s and multiplies "
        f"{report['flops_per_second'] / 1e9:,.0f} GFLOPS in {report['flops_dtype']}, "
        f"on {report['threads']} threads"
    )
    click.echo(
        f"first token {report['first_token_seconds']:.2f} s after the process started; "
        f"peak memory {report['peak_bytes'] / 1e6:,.0f} MB, "
        f"state {report['state_bytes'] / 1e6:,.1f} MB "
        f"(packed, computed: {report['formula_state_bytes'] / 1e6:,.1f} MB)"
    )
    if not report["native"]:
        click.echo(
            "the C++ kernels cannot run this network here; the PyTorch reference was measured"
        )
