"""The network that samples: the weights that are being trained, as the engine runs them.

The kernels read weights as they are deployed, so every hand-over packs the trainer's float32
numbers by the functions of checkpoint conversion, into the same memory as before. The reference
reads the trainer's tensors themselves.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sounding.engine.engine import Engine
from sounding.engine.exact import splits_are_exact
from sounding.engine.faults import DamagedModel
from sounding.engine.network import Network
from sounding.engine.requests import EngineLike
from sounding.engine.sampling import SamplingParams, distribution, log_softmax
from sounding.engine.settings import EngineSettings
from sounding.model.reference_network import ReferenceNetwork
from sounding.model.transformer import Transformer
from sounding.native.describe import NotServed
from sounding.native.network import KernelNetwork
from sounding.ops.cpu import library
from sounding.ops.quant import quantize_fp4, quantize_fp8
from sounding.simulation import DEPLOYED, EXACT
from sounding.weights.layout import BF16, Kind, parameters, storage_of
from sounding.weights.raw import RawTensor
from sounding.weights.state_dict import stacks
from sounding.weights.tensors import TORCH_DTYPES, from_torch

_log = logging.getLogger(__name__)

_PREFIX_BYTES = 256 << 20
_STEP_TOKENS = 256  # nobody waits for a first token here, so prompts are read in large pieces
_SCORED_TOKENS = 1024  # of sequences that are scored at once, and of rows whose logits exist


class Sampler:
    """An engine on the weights of a network in training, which are handed over again and again."""

    def __init__(self, model: Transformer, *, width: int = 16, reference: bool = False) -> None:
        """`reference` runs PyTorch's even where the kernels serve the network."""
        self._model, self._width, self._reference = model, width, reference
        self._tensors: dict[str, RawTensor] = {}
        self._engine: EngineLike | None = None
        self._network: Network | None = None
        self.exact = False
        """True if the same bits come out however sequences are cut and put together."""

    @property
    def network(self) -> Network:
        """The network of the last hand-over."""
        assert self._network is not None, "weights are handed over first"
        return self._network

    @property
    def engine(self) -> EngineLike:
        """The engine of the last hand-over; it has no tokenizer, so that any token may be sampled
        and none ends an answer by itself."""
        assert self._engine is not None, "weights are handed over first"
        return self._engine

    def hand_over(self) -> None:
        """Let the engine sample from the weights as they are now.

        A new engine begins with an empty prefix cache: states of the old weights are gone.
        """
        self.close()
        self._network = self._make_network()
        self.exact = splits_are_exact(self._network)
        self._engine = self._start_engine(self._network)

    def _start_engine(self, network: Network) -> EngineLike:
        return Engine(network, None, self._settings(), stop_tokens=())

    def _settings(self) -> EngineSettings:
        return EngineSettings(
            width=self._width,
            queue=max(512, 4 * self._width),
            step_tokens=_STEP_TOKENS,
            exact_splits=self.exact,
            prefix_limit_bytes=_PREFIX_BYTES,
        )

    def close(self) -> None:
        """Stop the engine. Safe to call twice."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _make_network(self) -> Network:
        model = self._model
        if self._reference or library() is None or model.dtype != torch.bfloat16:
            return ReferenceNetwork(model)
        with torch.no_grad():
            for name, tensor in deployed(model):
                self._put(name, from_torch(tensor))
        try:
            simulation = DEPLOYED if model.simulation.weights else EXACT
            return KernelNetwork(model.config, self._tensors, simulation)
        except NotServed as reason:
            _log.info("the kernels do not serve this network: %s", reason)
            return ReferenceNetwork(model)

    def _put(self, name: str, tensor: RawTensor) -> None:
        if name in self._tensors:
            np.copyto(self._tensors[name].array, tensor.array)
        else:
            self._tensors[name] = RawTensor(tensor.array.copy(), tensor.dtype)


def deployed(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network by their published names, in the formats it is deployed in.

    Those that training rounds to; where it rounds nothing, BF16.
    """
    storage = storage_of(model.config) if model.simulation.weights else BF16
    for name, group in stacks(parameters(model.config)):
        weight, kind = model.get_parameter(name).detach(), group[0].kind
        dtype, scale = storage.dtype(kind), None
        if dtype == "I8":
            weight, scale = quantize_fp4(weight)
        elif dtype == "F8_E4M3":
            weight, scale = quantize_fp8(weight)
        else:
            weight = weight.to(TORCH_DTYPES[dtype])
        for number, parameter in enumerate(group):
            stacked = kind is Kind.EXPERT
            yield parameter.name, weight[number] if stacked else weight
            if scale is not None:
                yield parameter.scale_name, scale[number] if stacked else scale


class Scored(NamedTuple):
    """What a network finds in one sequence, position by position."""

    logprobs: NDArray[np.float64]
    """Of each token behind the first `begin`, as the network gives it."""
    sampled: NDArray[np.float64]
    """The same in the distribution that it was sampled from; the same array, where that is the
    network's own."""
    chosen: NDArray[np.int16]
    """Experts of every token of the sequence, [layers, t, k]."""
    kept: list[NDArray[np.int32]] | None
    """Tokens that the sampler left, for each token; None where it left all."""


def score(
    network: Network,
    sequences: Sequence[Sequence[int]],
    begins: Sequence[int],
    params: SamplingParams,
) -> list[Scored]:
    """Read sequences anew, and find what sampling the tokens from begins[i] on has found.

    With a network whose splits are exact every number is that of sampling, to the bit. Raises
    DamagedModel where logits are not finite.
    """
    found: list[Scored] = []
    for low, high in _portions(sequences):
        found += _score(network, sequences[low:high], begins[low:high], params)
    return found


def _portions(sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Ranges of sequences that are read at once."""
    low = held = 0
    for index, sequence in enumerate(sequences):
        if index > low and held + len(sequence) > _SCORED_TOKENS:
            yield low, index
            low, held = index, 0
        held += len(sequence)
    if low < len(sequences):
        yield low, len(sequences)


def _score(
    network: Network,
    sequences: Sequence[Sequence[int]],
    begins: Sequence[int],
    params: SamplingParams,
) -> list[Scored]:
    tokens = [token for sequence in sequences for token in sequence]
    lengths = [len(sequence) for sequence in sequences]
    states = [network.new_state() for _ in sequences]
    made = network.predict(tokens, (), lengths, states)
    found, low = [], 0
    for sequence, begin in zip(sequences, begins, strict=True):
        streams = made.streams[low + begin - 1 : low + len(sequence) - 1]
        found.append(
            _read(network, streams, sequence[begin:], params,
                  made.chosen[:, low : low + len(sequence)].astype(np.int16))
        )  # fmt: skip
        low += len(sequence)
    return found


def _read(
    network: Network,
    streams: NDArray[np.generic],
    targets: Sequence[int],
    params: SamplingParams,
    chosen: NDArray[np.int16],
) -> Scored:
    """The logprobs of some tokens, from the streams in front of them."""
    whole = params.top_p == 1 and params.top_k == 0 and params.min_p == 0
    plain = whole and params.temperature == 1
    logprobs = np.empty(len(targets))
    sampled = logprobs if plain else np.empty(len(targets))
    kept: list[NDArray[np.int32]] = []
    for low in range(0, len(targets), _SCORED_TOKENS):
        logits = network.logits(streams[low : low + _SCORED_TOKENS])
        if not np.isfinite(logits).all():
            raise DamagedModel(f"of token {low}")
        rows, here = np.arange(len(logits)), np.asarray(targets[low : low + _SCORED_TOKENS])
        logprobs[low : low + len(rows)] = log_softmax(logits)[rows, here]
        for row, target in enumerate([] if plain else here):
            # Where splits are not exact, a token at the very edge of a limit may fall behind it.
            left = np.union1d(distribution(logits[row], params).nonzero()[0], target)
            scores = log_softmax(logits[row, left].astype(np.float64) / params.temperature)
            sampled[low + row] = scores[np.searchsorted(left, target)]
            if not whole:
                kept.append(left.astype(np.int32))
    return Scored(logprobs, sampled, chosen, None if whole else kept)
