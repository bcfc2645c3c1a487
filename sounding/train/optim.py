"""Muon for matrices, AdamW for the rest, and the learning rate as a function of the step.

Which parameter goes where follows the report; of what it leaves open, `ape` (2-D) and `attn_sink`
(1-D) go to AdamW: both are tables of biases, and a bias table has no directions to orthogonalise.
The gate's bias and the hash table take no gradient and belong to neither.
Source: docs/training.md 5.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sounding.ops import muon
from sounding.parallel.group import ALONE, Group
from sounding.parallel.matrices import WholeMatrices, is_cut
from sounding.parallel.sharding import local, logical, part_like, whole
from sounding.train.run_config import OptimizerConfig, TrainConfig
from sounding.train.side_by_side import side_by_side

# Last part of the name of a parameter that is no matrix of a linear map.
_ADAMW_LEAVES = ("ape", "attn_sink")
_ADAMW_SUFFIXES = ("_base", "_scale")  # of the hyper-connections


def learning_rate(step: int, schedule: TrainConfig) -> float:
    """Rate of step 0, 1, ...: linear from 0 over `warmup_steps`, constant, cosine to the end.

    The decay covers the last `decay_steps` of `steps` and ends at `final_lr`.
    """
    peak, final = schedule.lr, schedule.final_lr
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    done = decay_progress(step, schedule)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))


def decay_progress(step: int, schedule: TrainConfig) -> float:
    """0 until the decay starts, 1 at the last step."""
    begun = step + 1 - (schedule.steps - schedule.decay_steps)
    return min(1.0, max(0.0, begun / schedule.decay_steps)) if schedule.decay_steps else 0.0


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, matrix by matrix.

    M <- mu M + G;  O = NS(mu M + G) sqrt(max(n, m)) gamma;  W <- W (1 - lr wd) - lr O.
    A parameter is a matrix or a stack of them; matrices of equal shape are orthogonalised in one
    batch, across parameters. Among several processes each orthogonalises the matrices it owns, and
    the experts it holds. Source: docs/training.md 5.2.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        update_rms: float,
        dtype: torch.dtype = torch.float32,
        batch_elements: int | None = None,
        group: Group = ALONE,
    ) -> None:
        """`update_rms` is gamma; `dtype` that of the matrix products; a batch holds at most
        `batch_elements` numbers, by default enough to fill a processor's cache or a GPU."""
        defaults = {"lr": lr, "mu": momentum, "weight_decay": weight_decay, "gamma": update_rms}
        super().__init__(params, defaults)
        self._dtype = dtype
        self._batch_elements = batch_elements
        self._group = group

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            given = [param for param in group["params"] if param.grad is not None]
            held = [param for param in given if not is_cut(param)]
            update = functools.partial(self._update, group=group)
            batches = list(self._batches(held))
            on_cpu = all(param.is_cpu for param in held)
            for _ in side_by_side(update, batches, threaded=on_cpu):
                pass
            if len(held) < len(given):
                self._update_cut([param for param in given if is_cut(param)], group)

    def _batches(self, params: list[Tensor]) -> Iterator[list[Tensor]]:
        """Parameters together as long as their matrices have equal shapes."""
        alike: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for param in params:
            if local(param).numel():
                alike[(*param.shape[-2:], param.device, param.dtype)].append(param)
        for group in alike.values():
            batch: list[Tensor] = []
            for param in group:
                held = sum(local(other).numel() for other in batch)
                room = self._batch_elements or (1 << 24 if param.is_cuda else 1 << 21)
                if batch and held + local(param).numel() > room:
                    yield batch
                    batch = []
                batch.append(param)
            yield batch

    @torch.no_grad()  # holds within one thread only
    def _update(self, batch: list[Tensor], group: dict[str, Any]) -> None:
        muon.update(
            [local(param) for param in batch],
            [local(param.grad) for param in batch if param.grad is not None],
            [local(self._momentum(param)) for param in batch],
            mu=group["mu"],
            shrink=1 - group["lr"] * group["weight_decay"],
            length=self._length(batch[0].shape, group),
            dtype=self._products(batch[0]),
        )

    def _products(self, param: Tensor) -> torch.dtype:
        """The dtype of products; weights in float64 are for exact comparisons."""
        return torch.float64 if param.dtype == torch.float64 else self._dtype

    @staticmethod
    def _length(shape: torch.Size, group: dict[str, Any]) -> float:
        return float(group["lr"] * group["gamma"] * math.sqrt(max(shape[-2:])))

    def _update_cut(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of which every process holds some rows."""
        gradients = [local(param.grad) for param in params if param.grad is not None]
        momenta = [local(self._momentum(param)) for param in params]
        ahead = muon.look_ahead(gradients, momenta, group["mu"])
        directions = WholeMatrices(params, self._group).transformed(ahead, self._orthogonal)
        for param, direction in zip(params, directions, strict=True):
            shrink = 1 - group["lr"] * group["weight_decay"]
            muon.move([local(param)], [direction], shrink, self._length(param.shape, group))

    def _orthogonal(self, matrices: list[Tensor]) -> list[Tensor]:
        made: dict[int, Tensor] = {}
        for batch in self._batches(matrices):
            directions = muon.orthogonalise(batch, self._products(batch[0]))
            made.update(zip(map(id, batch), directions, strict=True))
        return [made[id(matrix)] for matrix in matrices]

    def _momentum(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        momentum: Tensor = state["momentum"]
        return momentum


def is_matrix(name: str) -> bool:
    """Whether Muon, not AdamW, updates the parameter of this name."""
    *path, leaf = name.split(".")
    owner = path[-1] if path else ""
    if leaf in _ADAMW_LEAVES or leaf.endswith(_ADAMW_SUFFIXES) or owner in ("embed", "head"):
        return False
    return not owner.endswith("norm")


class Optimizers:
    """Muon and AdamW over one network, stepped together; their state has names."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, group: Group = ALONE) -> None:
        """Raises ValueError for a trainable parameter stored packed, which no update can reach."""
        self._group = group
        self._named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        matrices = [param for name, param in self._named.items() if is_matrix(name)]
        others = [param for name, param in self._named.items() if not is_matrix(name)]
        self.muon = Muon(
            matrices,
            lr=0.0,
            momentum=config.muon_momentum,
            weight_decay=config.weight_decay,
            update_rms=config.muon_update_rms,
            dtype=getattr(torch, config.muon_dtype),
            group=group,
        )
        self.adamw = torch.optim.AdamW(
            others,
            lr=0.0,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient, and drop the gradients."""
        for optimizer in (self.muon, self.adamw):
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop the gradients; a parameter without one is left alone by `step`."""
        for param in self._named.values():
            param.grad = None

    def named_state(self) -> dict[str, Tensor]:
        """Moments and step counts as `<parameter>.<moment>`, nothing but tensors, as they are."""
        return {
            f"{name}.{key}": value
            for name, param in self._named.items()
            for key, value in self._state_of(name).get(param, {}).items()
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """`named_state`, whole. Collective."""
        return {name: whole(value, self._group) for name, value in self.named_state().items()}

    def clear_state(self, names: Sequence[str]) -> None:
        """Replace all state by zeros of these names, to be filled in place.

        Raises ValueError for the state of a parameter that this network does not train.
        """
        for optimizer in (self.muon, self.adamw):
            optimizer.state.clear()
        for full in names:
            name, _, key = full.rpartition(".")
            param = self._trained(name, full)
            number = torch.zeros((), dtype=torch.float32, device=param.device)
            zeros = number if key == "step" else torch.zeros_like(param)
            self._state_of(name)[param][key] = zeros

    def _trained(self, name: str, full: str) -> Tensor:
        if name not in self._named:
            raise ValueError(
                f"the optimizer state has {full!r}, but the network trains no parameter "
                f"{name!r}: it belongs to another model"
            )
        return self._named[name]

    @property
    def state_bytes(self) -> int:
        """Bytes of `state_tensors` once every parameter was updated, without step counts."""
        return sum(
            (2 - is_matrix(name)) * logical(param, self._group).nbytes
            for name, param in self._named.items()
        )

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace all state by what `state_tensors` returned.

        Raises ValueError for the state of a parameter that this network does not train.
        """
        for optimizer in (self.muon, self.adamw):
            optimizer.state.clear()
        for full, value in tensors.items():
            name, _, key = full.rpartition(".")
            param = self._trained(name, full)
            # AdamW keeps its step counts on the parameter's device, as fused kernels want them.
            fresh = torch.empty_like(value, device=param.device).copy_(value)
            if fresh.shape == logical(param, self._group).shape:
                fresh = part_like(fresh, param, self._group)
            self._state_of(name)[param][key] = fresh

    def _state_of(self, name: str) -> dict[Tensor, dict[str, Tensor]]:
        return (self.muon if is_matrix(name) else self.adamw).state
