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
from sounding.model.state import TensorState, growing_state, packed_state
from sounding.model.transformer import MTPBlock, Transformer
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

    def __init__(self, model: Transformer) -> None:
        self.model, self.config = model, model.config
        self.dtype_name = str(model.dtype).removeprefix("torch.")
        self._device = next(model.parameters()).device

    @property
    def num_mtp_blocks(self) -> int:
        return len(self.model.mtp)

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
        made = model.predict(self._tokens(tokens), rows, lengths, states)
        chosen = torch.stack([routed.chosen for routed in made.routing])
        return Prediction(_array(made.streams), _array(chosen), _array(made.logits.float()))

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
        given = self._streams(streams)
        made = self.model.draft(given, self._tokens(next_tokens), lengths, states, depth=depth)
        return _array(made.streams)

    @torch.inference_mode()
    def logits(self, streams: Streams) -> NDArray[np.float32]:
        model = self.model
        return _array(model.logits(model.hidden(self._streams(streams))).float())

    @torch.inference_mode()
    def draft_logits(self, streams: Streams, *, depth: int = 0) -> NDArray[np.float32]:
        block = self.model.mtp[depth]
        assert isinstance(block, MTPBlock)
        return _array(self.model.logits(block.hidden(self._streams(streams))).float())

    def _tokens(self, tokens: Sequence[int]) -> Tensor:
        require_tokens(tokens, self.config.vocab_size)
        given = torch.tensor(list(tokens), dtype=torch.long)
        return given.to(self._device)

    def _streams(self, streams: Streams) -> Tensor:
        given = torch.from_numpy(np.ascontiguousarray(streams))
        return given.view(self.model.dtype).to(self._device)


def _array(tensor: Tensor) -> NDArray[Any]:
    plain = tensor.detach().cpu().contiguous()
    return (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy()
