"""The PyTorch reference as a `Network` of the engine: NumPy arrays in and out.

For cases the C++ kernels do not serve: other dtypes, shapes and devices, and machines without a
compiler. Slower, with the same results up to rounding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sounding.model.adapters import adapted
from sounding.model.dspark import DSpark
from sounding.model.state import TensorState, growing_state, packed_state
from sounding.model.transformer import Transformer
from sounding.state.row_layout import all_lists
from sounding.state.token_ids import require_tokens
from sounding.weights.adapters import Adapter
from sounding.weights.digest import weights_digest
from sounding.weights.raw import ParameterSize, parameter_size
from sounding.weights.tensors import from_torch

Streams = NDArray[Any]


class Prediction(NamedTuple):
    """The result of a chunk: its streams, and the logits of some of its rows."""

    streams: Streams
    chosen: NDArray[np.int64]
    """Experts of each layer and token, [layers, t, k]."""
    logits: NDArray[np.float32]
    """Logits of the requested rows, [rows, vocabulary]."""


class ReferenceNetwork:
    """A `Transformer` without gradients. bfloat16 streams are arrays of their bits, uint16."""

    # It multiplies matrices with whatever algorithm is the fastest for their shape.
    tries_exact_splits = False
    store = None  # all experts are in memory

    def __init__(self, model: Transformer) -> None:
        self.model, self.config = model, model.config
        self.dtype_name = str(model.dtype).removeprefix("torch.")
        self._device = next(model.parameters()).device

    @property
    def num_mtp_blocks(self) -> int:
        return len(self.model.mtp_blocks)

    @property
    def block_drafter(self) -> "ReferenceDrafter | None":
        dspark = self.model.dspark
        return None if dspark is None else ReferenceDrafter(self, dspark)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def nbytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @property
    def identity(self) -> str:
        """What decides rounding besides weights and config."""
        switches = ("simulate", "simulate_weight", "simulation")
        found = [
            f"{name} {switch} {getattr(module, switch)}"
            for name, module in self.model.named_modules()
            for switch in switches
            if hasattr(module, switch)
        ]
        capability = torch.backends.cpu.get_cpu_capability()
        return f"torch {torch.__version__} {capability} {self.dtype_name} {found}"

    def fingerprint(self) -> str:
        """A digest of all bytes of the weights."""
        return weights_digest(
            {name: from_torch(parameter) for name, parameter in self.model.named_parameters()}
        )

    def parameter_sizes(self) -> dict[str, ParameterSize]:
        return {
            name: parameter_size(name, from_torch(parameter))
            for name, parameter in self.model.named_parameters()
        }

    def new_state(self, *, rewind_tokens: int = 0, packed_tokens: int | None = None) -> TensorState:
        if packed_tokens is None:
            return growing_state(self.config, rewind_tokens=rewind_tokens)
        return packed_state(self.config, max_tokens=packed_tokens, rewind_tokens=rewind_tokens)

    def load_adapter(self, adapter: Adapter) -> Transformer:
        """A network with the deltas merged in; see `Network`."""
        return adapted(self.model, adapter)

    def state_bytes(self, num_tokens: int, *, rewind_tokens: int = 0) -> int:
        lists = all_lists(self.config, rewind_tokens=rewind_tokens)
        numbers = sum(rows.kept_rows(num_tokens) * rows.width for rows in lists)
        return numbers * self.model.dtype.itemsize

    @torch.inference_mode()
    def predict(
        self,
        tokens: Sequence[int],
        rows: Sequence[int],
        lengths: Sequence[int],
        states: Sequence[TensorState],
    ) -> Prediction:
        """See `Network`. Raises ValueError for a token outside the vocabulary."""
        adapters = [state.adapter for state in states]
        if any(adapter is not adapters[0] for adapter in adapters):
            return self._predict_apart(tokens, rows, lengths, states)
        model = (adapters[0] if adapters else None) or self.model
        made = model.predict(self.tokens(tokens), rows, lengths, states)
        chosen = torch.stack([routed.chosen for routed in made.routing])
        streams = made.streams if made.taps is None else torch.cat((made.streams, made.taps), 1)
        return Prediction(_array(streams), _array(chosen), _array(made.logits.float()))

    def _predict_apart(
        self,
        tokens: Sequence[int],
        rows: Sequence[int],
        lengths: Sequence[int],
        states: Sequence[TensorState],
    ) -> Prediction:
        """Sequence by sequence, since they have different adapters."""
        parts, first = [], 0
        for length, state in zip(lengths, states, strict=True):
            here = [row - first for row in rows if first <= row < first + length]
            parts.append(self.predict(tokens[first : first + length], here, [length], [state]))
            first += length
        if list(rows) != sorted(rows):
            raise ValueError(f"rows {list(rows)} must ascend where sequences have adapters")
        return Prediction(
            np.concatenate([part.streams for part in parts]),
            np.concatenate([part.chosen for part in parts], 1),
            np.concatenate([part.logits for part in parts]),
        )

    @torch.inference_mode()
    def draft(
        self,
        streams: Streams,
        next_tokens: Sequence[int],
        lengths: Sequence[int],
        states: Sequence[TensorState],
        *,
        depth: int = 0,
    ) -> Streams:
        given = self.tensor(streams)[:, : self.config.hc_mult]  # without taps
        made = self.model.draft(given, self.tokens(next_tokens), lengths, states, depth=depth)
        return _array(made.streams)

    @torch.inference_mode()
    def logits(self, streams: Streams) -> NDArray[np.float32]:
        model = self.model
        given = self.tensor(streams)[:, : self.config.hc_mult]
        return _array(model.logits(model.hidden(given)).float())

    @torch.inference_mode()
    def draft_logits(self, streams: Streams, *, depth: int = 0) -> NDArray[np.float32]:
        hidden = self.model.mtp_blocks[depth].hidden(self.tensor(streams))
        return _array(self.model.logits(hidden).float())

    def tokens(self, tokens: Sequence[int]) -> Tensor:
        """As the model takes them. Raises ValueError for one outside the vocabulary."""
        require_tokens(tokens, self.config.vocab_size)
        given = torch.tensor(list(tokens), dtype=torch.long)
        return given.to(self._device)

    def tensor(self, rows: NDArray[Any]) -> Tensor:
        """Rows that this network has returned, as the model takes them."""
        given = torch.from_numpy(np.ascontiguousarray(rows))
        return given.view(self.model.dtype).to(self._device)


class DraftBlock(NamedTuple):
    """Drafts of several tokens at once, before their correction."""

    hidden: NDArray[Any]
    logits: NDArray[np.float32]


class Correction(NamedTuple):
    """What the token before a draft adds to its scores."""

    bias: NDArray[np.float32]
    confidence: NDArray[np.float32]


class ReferenceDrafter:
    """The DSpark drafter of a reference network, a `BlockDrafter` of the engine."""

    def __init__(self, network: ReferenceNetwork, dspark: DSpark) -> None:
        self._network, self._dspark = network, dspark
        self.block_size = dspark.block_size

    @torch.inference_mode()
    def read(self, streams: Streams, lengths: Sequence[int], states: Sequence[TensorState]) -> None:
        taps = self._network.tensor(streams)[:, self._network.config.hc_mult :]
        self._dspark.read(taps, lengths, [state.blocks for state in states])

    @torch.inference_mode()
    def draft(self, anchors: Sequence[int], states: Sequence[TensorState]) -> DraftBlock:
        made = self._network.model.draft_block(self._network.tokens(anchors), states)
        return DraftBlock(_array(made.hidden), _array(made.logits.float()))

    @torch.inference_mode()
    def correct(self, hidden: NDArray[Any], previous: Sequence[int]) -> Correction:
        rows = self._network.tensor(hidden)
        made = self._dspark.correct(rows, self._network.tokens(previous))
        return Correction(_array(made.bias.float()), _array(made.confidence.float()))


def _array(tensor: Tensor) -> NDArray[Any]:
    plain = tensor.detach().cpu().contiguous()
    return (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy()
