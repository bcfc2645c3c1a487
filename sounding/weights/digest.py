"""A digest of all bytes of a network's weights."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sounding.weights.raw import RawTensor


def weights_digest(tensors: Mapping[str, RawTensor]) -> str:
    """SHA-256 over names, formats, shapes and all bytes, 64 hexadecimal digits."""
    whole = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(_bytes_digest, tensors.values())
        for (name, tensor), digest in zip(tensors.items(), digests, strict=True):
            whole.update(f"{name} {tensor.dtype} {tensor.shape} ".encode() + digest)
    return whole.hexdigest()


def _bytes_digest(tensor: RawTensor) -> bytes:
    flat = np.ascontiguousarray(tensor.array).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data).digest()
