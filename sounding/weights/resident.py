"""The tensors of a checkpoint whose routed experts stay on disk."""

from collections.abc import Iterator, Mapping

from sounding.weights.checkpoint import Checkpoint
from sounding.weights.raw import RawTensor


class StreamedTensors(Mapping[str, RawTensor]):
    """Every tensor of a checkpoint by its published name: those given, and any other mapped from
    its file when it is asked for. Mapping all at once takes more mappings than a process may have.
    """

    def __init__(self, checkpoint: Checkpoint, resident: Mapping[str, RawTensor]) -> None:
        self._checkpoint, self._resident = checkpoint, resident

    def __getitem__(self, name: str) -> RawTensor:
        found = self._resident.get(name)
        return self._checkpoint.sources[name].read() if found is None else found

    def __iter__(self) -> Iterator[str]:
        return self._checkpoint.names()

    def __len__(self) -> int:
        return sum(1 for _ in self)
