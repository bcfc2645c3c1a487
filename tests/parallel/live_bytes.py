"""Counts the bytes of tensors that are live, at every operation."""

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """`peak` is the most bytes that were live at once of storages made within."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if _counts(leaf)}
        result = func(*args, **(kwargs or {}))
        self._live = {key: held for key, held in self._live.items() if not held[0].expired()}
        for leaf in tree_leaves(result):
            if _counts(leaf) and _key(leaf) not in given | self._live.keys():
                storage = leaf.untyped_storage()
                self._live[_key(leaf)] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def _counts(leaf: Any) -> bool:
    return type(leaf) is torch.Tensor


def _key(leaf: torch.Tensor) -> int:
    return leaf.untyped_storage()._cdata
