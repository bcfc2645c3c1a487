"""A `Network` of the engine on the C++ kernels: tokens to logits in one call.

It computes in bfloat16 from weights in their stored formats, without PyTorch. It raises `NotServed`
for networks that the kernels do not support, which the PyTorch reference then runs.
"""

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sounding.config import ModelConfig
from sounding.native.adapters import KernelAdapter
from sounding.native.describe import NetworkDescription, pointers
from sounding.native.dspark import KernelDrafter
from sounding.native.expert_store import ExpertStore
from sounding.native.kernels import INT, STEP_ENDED, address, kernels, threads_argument
from sounding.native.state import (
    KernelLayer,
    KernelState,
    growing_row_bytes,
    growing_state,
    join_addresses,
    lists_of,
    packed_state,
)
from sounding.native.structs import NativeEnds
from sounding.simulation import EXACT, Simulation
from sounding.state.row_layout import all_lists
from sounding.state.token_ids import require_tokens
from sounding.weights.adapters import Adapter
from sounding.weights.digest import weights_digest
from sounding.weights.raw import ParameterSize, RawTensor, parameter_size

PIECE_TOKENS = 1024  # of a long chunk at a time, so that intermediate results fit the caches
_DONE = -1  # returned by network_run; STEP_ENDED, or the index of a list without room

Streams = NDArray[np.uint16]
"""Residual streams of tokens, [t, m, c], bfloat16 as bits."""


class Prediction(NamedTuple):
    """The result of a chunk, and the logits of some of its rows."""

    streams: Streams
    chosen: NDArray[np.int64]
    """Experts of each layer and token, [layers, t, k]."""
    scores: NDArray[np.float32]
    """Router scores of all experts, [layers, t, e]."""
    logits: NDArray[np.float32]
    """Logits of the requested rows, [rows, vocabulary]."""
    taps: Streams | None = None
    """What a DSpark drafter reads, [t, l, c]; `predict` appends it to the streams."""


class KernelNetwork:
    """A network whose every operation runs in C++."""

    dtype_name = "bfloat16"
    tries_exact_splits = True

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, RawTensor],
        simulation: Simulation = EXACT,
        *,
        store: ExpertStore | None = None,
        piece_tokens: int = PIECE_TOKENS,
    ) -> None:
        """`tensors` by their published names; with `store` the routed experts come from there.
        Chunks are run `piece_tokens` at a time. Raises NotServed."""
        self.config, self.tensors, self.simulation = config, tensors, simulation
        self.store, self.piece_tokens = store, piece_tokens
        self._description = NetworkDescription(config, tensors, simulation, store)
        self._layers = pointers(self._description.layers)
        self._taps = _tap_places(config)
        dspark = self._description.dspark
        self._dspark = None if dspark is None else KernelDrafter(config, self._description, dspark)

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def num_mtp_blocks(self) -> int:
        """Number of MTP blocks."""
        return len(self._description.drafts)

    @property
    def block_drafter(self) -> KernelDrafter | None:
        """The DSpark drafter, if the network has one."""
        return self._dspark

    @property
    def num_parameters(self) -> int:
        """Number of weights, without scales."""
        sizes = self.parameter_sizes().items()
        return sum(size.numbers for name, size in sizes if not name.endswith(".scale"))

    @property
    def identity(self) -> str:
        """See `Network`: library, instruction set, simulation."""
        library = hashlib.sha256(Path(kernels()._name).read_bytes()).hexdigest()
        return f"kernels {library} {kernels().instructions_in_use()} {self.simulation}"

    def fingerprint(self) -> str:
        """A digest of all bytes of the weights."""
        return weights_digest(self.tensors)

    def parameter_sizes(self) -> dict[str, ParameterSize]:
        """Every stored tensor by name."""
        return {name: parameter_size(name, tensor) for name, tensor in self.tensors.items()}

    def new_state(self, *, rewind_tokens: int = 0, packed_tokens: int | None = None) -> KernelState:
        """The state of a sequence that has no tokens yet; see `Network`."""
        if packed_tokens is None:
            return growing_state(self.config, rewind_tokens=rewind_tokens)
        return packed_state(self.config, max_tokens=packed_tokens, rewind_tokens=rewind_tokens)

    def load_adapter(self, adapter: Adapter) -> KernelAdapter:
        """An adapter as a state carries it; see `Network`."""
        return KernelAdapter(adapter, self.config)

    def state_bytes(self, num_tokens: int, *, rewind_tokens: int = 0) -> int:
        """Bytes that a growing state needs for so many tokens, without its spare rows."""
        lists = all_lists(self.config, rewind_tokens=rewind_tokens)
        return sum(rows.slots(num_tokens) * growing_row_bytes(rows) for rows in lists)

    def predict(
        self,
        tokens: Sequence[int],
        rows: Sequence[int],
        lengths: Sequence[int],
        states: Sequence[KernelState],
    ) -> Prediction:
        """See `Network`. Raises ValueError for a token outside the vocabulary, before any state
        changes. ExpertReadError and StepCancelled end a step within: its states are then of no
        further use."""
        given = np.asarray(tokens, dtype=np.int64)
        if sum(lengths) != len(given) or min(lengths, default=0) < 0:
            raise ValueError(f"lengths {list(lengths)} must add up to {len(given)} tokens")
        require_tokens(given, self.config.vocab_size)
        if len(rows) and not 0 <= min(rows) <= max(rows) < len(given):
            raise ValueError(f"rows {list(rows)} must be among the {len(given)} of the chunk")
        config = self.config
        count, layers = len(given), len(self._description.layers)
        made = Prediction(
            np.empty((count, config.hc_mult, config.hidden_size), dtype=np.uint16),
            np.empty((layers, count, config.num_experts_per_tok), dtype=np.int64),
            np.empty((layers, count, config.n_routed_experts), dtype=np.float32),
            np.empty((len(rows), config.vocab_size), dtype=np.float32),
            self._room_for_taps(count),
        )
        layer_states = [state.layers for state in states]
        adapters = [state.adapter for state in states]
        if count <= self.piece_tokens:
            ends = self._description.ends
            self._run(self._layers, ends, given, rows, lengths, layer_states, made, adapters)
        else:
            self._predict_in_pieces(given, rows, lengths, layer_states, made, adapters)
        if made.taps is None:
            return made
        return made._replace(streams=np.concatenate((made.streams, made.taps), 1))

    def draft(
        self,
        streams: Streams,
        next_tokens: Sequence[int],
        lengths: Sequence[int],
        states: Sequence[KernelState],
        *,
        depth: int = 0,
    ) -> Streams:
        """See `Network`: `draft_logits` of the result predict the token after next_tokens[t]."""
        tokens = np.asarray(next_tokens, dtype=np.int64)
        require_tokens(tokens, self.config.vocab_size)
        block = self._description.drafts[depth]
        streams = np.ascontiguousarray(streams[:, : self.config.hc_mult])  # without taps
        made = np.empty_like(streams)
        kernels().network_begin_draft(
            ctypes.byref(self._description.network),
            ctypes.byref(block.begins),
            address(streams),
            address(tokens),
            INT(len(tokens)),
            address(made),
            threads_argument(),
        )
        config, count = self.config, len(tokens)
        done = Prediction(
            made,
            np.empty((1, count, config.num_experts_per_tok), dtype=np.int64),
            np.empty((1, count, config.n_routed_experts), dtype=np.float32),
            np.empty((0, config.vocab_size), dtype=np.float32),
        )
        own = [[state.drafts[depth]] for state in states]
        self._run(pointers([block.layer]), None, tokens, (), lengths, own, done)
        return made

    def logits(self, streams: Streams) -> NDArray[np.float32]:
        """Scores of every next token after the tokens of some streams, [t, vocabulary]."""
        return self._logits(self._description.ends, streams[:, : self.config.hc_mult])

    def draft_logits(self, streams: Streams, *, depth: int = 0) -> NDArray[np.float32]:
        """The same for streams of MTP block `depth`."""
        return self._logits(self._description.drafts[depth].ends, streams)

    # ----------------------------------------------------------------------------------------------

    def _logits(self, ends: NativeEnds, streams: Streams) -> NDArray[np.float32]:
        made = np.empty((len(streams), self.config.vocab_size), dtype=np.float32)
        streams = np.ascontiguousarray(streams)  # kept until the kernels have read it
        kernels().network_logits(
            ctypes.byref(self._description.network),
            ctypes.byref(ends),
            address(streams),
            INT(len(streams)),
            address(made),
            threads_argument(),
        )
        return made

    def _room_for_taps(self, count: int) -> Streams | None:
        if self._taps is None:
            return None
        width = 1 + int(self._taps.max())
        return np.empty((count, width, self.config.hidden_size), dtype=np.uint16)

    def _predict_in_pieces(
        self,
        tokens: NDArray[np.int64],
        rows: Sequence[int],
        lengths: Sequence[int],
        states: Sequence[Sequence[KernelLayer]],
        made: Prediction,
        adapters: Sequence[KernelAdapter | None],
    ) -> None:
        """Run each sequence in pieces, one after the other."""
        wanted = np.asarray(rows, dtype=np.int64)
        first = 0
        for length, state, adapter in zip(lengths, states, adapters, strict=True):
            for low in range(first, first + length, self.piece_tokens):
                high = min(low + self.piece_tokens, first + length)
                here = (wanted >= low) & (wanted < high)
                part = Prediction(
                    made.streams[low:high],
                    np.empty_like(made.chosen[:, low:high], order="C"),
                    np.empty_like(made.scores[:, low:high], order="C"),
                    np.empty((int(here.sum()), self.config.vocab_size), dtype=np.float32),
                    None if made.taps is None else made.taps[low:high],
                )
                asked = (wanted[here] - low).tolist()
                ends, piece = self._description.ends, tokens[low:high]
                sizes = [high - low]
                self._run(self._layers, ends, piece, asked, sizes, [state], part, [adapter])
                made.chosen[:, low:high], made.scores[:, low:high] = part.chosen, part.scores
                made.logits[here] = part.logits
            first += length

    def _run(
        self,
        layers: "ctypes.Array[ctypes.c_void_p]",
        ends: NativeEnds | None,
        tokens: NDArray[np.int64],
        rows: Sequence[int],
        lengths: Sequence[int],
        states: Sequence[Sequence[KernelLayer]],
        made: Prediction,
        adapters: Sequence[KernelAdapter | None] = (),
    ) -> None:
        """Call the kernels, after making room in lists that lack it."""
        lists = [lists_of(layers) for layers in states]
        given = (
            ctypes.byref(self._description.network),
            layers,
            INT(len(layers)),
            None if ends is None else ctypes.byref(ends),
            address(made.streams),
            address(tokens),
            INT(len(tokens)),
            (INT * len(lengths))(*lengths),
            INT(len(lengths)),
            join_addresses(lists),
            address(made.chosen),
            address(made.scores),
            (INT * len(rows))(*rows),
            INT(len(rows)),
            address(made.logits),
            *self._tap_arguments(made.taps),
            threads_argument(),
            _addresses(adapters),
        )
        if self.store is not None and ends is not None:
            self._read_ahead(tokens)
        while (crowded := kernels().network_run(*given)) >= 0:
            sequence, number = divmod(crowded, len(lists[0].rows))
            full = lists[sequence].rows[number]
            assert full is not None
            full.make_room(lengths[sequence])
        if crowded == STEP_ENDED:
            assert self.store is not None
            raise self.store.take_error()
        assert crowded == _DONE, "tokens were checked before"

    def _read_ahead(self, tokens: NDArray[np.int64]) -> None:
        """Begin to read the experts of hash layers, which tokens alone decide."""
        assert self.store is not None
        self.store.begin_step()
        for layer, table in enumerate(self._description.tables):
            chosen = table[tokens].ravel()
            self.store.expect(layer, list(dict.fromkeys(chosen.tolist())))

    def _tap_arguments(self, taps: Streams | None) -> tuple[Any, ...]:
        if taps is None or self._taps is None:
            return None, INT(0), None
        return address(self._taps), INT(taps.shape[1]), address(taps)


def _tap_places(config: ModelConfig) -> NDArray[np.int64] | None:
    """For each layer its place among the taps, or -1; None without a drafter that reads them."""
    if config.dspark is None:
        return None
    places = np.full(config.num_hidden_layers, -1, dtype=np.int64)
    layers = list(config.dspark.target_layer_ids)
    places[layers] = np.arange(len(layers))
    return places


def _addresses(adapters: Sequence[KernelAdapter | None]) -> Any:
    """The first layer of each sequence's adapter, None for a step of the base alone."""
    if not any(adapters):
        return None
    found = (None if adapter is None else ctypes.addressof(adapter.layers) for adapter in adapters)
    return (ctypes.c_void_p * len(adapters))(*found)
