"""Dispatch of ops: the reference in PyTorch, or a native twin.

The reference is the specification. A twin computes the same from the same arguments; it is chosen
by device and dtype, if the kernels of the device were built. All decisions depend on module
variables, which torch.compile can trace.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import torch

from sounding.ops import cpu

Backend = Literal["auto", "training", "reference"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_backend: Backend = "auto"


@dataclass(frozen=True)
class DeviceKernels:
    """What the twins of one type of device serve."""

    dtypes: tuple[torch.dtype, ...]
    are_built: Callable[[], bool]


@functools.cache
def _cpu_kernels_are_built() -> bool:
    """Whether the kernels can be called; warns once if they are missing."""
    built = cpu.library() is not None
    if not built:
        cpu.report_missing()
    return built


KERNELS = {"cpu": DeviceKernels((torch.float32, torch.bfloat16), _cpu_kernels_are_built)}
"""By type of device; twins for devices that are not here are never called."""


def _first_argument(*args: Any, **kwargs: Any) -> torch.Tensor:
    first: torch.Tensor = args[0]
    return first


def op(
    *,
    twins: Mapping[str, str] | None = None,
    training: Mapping[str, str] | None = None,
    device_of: Callable[..., torch.Tensor] = _first_argument,
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Declare a reference with its twins: 'module:function' by type of device.

    `use_backend("training")` selects those in `training`, which maximise throughput, where there
    are any. `device_of` is called with the op's arguments and returns the tensor whose device and
    dtype decide; without it, that is the first argument. A twin is imported at its first use, and
    returns NotImplemented for arguments that only the reference serves.
    """
    usual = dict(twins or {})
    fast = usual | dict(training or {})

    def declare(reference: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(reference)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if _backend != "reference":
                tensor = device_of(*args, **kwargs)
                path = (fast if _backend == "training" else usual).get(tensor.device.type)
                if path is not None and _serves(tensor):
                    result: _R = _twin(path)(*args, **kwargs)
                    if result is not NotImplemented:
                        return result
            return reference(*args, **kwargs)

        return call

    return declare


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Choose within a block: "reference" for comparisons, "training" where gradients are wanted
    and speed counts; "auto" is the usual choice."""
    global _backend
    before, _backend = _backend, backend
    try:
        yield
    finally:
        _backend = before


def _serves(tensor: torch.Tensor) -> bool:
    kernels = KERNELS.get(tensor.device.type)
    return kernels is not None and tensor.dtype in kernels.dtypes and kernels.are_built()


@functools.cache
def _twin(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
