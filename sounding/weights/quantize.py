"""Rewrite a checkpoint in other number formats, and report the rounding error.

Tensors pass through one at a time, large ones in slabs of rows, so memory stays small for any
model. Where two formats hold the same numbers nothing is rounded: FP4 becomes FP8 by moving bits.
Source: docs/checkpoints.md 3 to 5, docs/architecture.md 9.4.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod, sqrt
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from sounding.config import ModelConfig
from sounding.config_file import to_transformers
from sounding.ops.matmul import Weight
from sounding.ops.quant import (
    quantize_fp4,
    quantize_fp8,
    repack_fp4_as_fp8,
)
from sounding.weights.adapters import Adapter, require_fit
from sounding.weights.checkpoint import Checkpoint, reconcile
from sounding.weights.companions import companions
from sounding.weights.layout import (
    BF16,
    FLOAT32,
    FORMATS,
    FP4,
    FP8,
    WEIGHT_TILE,
    Kind,
    Parameter,
    Storage,
    StoredTensor,
    stored_as,
)
from sounding.weights.names import expert_parts, fused_place, transformers_name
from sounding.weights.tensors import TORCH_DTYPES, to_torch
from sounding.weights.writing import CheckpointWriter, new_checkpoint

Target = Literal["fp4", "fp8", "bf16", "transformers"]
PlainDtype = Literal["bfloat16", "float32"]

_SLAB_ROWS = 32 * WEIGHT_TILE  # whole tiles, and about 100 MB of float32 at hidden size 7168


@dataclass
class ErrorSummary:
    """The error made converting the weights of one component from one format to another."""

    component: str
    source: str
    target: str
    num_tensors: int = 0
    num_exact: int = 0
    """Tensors whose numbers are all the same as before."""
    num_values: int = 0
    saturated: int = 0
    """Values cut off at the largest number of their block."""
    underflowed: int = 0
    """Values other than zero that became zero."""
    max_abs_error: float = 0.0
    squared_error: float = 0.0
    squared_norm: float = 0.0

    @property
    def relative_rms(self) -> float:
        """sqrt(sum (y - x)^2 / sum x^2), over all tensors of the row."""
        return sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0


@dataclass
class Report:
    """The result of a conversion."""

    target: str
    rows: list[ErrorSummary] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """True if the result holds the same numbers as the source."""
        return all(row.num_exact == row.num_tensors for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON: keys are the fields of `ErrorSummary` and `relative_rms`."""
        rows = [{**dataclasses.asdict(row), "relative_rms": row.relative_rms} for row in self.rows]
        for row in rows:
            del row["squared_error"], row["squared_norm"]
        return {"target": self.target, "exact": self.exact, "rows": rows, "notes": self.notes}


def convert(
    checkpoint: Checkpoint,
    folder: Path,
    target: Target,
    *,
    plain: PlainDtype = "bfloat16",
    adapter: Adapter | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda num_bytes: None,
) -> Report:
    """Write `checkpoint` to `folder` in a target format, atomically.

    - fp4: as V4 is published, experts FP4, linears FP8
    - fp8: experts and linears FP8
    - bf16: everything unquantized
    - transformers: everything unquantized under the names of the transformers library; `plain`
      chooses its dtype
    Tensors already in the target's format are copied bit for bit. The deltas of an `adapter` are
    added before rounding; the report's errors are those made after that. `on_progress` is called
    with the number of source bytes done. Raises ValueError for weights that cannot be converted,
    naming file and tensor.
    """
    storage = _storage(target, plain)
    if adapter is not None:
        require_fit(adapter, checkpoint.config, "the adapter")
        if checkpoint.storage.scales != storage.scales and target in ("fp8", "fp4"):
            raise ValueError(
                f"{checkpoint.folder} has scales in {checkpoint.storage.scales}, which merged "
                "weights cannot share: merge with --to bf16 first"
            )
    moves = [
        _move(checkpoint, parameter, storage, adapter, fused=target == "transformers")
        for parameter in checkpoint.parameters
    ]
    config = _config(checkpoint, storage)
    rows: dict[tuple[str, str, str], ErrorSummary] = {}
    with new_checkpoint(
        folder,
        list({tensor.name: tensor for move in moves for tensor in move.tensors}.values()),
        to_transformers(config) if target == "transformers" else config.to_dict(),
        metadata={"format": "pt"} if target == "transformers" else None,
        overwrite=overwrite,
    ) as writer:
        for move in moves:
            source, result = FORMATS[move.source_dtype], FORMATS[move.tensors[0].dtype]
            if move.delta is not None:
                source += " + adapter"
            key = (str(move.parameter.component), source, result)
            _carry_out(move, checkpoint, writer, rows.setdefault(key, ErrorSummary(*key)))
            on_progress(source_bytes(checkpoint, move.parameter))
        for path in companions(checkpoint.folder):
            writer.copy_file(path)
    return _report(checkpoint, target, list(rows.values()))


def _storage(target: Target, plain: PlainDtype) -> Storage:
    if target == "transformers":
        return FLOAT32 if plain == "float32" else BF16
    if plain != "bfloat16":
        raise ValueError(f"dtype {plain} goes with the target transformers only, not {target}")
    return {"fp4": FP4, "fp8": FP8, "bf16": BF16}[target]


def _config(checkpoint: Checkpoint, storage: Storage) -> ModelConfig:
    """The source's config, saying what the result holds."""
    kept = storage.linears == checkpoint.storage.linears  # then so are the scales
    scales = checkpoint.storage.scales if kept else storage.scales
    return reconcile(checkpoint.config, dataclasses.replace(storage, scales=scales))


def _report(checkpoint: Checkpoint, target: Target, rows: list[ErrorSummary]) -> Report:
    report = Report(target, rows)
    if checkpoint.skipped:
        report.notes.append(
            f"{len(checkpoint.skipped)} tensors under mtp.* are not part of the network and were "
            "left out"
        )
    if target == "transformers" and any(each.drafts for each in checkpoint.parameters):
        report.notes.append(
            "transformers has no drafter: mtp.* keeps its published names, which transformers "
            "ignores on loading and does not save again"
        )
    if not report.exact:
        report.notes.append("numbers changed: converting back will not restore the source exactly")
    return report


def source_bytes(checkpoint: Checkpoint, parameter: Parameter) -> int:
    """Bytes of a parameter in its file, scales included."""
    scale = checkpoint.sources.get(parameter.scale_name)
    return checkpoint.sources[parameter.name].num_bytes + (scale.num_bytes if scale else 0)


# --------------------------------------------------------------------------------------------------
# Destinations of tensors


@dataclass(frozen=True, slots=True)
class _Move:
    """One parameter on its way: the tensors it goes to, and the first row it takes there."""

    parameter: Parameter
    source_dtype: str
    tensors: tuple[StoredTensor, ...]
    first_row: int = 0
    delta: tuple[Tensor, Tensor] | None = None
    """To add: the factor and B [o, r] in one, and A [r, i], in float32."""


def _move(
    checkpoint: Checkpoint,
    parameter: Parameter,
    storage: Storage,
    adapter: Adapter | None,
    *,
    fused: bool,
) -> _Move:
    move = _plain_move(checkpoint, parameter, storage, fused=fused)
    return dataclasses.replace(move, delta=_delta(parameter, adapter))


def _delta(parameter: Parameter, adapter: Adapter | None) -> tuple[Tensor, Tensor] | None:
    parts = expert_parts(parameter.name)
    module = f"{parts[0]}.{parts[2]}" if parts else parameter.name.removesuffix(".weight")
    found = adapter.deltas.get(module) if adapter is not None else None
    if adapter is None or found is None:
        return None
    low, high = (to_torch(part).float() for part in found)
    if parts:
        low, high = low[parts[1]], high[parts[1]]
    return adapter.factor * high, low


def _plain_move(
    checkpoint: Checkpoint, parameter: Parameter, storage: Storage, *, fused: bool
) -> _Move:
    source = checkpoint.sources[parameter.name].dtype
    dtype = storage.dtype(parameter.kind)
    scale = checkpoint.sources.get(parameter.scale_name)
    scales = scale.dtype if scale is not None and source == dtype else storage.scales
    tensors = stored_as(parameter, dtype, scales)
    if not fused or parameter.drafts:
        return _Move(parameter, source, tensors)
    parts = expert_parts(parameter.name)
    if parts is None:
        renamed = dataclasses.replace(tensors[0], name=transformers_name(parameter.name))
        return _Move(parameter, source, (renamed,))
    prefix, expert, linear = parts
    name, position, count = fused_place(prefix, linear)
    rows, columns = parameter.shape
    whole = StoredTensor(name, (checkpoint.config.n_routed_experts, count * rows, columns), dtype)
    return _Move(parameter, source, (whole,), (expert * count + position) * rows)


def _carry_out(
    move: _Move, checkpoint: Checkpoint, writer: CheckpointWriter, summary: ErrorSummary
) -> None:
    """Convert one parameter slab by slab, adding the error made to `summary`."""
    dtype = TORCH_DTYPES[move.tensors[0].dtype]
    exact = True
    for row, weight, scale in _slabs(*checkpoint.read_packed(move.parameter)):
        if move.delta is not None:
            high, low = move.delta
            dense = Weight(weight, scale).dense(torch.float32)
            weight, scale = torch.addmm(dense, high[row : row + len(weight)], low), None
        try:
            result, result_scale = _requantize(weight, scale, dtype)
        except ValueError as error:
            where = checkpoint.sources[move.parameter.name].where
            raise ValueError(f"{where}: {error}") from error
        if result.dtype != weight.dtype and move.parameter.kind is not Kind.TABLE:
            exact &= _measure(weight, scale, result, result_scale, summary)
        writer.put(move.tensors[0].name, result, move.first_row + row)
        if result_scale is not None:
            writer.put(move.tensors[1].name, result_scale, row // _rows_per_scale(result))
    summary.num_tensors += 1
    summary.num_exact += exact
    summary.num_values += prod(move.parameter.shape)


def _slabs(weight: Tensor, scale: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """A stored weight in pieces of whole tiles, each with its first row and its scales."""
    for row in range(0, len(weight), _SLAB_ROWS):
        step = _rows_per_scale(weight)
        piece = None if scale is None else scale[row // step : -(-(row + _SLAB_ROWS) // step)]
        yield row, weight[row : row + _SLAB_ROWS], piece


def _rows_per_scale(weight: Tensor) -> int:
    return WEIGHT_TILE if weight.dtype == torch.float8_e4m3fn else 1


# --------------------------------------------------------------------------------------------------
# Numbers


def _requantize(
    weight: Shaped[Tensor, "..."], scale: Shaped[Tensor, "..."] | None, dtype: torch.dtype
) -> tuple[Shaped[Tensor, "..."], Shaped[Tensor, "..."] | None]:
    """A stored weight in another stored dtype, with its scales; without rounding where possible."""
    if weight.dtype == dtype or dtype == torch.int64:
        return weight.to(dtype), scale
    if weight.dtype == torch.int8 and dtype == torch.float8_e4m3fn:
        assert scale is not None
        with suppress(ValueError):  # scales too far apart within a tile: round like the rest
            return repack_fp4_as_fp8(weight, scale)
    numbers = Weight(weight, scale).dense(torch.float32)
    if not torch.isfinite(numbers).all():
        raise ValueError("holds numbers that are not finite, which no conversion can keep")
    if dtype == torch.float8_e4m3fn:
        return quantize_fp8(numbers)
    if dtype == torch.int8:
        return quantize_fp4(numbers)
    return numbers.to(dtype), None


def _measure(
    weight: Shaped[Tensor, "..."],
    scale: Shaped[Tensor, "..."] | None,
    result: Shaped[Tensor, "..."],
    result_scale: Shaped[Tensor, "..."] | None,
    summary: ErrorSummary,
) -> bool:
    """Add the difference of two stored weights to `summary`; return True if they are equal."""
    before = Weight(weight, scale).dense(torch.float32)
    after = Weight(result, result_scale).dense(torch.float32)
    if torch.equal(before, after):
        summary.squared_norm += float(before.double().square().sum())
        return True
    error = (after - before).abs()
    limit = Weight(_largest(result), result_scale).dense(torch.float32)
    summary.saturated += int(((after.abs() >= limit) & (before.abs() > limit)).sum())
    summary.underflowed += int(((before != 0) & (after == 0)).sum())
    summary.max_abs_error = max(summary.max_abs_error, float(error.max()))
    summary.squared_error += float(error.double().square().sum())
    summary.squared_norm += float(before.double().square().sum())
    return False


def _largest(weight: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """A stored weight whose every number is the largest its format has."""
    if weight.dtype == torch.int8:
        return torch.full_like(weight, 0x77)  # two codes of 6
    return torch.full_like(weight, torch.finfo(weight.dtype).max)
