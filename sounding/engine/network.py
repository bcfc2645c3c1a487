"""The network interface of the engine, implemented by the C++ kernels and the PyTorch reference.

Arrays are NumPy's. Streams are opaque to the engine: it stores rows of them, concatenates them and
passes them back.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sounding.config import ModelConfig
from sounding.state.sequence_state import SequenceState
from sounding.weights.adapters import Adapter
from sounding.weights.raw import ParameterSize

if TYPE_CHECKING:
    from sounding.native.expert_store import ExpertStats
    from sounding.weights.memory_plan import MemoryPlan

Streams = NDArray[Any]
"""Residual streams of tokens, [t, m, c]: what the output layer and the drafters read. A network
with a DSpark drafter appends the taps of the layers that it reads, [t, m + l, c]."""
State = SequenceState[Any]


@runtime_checkable
class Prediction(Protocol):
    """The result of a chunk: its streams, and the logits of some of its rows."""

    @property
    def streams(self) -> Streams: ...

    @property
    def chosen(self) -> NDArray[np.int64]:
        """Experts of each layer and token, [layers, t, k]."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits of the requested rows, [rows, vocabulary]."""


@runtime_checkable
class DraftBlock(Protocol):
    """Drafts of several tokens at once, before their correction."""

    @property
    def hidden(self) -> NDArray[Any]:
        """Rows for `BlockDrafter.correct`, [n, b, c]."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """Scores of the tokens behind each anchor, [n, b, vocabulary]."""


@runtime_checkable
class Correction(Protocol):
    """What the token before a draft adds to its scores."""

    @property
    def bias(self) -> NDArray[np.float32]:
        """To be added to the logits, [n, vocabulary]."""

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Logits of the probability that a draft is accepted if all before it were, [n]."""


@runtime_checkable
class BlockDrafter(Protocol):
    """The DSpark drafter of a network. `state.blocks` holds what it has read."""

    block_size: int
    """Tokens drafted at once."""

    def read(self, streams: Streams, lengths: Sequence[int], states: Sequence[State]) -> None:
        """Append tokens of the network, lengths[i] to the sequence of states[i]."""

    def draft(self, anchors: Sequence[int], states: Sequence[State]) -> DraftBlock:
        """Draft behind anchors[i], the last token of a sequence of which the drafter has read all
        others, or the last window of them. The states do not change."""

    def correct(self, hidden: NDArray[Any], previous: Sequence[int]) -> Correction:
        """The correction of one row of each block, hidden[i] of [n, c], by the token before its
        own: the draft of the row before, or the anchor."""


@runtime_checkable
class ExpertSupply(Protocol):
    """Routed experts that are read from disk as steps need them."""

    plan: "MemoryPlan | None"
    cancelled: "Callable[[], bool] | None"
    """Asked within a step; True ends it with `StepCancelled`."""

    def stats(self) -> "ExpertStats":
        """Its counters now; may be called from any thread."""

    def close(self) -> None:
        """Stop reading. Safe to call twice."""


@runtime_checkable
class Network(Protocol):
    """A loaded network. Only one thread calls it at a time."""

    config: ModelConfig
    dtype_name: str
    """The dtype of its arithmetic, such as "bfloat16"."""
    tries_exact_splits: bool
    """True if results may be bit-identical however a sequence is split."""

    @property
    def store(self) -> ExpertSupply | None:
        """Where its routed experts come from if not all are in memory."""

    @property
    def num_mtp_blocks(self) -> int:
        """Number of MTP blocks."""

    @property
    def block_drafter(self) -> BlockDrafter | None:
        """The DSpark drafter, if the network has one."""

    @property
    def num_parameters(self) -> int:
        """Number of weights."""

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""

    @property
    def identity(self) -> str:
        """What decides rounding besides weights and config: program, dtype, processor."""

    def fingerprint(self) -> str:
        """A digest of all bytes of its weights."""

    def parameter_sizes(self) -> Mapping[str, ParameterSize]:
        """Every stored tensor by name."""

    def new_state(self, *, rewind_tokens: int = 0, packed_tokens: int | None = None) -> State:
        """The state of a sequence that has no tokens yet. With `packed_tokens` it has room for so
        many tokens in the deployed formats, and no more."""

    def load_adapter(self, adapter: Adapter) -> Any:
        """What a state carries as its `adapter`, so that its sequence runs with the deltas.

        Sequences with different adapters and with none may share a step. May be called from
        another thread. Raises ValueError for deltas that fit no weight."""

    def state_bytes(self, num_tokens: int, *, rewind_tokens: int = 0) -> int:
        """Bytes of a growing `new_state` with `num_tokens`, those of a drafter included."""

    def predict(
        self,
        tokens: Sequence[int],
        rows: Sequence[int],
        lengths: Sequence[int],
        states: Sequence[State],
    ) -> Prediction:
        """Append a chunk, lengths[i] tokens to the sequence of states[i], and compute the logits
        of some rows of the chunk."""

    def draft(
        self,
        streams: Streams,
        next_tokens: Sequence[int],
        lengths: Sequence[int],
        states: Sequence[State],
        *,
        depth: int = 0,
    ) -> Streams:
        """Run MTP block `depth` on streams of the network, or of the block before;
        next_tokens[t] follows the token that streams[t] belongs to."""

    def logits(self, streams: Streams) -> NDArray[np.float32]:
        """Scores of every next token after the tokens of some streams, [t, vocabulary]."""

    def draft_logits(self, streams: Streams, *, depth: int = 0) -> NDArray[np.float32]:
        """The same for streams of MTP block `depth`."""
