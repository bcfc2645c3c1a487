"""Native twins of ops for CPUs: C++ without torch headers, called through ctypes.

They are built with the package if a compiler is installed; without one the reference runs. One
library has code for several instruction sets and selects the best.
"""

import ctypes
import functools
import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the kernels are loaded by programs that run without PyTorch
    from torch import Tensor


_log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None if they were not built or do not load.

    SOUNDING_KERNELS names another build of them, for tests: one with sanitizers. Raises OSError if
    that does not load, since tests would otherwise check the wrong code.
    """
    named = os.environ.get("SOUNDING_KERNELS")
    if named:
        return ctypes.CDLL(named)
    found = importlib.util.find_spec("sounding.ops.cpu.kernels")
    path = found.origin if found is not None else None
    if path is None:
        return None
    try:
        return ctypes.CDLL(path)
    except OSError:
        return None


@functools.cache
def report_missing() -> None:
    """Warn, once per process, that the kernels were not built, and say how to build them."""
    checkout = Path(__file__).parents[3]
    if (checkout / "pyproject.toml").is_file():
        install = f"{sys.executable} -m pip install --no-deps --editable {checkout}"
    else:
        install = f"{sys.executable} -m pip install --no-deps --force-reinstall sounding"
    _log.warning(
        "the C++ kernels are missing, so PyTorch computes in their place: the same results, "
        "many times slower. Install a C++ compiler and build them: %s",
        install,
    )


def address(tensor: "Tensor") -> ctypes.c_void_p:
    """A contiguous tensor's memory, for a kernel."""
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())
