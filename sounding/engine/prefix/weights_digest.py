"""A digest of all bytes of a network's weights, which kept states depend on.

For a large network it is kept in the store's folder, so that the weights are not read a second
time just to name them, under what the file system says of the files they came from.
"""

import hashlib
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from sounding.engine.prefix.store_folder import open_root
from sounding.model.transformer import Transformer

_LARGE_BYTES = 1 << 30  # what one core hashes in about a second
_DIGEST = re.compile("[0-9a-f]{64}")

_log = logging.getLogger(__name__)


@torch.inference_mode()
def weights_digest(model: Transformer, facts: str = "", store: Path | None = None) -> str:
    """SHA-256 over names, formats and all bytes of the weights.

    That of a large network is looked up in the folder of a prefix store, where `facts` are those of
    the files it was read from (see `files.file_facts`), and kept there. Raises ValueError as
    `open_root` does.
    """
    weights = model.state_dict()
    large = sum(weight.nbytes for weight in weights.values()) >= _LARGE_BYTES
    if store is None or not facts or not large:
        return _digest(weights)
    layout = [(name, weight.dtype, tuple(weight.shape)) for name, weight in weights.items()]
    name = hashlib.sha256(repr((facts, layout)).encode()).hexdigest()[:32] + ".digest"
    try:
        folder = open_root(store)
    except OSError as error:  # a store that cannot be used says so itself
        _log.info("the digest of the weights is not kept: %s", error)
        return _digest(weights)
    try:
        found = folder.read(name).decode("ascii", "replace") if name in folder.names() else ""
        if _DIGEST.fullmatch(found) is None:
            found = _digest(weights)
            folder.write(name, found.encode())
    except OSError as error:
        _log.warning("the digest of the weights is not kept: %s", error)
        found = _digest(weights)
    finally:
        folder.close()
    return found


def _digest(weights: dict[str, Tensor]) -> str:
    whole = hashlib.sha256()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = pool.map(_bytes_digest, weights.values())
        for (name, weight), digest in zip(weights.items(), digests, strict=True):
            whole.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode() + digest)
    return whole.hexdigest()


def _bytes_digest(weight: Tensor) -> bytes:
    flat = weight.detach().flatten().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).digest()
