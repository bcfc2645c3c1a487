"""`logits` and `generate`: compute logits, and continue a prompt."""

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import MofNCompleteColumn

from sounding.cli.completion import drafter_option
from sounding.cli.model_argument import model_argument
from sounding.cli.sizes import memory_option
from sounding.progress import progress_bar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sounding.engine.requests import Event


# --------------------------------------------------------------------------------------------------
# logits


@click.command()
@click.argument("model")
@click.option(
    "--tokens",
    "source",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Safetensors file with input_ids, I64 [b, t].",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Safetensors file to write: logits, F32 [b, t, v].",
)
@click.option("--simulate", is_flag=True, help="Round activations to FP8 and FP4 as in deployment.")
@click.option(
    "--split",
    help="Process the tokens in chunks: sizes such as 137,1,1 (the last one repeats), or "
    "random:SEED for random chunks, different in every sequence.",
)
@click.option(
    "--bfloat16",
    is_flag=True,
    help="Compute in bfloat16 with the C++ kernels, as the engine does; does not need PyTorch.",
)
def logits(
    model: str, source: Path, out: Path, simulate: bool, split: str | None, bfloat16: bool
) -> None:
    """Compute the logits of tokens.

    Logits of every position of every sequence in the file, computed in float32 by the PyTorch
    reference. With --split the tokens are processed in chunks, as a server does; the logits must be
    the same up to rounding, which can be verified with this option.

    \b
    Example:
      sounding logits MODEL --tokens in.safetensors --out out.safetensors --split random:1
    """
    from safetensors.numpy import save

    from sounding.engine.scoring import split_logits
    from sounding.files import write_file
    from sounding.loading import load_network

    tokens = _read_tokens(source)
    splits = [_pieces(split, tokens.shape[1], row) for row in range(len(tokens))]
    network = load_network(model, simulate=simulate, exact=not bfloat16, drafter="none")
    with progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task("logits", total=tokens.size)
        result = split_logits(
            network, tokens.tolist(), splits, lambda done: progress.update(task, advance=done)
        )
    write_file(out, save({"logits": result}))
    click.echo(f"wrote logits {list(result.shape)} to {out}", err=True)


def _read_tokens(path: Path) -> "NDArray[np.int64]":
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys())
            if "input_ids" not in names:
                raise ValueError(f"{path} holds {names or 'nothing'}; it must hold 'input_ids'")
            found = file.get_slice("input_ids")
            dtype, shape = found.get_dtype(), found.get_shape()
            # Checked before reading: NumPy cannot represent every dtype.
            if dtype != "I64" or len(shape) != 2 or 0 in shape:
                raise ValueError(
                    f"input_ids in {path} is {dtype} of shape {shape}; it must be I64 "
                    "[sequences, tokens] with at least one of each"
                )
            tokens: NDArray[np.int64] = file.get_tensor("input_ids")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    return tokens


def _pieces(split: str | None, length: int, row: int) -> list[int]:
    """The chunk sizes of sequence `row` of `length` tokens."""
    if split is None:
        return [length]
    kind, _, seed = split.partition(":")
    if kind == "random" and seed.isdecimal():
        return _random_pieces(length, random.Random(f"{seed}:{row}"))
    parts = split.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"--split {split!r} must be sizes of at least 1 such as 137,1,1, or random:SEED"
        )
    sizes = [int(part) for part in parts]
    if sum(sizes) > length:
        raise ValueError(
            f"--split {split} adds up to {sum(sizes)} tokens; the sequences have {length}"
        )
    rest, last = length - sum(sizes), sizes[-1]
    return sizes + [last] * (rest // last) + ([rest % last] if rest % last else [])


def _random_pieces(length: int, choose: random.Random) -> list[int]:
    """Random chunk sizes of every scale, from single tokens to the whole sequence."""
    sizes: list[int] = []
    while (rest := length - sum(sizes)) > 0:
        sizes.append(choose.randint(1, min(rest, choose.choice((1, 5, 200, length)))))
    return sizes


# --------------------------------------------------------------------------------------------------
# generate


@click.command()
@model_argument
@memory_option
@click.option("--prompt", help="Text to continue; '-' reads it from stdin.")
@click.option(
    "--tokens",
    help="Token ids to continue, such as 5,17,3; token ids are printed too. For models without a "
    "tokenizer.",
)
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    help="0 chooses the most likely token. The published models are meant for 1.",
)
@click.option(
    "--top-p",
    default=1.0,
    show_default=True,
    help="Sample among the most likely tokens with this total probability.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same answer.")
@click.option("--stop", multiple=True, help="Stop before this string; can be given repeatedly.")
@drafter_option
def generate(
    model: str | None,
    memory_bytes: int | None,
    prompt: str | None,
    tokens: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop: tuple[str, ...],
    drafter: str | None,
) -> None:
    """Continue a prompt and stream the result.

    MODEL is the folder of a checkpoint; by default the shipped model is used. The prompt is used
    unchanged, including special tokens; `encode` renders chat prompts. The result is streamed to
    stdout and ends at EOS, a stop string or --max-tokens. Ctrl-C stops it.

    \b
    Examples:
      sounding generate --prompt 'def fibonacci(n):' --stop $'\\n\\n'
      sounding generate MODEL --tokens 0,17,4 --max-tokens 8
    """
    from sounding.engine.faults import EngineFault
    from sounding.engine.requests import Finished, GenerationRequest
    from sounding.engine.sampling import SamplingParams
    from sounding.loading import find_model, load_network, start_engine

    if (prompt is None) == (tokens is None):
        raise click.UsageError("give either --prompt or --tokens")
    if tokens is not None and stop:
        raise click.UsageError("--stop requires --prompt, because it is text")
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
    folder = find_model(model)
    if tokens is not None:
        dialect: _Tokens | _Text = _Tokens(tokens)
    else:
        text = sys.stdin.read() if prompt == "-" else prompt or ""
        dialect = _Text(folder, text)
    network = load_network(folder, memory_bytes=memory_bytes, drafter=drafter)
    stream = start_engine(network, dialect.tokenizer).submit(
        GenerationRequest(
            prompt=dialect.prompt,
            params=params,
            max_tokens=max_tokens,
            stop=stop,
            guard_repetition=False,
        )
    )
    with progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task("prompt", total=len(dialect.prompt))
        while not stream.wait(0.1):
            progress.update(task, completed=stream.prefilled)
    for event in stream:
        click.echo(dialect.render(event), nl=False)
        if isinstance(event, Finished) and event.reason == "error":
            raise EngineFault(event.error)
    click.echo()


class _Tokens:
    """A prompt and an answer as token ids."""

    tokenizer = None

    def __init__(self, ids: str) -> None:
        parts = ids.replace(",", " ").split()
        if not all(part.isdecimal() for part in parts):
            raise ValueError(f"--tokens {ids!r} must be token ids such as 5,17,3")
        self.prompt = [int(part) for part in parts]
        self._begun = False

    def render(self, event: "Event") -> str:
        from sounding.engine.requests import Finished

        if isinstance(event, Finished):
            return ""
        comma, self._begun = "," if self._begun else "", True
        return f"{comma}{event.token}"


class _Text:
    """A prompt and an answer as text, through the tokenizer beside the weights."""

    def __init__(self, folder: Path, text: str) -> None:
        from sounding.loading import load_tokenizer

        if not (folder / "tokenizer.json").is_file():
            raise ValueError(f"{folder} has no tokenizer.json; give token ids with --tokens")
        self.tokenizer = load_tokenizer(folder)
        self.prompt = self.tokenizer.encode(text)

    def render(self, event: "Event") -> str:
        return event.text
