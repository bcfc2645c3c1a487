"""Which arithmetic a run trains with."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sounding.ops.dispatch import use_backend

_log = logging.getLogger(__name__)


def warn_of_slow_products(dtypes: dict[str, str], device: torch.device) -> None:
    """Say which of these fields, `{name: dtype}`, ask this processor for products that it has no
    instructions for: PyTorch's bf16 ones are hundreds of times slower there than in float32."""
    if device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    slow = [f"--set {name}=float32" for name, dtype in dtypes.items() if dtype == "bfloat16"]
    if slow:
        _log.warning(
            "this processor has no bf16 products; train far faster with %s", " ".join(slow)
        )


@contextmanager
def for_throughput(dtype: str) -> Iterator[None]:
    """The ops' twins for training; and where the network computes in bf16, float32 matrices (of
    compressors and gates, whose weights are deployed in bf16) are multiplied as bf16 too, added up
    in float32."""
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
    """Only algorithms that give the same bits again, e.g. no atomic additions between threads."""
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
