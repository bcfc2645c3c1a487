"""How fast a model runs on this machine, beside what the machine can do.

A decoded token has to read every weight it uses and a prefilled token has to multiply by it; how
many bytes and operations those are follows from the model alone. The machine's ceilings are
measured in the same run, so that a figure says what fraction of the possible it is.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sounding.config import CSA, ModelConfig
from sounding.model.state import SequenceState, growing_state, packed_state
from sounding.model.transformer import Transformer
from sounding.ops.argmax import argmax

_CHUNK_TOKENS = 2048  # of a context that is only there to be decoded at
_READ_BYTES = 1 << 28
_PRODUCT_SIZE, _TRIAL_SIZE = 2048, 256


@dataclass(frozen=True)
class Ceilings:
    """What this machine does at best, with the threads that are set."""

    read_bytes_per_second: float
    flops_per_second: float
    dtype: torch.dtype = torch.bfloat16
    """Of the products."""


@dataclass(frozen=True)
class Cost:
    """What one token takes: bytes read when it is decoded alone, operations in any case."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Row:
    """One measurement; the limit is what the ceilings allow at this cost."""

    kind: str  # "prefill" or "decode"
    tokens: int
    context: int  # tokens before the measured ones
    tokens_per_second: float
    limit_tokens_per_second: float

    @property
    def fraction(self) -> float:
        """How much of the limit is reached."""
        return self.tokens_per_second / self.limit_tokens_per_second


@runtime_checkable  # so that the shape checks of the tests can run
class Runner(Protocol):
    """A model that continues one sequence, used in inference mode: entered once for many
    tokens, since that takes a fiftieth of a small model's token."""

    def start(self) -> None:
        """Forget the sequence."""

    def read(self, tokens: Tensor) -> int:
        """Append tokens and return the likeliest next one."""


class Native:
    """A `Transformer` as a runner; the state is packed where the network rounds what goes in."""

    def __init__(self, model: Transformer, *, packed_tokens: int | None = None) -> None:
        """`packed_tokens` are the most that a packed state has to hold; None is a growing one."""
        self._model = model
        self._packed_tokens = packed_tokens
        self.start()

    def start(self) -> None:
        config = self._model.config
        self.state: SequenceState = (
            growing_state(config)
            if self._packed_tokens is None
            else packed_state(config, max_tokens=self._packed_tokens)
        )

    def read(self, tokens: Tensor) -> int:
        last = [len(tokens) - 1]
        return argmax(self._model.predict(tokens, last, states=[self.state]).logits[0])


class Peer:
    """The V4 of the `transformers` library as a runner, in bfloat16."""

    def __init__(self, folder: Path) -> None:
        """Load what `convert --to transformers` wrote. Raises ValueError without the library."""
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise ValueError(
                "there is no transformers library to compare with; install the extra 'dev'"
            ) from error
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self._cache: object = None

    def start(self) -> None:
        self._cache = None

    def read(self, tokens: Tensor) -> int:
        output = self._model(
            tokens[None], past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = output.past_key_values
        return int(output.logits[0, -1].argmax())


def measure_ceilings() -> Ceilings:
    """Best of a few sums over memory larger than any cache share, and of matrix products in bf16 or
    float32: processors without bf16 instructions are hundreds of times slower in it."""
    memory = torch.ones(_READ_BYTES // 8, dtype=torch.int64)
    read = _best(lambda: memory.sum(), 5)
    dtype = max((torch.bfloat16, torch.float32), key=lambda dtype: _multiplied(dtype, _TRIAL_SIZE))
    return Ceilings(_READ_BYTES / read, _multiplied(dtype, _PRODUCT_SIZE), dtype)


def _multiplied(dtype: torch.dtype, size: int) -> float:
    """Operations per second of a matrix product."""
    one = torch.randn(size, size).to(dtype)
    return 2 * size**3 / _best(lambda: one @ one, 5)


def token_cost(model: Transformer, context: int) -> Cost:
    """Bytes and operations of the token after `context` others, MTP blocks left out.

    Of routed experts only the chosen ones count, of the embedding one row; of the state the window,
    the entries that are attended to, and the index keys that are scored, as bfloat16.
    """
    config = model.config
    share = config.num_experts_per_tok / config.n_routed_experts
    bytes_read = numbers = 0.0
    for name, parameter in model.named_parameters():
        if name.startswith("mtp.") or name.endswith("tid2eid") or name == "embed.weight":
            continue
        part = share if ".ffn.experts." in name else 1.0
        bytes_read += part * parameter.nbytes
        if parameter.ndim > 1 and not name.endswith((".scale", ".ape")):
            packed = 2 if parameter.dtype == torch.int8 else 1
            numbers += part * parameter.numel() * packed
    keys, index_keys = _keys_read(config, context)
    bytes_read += 2 * (keys * config.head_dim + index_keys * config.index_head_dim)
    attention = 2 * keys * config.num_attention_heads * config.head_dim
    indexing = index_keys * config.index_n_heads * config.index_head_dim
    return Cost(bytes_read, 2 * (numbers + attention + indexing))


def _keys_read(config: ModelConfig, context: int) -> tuple[int, int]:
    """Entries attended to, and index keys scored, over all layers."""
    keys = index_keys = 0
    for ratio in config.ratios:
        keys += min(config.sliding_window, context + 1)
        if ratio == CSA:
            keys += min(config.index_topk, context // ratio)
            if context // ratio > config.index_topk:
                index_keys += context // ratio
        elif ratio:
            keys += context // ratio
    return keys, index_keys


def measure_prefill(runner: Runner, tokens: Tensor, runs: int) -> float:
    """Seconds of reading a prompt, the median of `runs` after one to warm up."""

    def once() -> float:
        runner.start()
        start = time.perf_counter()
        runner.read(tokens)
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(runs))


def measure_decode(runner: Runner, count: int, runs: int) -> float:
    """Seconds of one decoded token behind what the runner has read: medians of `count` tokens."""
    token = runner.read(torch.tensor([0]))
    medians = []
    for _ in range(runs):
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            token = runner.read(torch.tensor([token]))
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds))
    return statistics.median(medians)


@torch.inference_mode()
def measure(
    model: Transformer,
    runner: Runner,
    ceilings: Ceilings,
    *,
    prefill: Sequence[int],
    decode: int,
    context: int,
    runs: int,
    on_read: Callable[[int], object] = lambda done: None,
) -> list[Row]:
    """Prefill of each length, then decoding after `context` tokens, which are read once: that is a
    row too. `on_read` is told how many of these are read."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    rows = []
    for length in prefill:
        tokens = torch.randint(vocabulary, (length,), generator=generator)
        seconds = measure_prefill(runner, tokens, runs)
        limit = ceilings.flops_per_second / token_cost(model, length // 2).flops
        rows.append(Row("prefill", length, 0, length / seconds, limit))
    if decode:
        runner.start()
        if context:
            before = torch.randint(vocabulary, (context,), generator=generator)
            start, done = time.perf_counter(), 0
            for piece in before.split(_CHUNK_TOKENS):
                runner.read(piece)
                done += len(piece)
                on_read(done)
            speed = context / (time.perf_counter() - start)
            limit = ceilings.flops_per_second / token_cost(model, context // 2).flops
            rows.append(Row("prefill", context, 0, speed, limit))
        seconds = measure_decode(runner, decode, runs)
        limit = ceilings.read_bytes_per_second / token_cost(model, context).bytes
        rows.append(Row("decode", decode, context, 1 / seconds, limit))
    return rows


def between(before: Sequence[Row], after: Sequence[Row]) -> list[Row]:
    """The same measurements taken twice, around those of a peer: their means."""
    return [
        replace(one, tokens_per_second=(one.tokens_per_second + other.tokens_per_second) / 2)
        for one, other in zip(before, after, strict=True)
    ]


def _best(work: Callable[[], object], runs: int) -> float:
    """Shortest of some runs, in seconds."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])
