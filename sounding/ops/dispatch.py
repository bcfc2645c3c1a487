"""Dispatch of ops: the reference in PyTorch, or a native twin.

The reference is the specification. A twin computes the same from the same arguments; it is chosen
by device and dtype, if it was built. All decisions depend on module variables, which torch.compile
can trace.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, TypeVar

import torch

from sounding.ops import cpu

Backend = Literal["auto", "training", "reference"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_NATIVE_DTYPES = (torch.float32, torch.bfloat16)

_backend: Backend = "auto"


def op(
    *, cpu: str | None = None, training: str | None = None
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Declare a reference whose first argument is a tensor, or a list of tensors of one dtype and
    device, with its twins as 'module:function'.

    `use_backend("training")` selects the `training` one, which maximises throughput; otherwise,
    or if it is the only one, the `cpu` one is used. A twin is imported at its
    first use. It serves float32 and bfloat16 on the CPU, and returns NotImplemented for arguments
    that only the reference serves.
    """

    def declare(reference: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(reference)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            path = (training or cpu) if _backend == "training" else cpu
            if path is not None and _serves(args[0]):
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


def _serves(first: Any) -> bool:
    if isinstance(first, list):
        first = first[0]
    return (
        _backend != "reference"
        and first.device.type == "cpu"
        and first.dtype in _NATIVE_DTYPES
        and _native_is_built()
    )


@functools.cache
def _native_is_built() -> bool:
    """Whether the kernels can be called; says once that they are missing."""
    built = cpu.library() is not None
    if not built:
        cpu.report_missing()
    return built


@functools.cache
def _twin(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
