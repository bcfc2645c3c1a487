"""Measure a model's inference speed and compare it with the machine's limits.

Decoding a token reads every weight that it uses; prefilling a token multiplies by each of them. The
model alone determines these numbers of bytes and operations. The same run measures the machine's
ceilings, so that each speed is also given as a fraction of its limit.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from sounding.bench.experts import DiskMeter, ExpertUse
from sounding.engine.network import Network
from sounding.native.describe import describe_weight
from sounding.native.kernels import multiply, num_threads
from sounding.ops.cpu import library
from sounding.state.row_layout import entries_read
from sounding.weights.machine import sum_in_threads
from sounding.weights.raw import RawTensor

_CHUNK_TOKENS = 2048  # prefill chunk of a context that only serves as the start of decoding
_READ_BYTES = 1 << 28
_PRODUCT_SIZE = 2048


@dataclass(frozen=True)
class Ceilings:
    """This machine's ceilings at the current number of threads."""

    read_bytes_per_second: float
    flops_per_second: float
    dtype: str = "bfloat16"
    """Dtype of the matrix products measured for `flops_per_second`."""


@dataclass(frozen=True)
class Cost:
    """Cost of one token: the bytes read when it is decoded alone, and the operations."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Measurement:
    """One measurement, with the limit that the ceilings set for this cost."""

    kind: str  # "prefill" or "decode"
    tokens: int
    context: int  # number of tokens before the measured ones
    tokens_per_second: float
    limit_tokens_per_second: float
    experts: ExpertUse | None = None
    """What was read from disk, if not all experts are in memory."""

    @property
    def fraction(self) -> float:
        """Speed as a fraction of the limit."""
        return self.tokens_per_second / self.limit_tokens_per_second


@runtime_checkable  # so that the shape checks of the tests can run
class TokenRunner(Protocol):
    """A model that continues one sequence."""

    def start(self) -> None:
        """Forget the sequence."""

    def read(self, tokens: Sequence[int]) -> int:
        """Append tokens and return the likeliest next token."""


class Ours:
    """A `Network` as a runner; the state is packed if the network rounds its entries."""

    def __init__(self, network: Network, *, packed_tokens: int | None = None) -> None:
        """`packed_tokens` is the capacity of a packed state; None selects a growing state."""
        self._network, self._packed_tokens = network, packed_tokens
        self.start()

    def start(self) -> None:
        self.state = self._network.new_state(packed_tokens=self._packed_tokens)

    def read(self, tokens: Sequence[int]) -> int:
        made = self._network.predict(tokens, [len(tokens) - 1], [len(tokens)], [self.state])
        return int(made.logits[0].argmax())


def measure_ceilings() -> Ceilings:
    """Best of a few sums over memory larger than any cache share, and best of a few matrix
    products: NumPy's in float32 or our kernels' in bfloat16, whichever is faster here."""
    memory = np.ones(_READ_BYTES // 8, dtype=np.int64)
    read = _best(lambda: sum_in_threads(memory, num_threads()), 5)
    products = {"float32": _float32_products(), "bfloat16": _bfloat16_products()}
    fastest = max(products, key=lambda dtype: products[dtype])
    return Ceilings(_READ_BYTES / read, products[fastest], fastest)


def _float32_products() -> float:
    """Operations per second of NumPy's matrix product, on NumPy's own number of threads."""
    one = np.ones((_PRODUCT_SIZE, _PRODUCT_SIZE), dtype=np.float32)
    return 2 * _PRODUCT_SIZE**3 / _best(lambda: one @ one, 5)


def _bfloat16_products() -> float:
    """Operations per second of the kernels' matrix product; 0 if the kernels are not built."""
    if library() is None:
        return 0.0
    bits = RawTensor(np.full((_PRODUCT_SIZE, _PRODUCT_SIZE), 0x3F80, dtype=np.uint16), "BF16")
    weight = describe_weight("ones", bits, None)
    return 2 * _PRODUCT_SIZE**3 / _best(lambda: multiply(bits.array, weight), 5)


def token_cost(model: Network, context: int) -> Cost:
    """Bytes and operations for a token after `context` others, without MTP blocks.

    Counts only the chosen routed experts and one row of the embedding. Of the state it counts the
    window, the entries attended to and the index keys scored, as bfloat16.
    """
    config = model.config
    share = config.num_experts_per_tok / config.n_routed_experts
    bytes_read = numbers = 0.0
    for name, size in model.parameter_sizes().items():
        if (
            name.startswith(("mtp.", "drafter."))
            or name.endswith("tid2eid")
            or name == "embed.weight"
        ):
            continue
        part = share if ".ffn.experts." in name else 1.0
        bytes_read += part * size.nbytes
        if size.is_matrix:
            numbers += part * size.numbers
    keys, index_keys = entries_read(config, context + 1)
    bytes_read += 2 * (keys * config.head_dim + index_keys * config.index_head_dim)
    attention = 2 * keys * config.num_attention_heads * config.head_dim
    indexing = index_keys * config.index_n_heads * config.index_head_dim
    return Cost(bytes_read, 2 * (numbers + attention + indexing))


def measure_prefill(
    runner: TokenRunner, tokens: Sequence[int], runs: int, on_start: Callable[[], object]
) -> float:
    """Seconds to prefill a prompt: the median of `runs` after one warm-up run and `on_start`."""

    def once() -> float:
        runner.start()
        start = time.perf_counter()
        runner.read(tokens)
        return time.perf_counter() - start

    once()
    on_start()
    return statistics.median(once() for _ in range(runs))


def measure_decode(
    runner: TokenRunner,
    count: int,
    runs: int,
    typical: Callable[[Sequence[float]], float] = statistics.median,
) -> float:
    """Seconds per decoded token after the runner's context: the median of `runs` of the `typical`
    one of `count` tokens."""
    token = runner.read([0])
    medians = []
    for _ in range(runs):
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            token = runner.read([token])
            seconds.append(time.perf_counter() - start)
        medians.append(typical(seconds))
    return statistics.median(medians)


def measure(
    model: Network,
    runner: TokenRunner,
    ceilings: Ceilings,
    *,
    prefill: Sequence[int],
    decode: int,
    context: int,
    runs: int,
    on_read: Callable[[int], object] = lambda done: None,
    disk: DiskMeter | None = None,
) -> list[Measurement]:
    """Measure prefill at each length, then decoding after `context` tokens. The context's own
    prefill is a row too. Calls `on_read` with the number of context tokens read so far."""
    generator = np.random.default_rng(0)
    vocabulary = model.config.vocab_size
    disk = disk or DiskMeter(model)
    rows = []
    for length in prefill:
        tokens = generator.integers(vocabulary, size=length).tolist()
        seconds = measure_prefill(runner, tokens, runs, disk.start)
        limit = ceilings.flops_per_second / token_cost(model, length // 2).flops
        use = disk.use(runs * length)
        if use is not None and use.disk_seconds:
            limit = min(limit, 1 / use.disk_seconds)
        rows.append(Measurement("prefill", length, 0, length / seconds, limit, use))
    if decode:
        runner.start()
        if context:
            before = generator.integers(vocabulary, size=context).tolist()
            start, done = time.perf_counter(), 0
            for first in range(0, context, _CHUNK_TOKENS):
                piece = before[first : first + _CHUNK_TOKENS]
                runner.read(piece)
                done += len(piece)
                on_read(done)
            speed = context / (time.perf_counter() - start)
            limit = ceilings.flops_per_second / token_cost(model, context // 2).flops
            rows.append(Measurement("prefill", context, 0, speed, limit))
        disk.start()
        # Tokens differ in what they read from disk; without that only other work is in the way.
        typical = statistics.median if model.store is None else statistics.fmean
        seconds = measure_decode(runner, decode, runs, typical)
        use = disk.use(runs * decode + 1)
        least = token_cost(model, context).bytes / ceilings.read_bytes_per_second
        limit = 1 / (least + (0.0 if use is None else use.disk_seconds))
        rows.append(Measurement("decode", decode, context, 1 / seconds, limit, use))
    return rows


def between(before: Sequence[Measurement], after: Sequence[Measurement]) -> list[Measurement]:
    """Means of the same measurements before and after a peer's."""
    return [
        replace(one, tokens_per_second=(one.tokens_per_second + other.tokens_per_second) / 2)
        for one, other in zip(before, after, strict=True)
    ]


def _best(work: Callable[[], object], runs: int) -> float:
    """Shortest time of several runs, in seconds."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])
