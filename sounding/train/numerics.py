"""Arithmetic of training: kernels, precision of products, determinism."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from sounding.ops.dispatch import use_backend

_log = logging.getLogger(__name__)


def warn_of_slow_products(dtypes: Mapping[str, str], device: torch.device) -> None:
    """Warn where one of these fields, `{name: dtype}`, needs bf16 products and the processor has no
    instructions for them: PyTorch's are then hundreds of times slower than float32 ones."""
    if device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    slow = [f"--set {name}=float32" for name, dtype in dtypes.items() if dtype == "bfloat16"]
    if slow:
        _log.warning(
            "this processor has no bf16 products; train far faster with %s", " ".join(slow)
        )


@contextmanager
def for_throughput(dtype: str) -> Iterator[None]:
    """Use the ops' twins for training. Where the network computes in bf16, also multiply float32
    matrices (of compressors and gates, whose weights are deployed in bf16) as bf16, accumulated in
    float32."""
    before = torch.get_float32_matmul_precision()
    if dtype == "bfloat16":
        torch.set_float32_matmul_precision("medium")
    try:
        with use_backend("training"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def repeatable(on: bool) -> Iterator[None]:
    """Allow only deterministic algorithms, e.g. no atomic additions between threads, if `on`."""
    before, deterministic = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic
    filling = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(on)
    # Filling finds bugs only, and costs a pass over every new tensor.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
