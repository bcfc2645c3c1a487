"""Copies weights from mapped files into one piece of memory."""

import mmap
from collections.abc import Mapping

import numpy as np

from sounding.weights.raw import RawTensor

_LINE_BYTES = 64  # cache line, to which tensors are aligned
_HUGE_PAGE = 2 << 20


def bring_into_memory(tensors: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """Copy all tensors into one allocation; the files are not read again.

    One large allocation can use huge pages (Linux), which saves TLB misses at every token.
    """
    sizes = [-(-tensor.nbytes // _LINE_BYTES) * _LINE_BYTES for tensor in tensors.values()]
    pages = mmap.mmap(-1, max(_HUGE_PAGE, -(-sum(sizes) // _HUGE_PAGE) * _HUGE_PAGE))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    room = np.frombuffer(pages, dtype=np.uint8)
    copies, at = {}, 0
    for (name, tensor), size in zip(tensors.items(), sizes, strict=True):
        copy = room[at : at + tensor.nbytes].view(tensor.array.dtype).reshape(tensor.shape)
        copy[...] = tensor.array
        copies[name] = RawTensor(copy, tensor.dtype)
        at += size
    return copies
