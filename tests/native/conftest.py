"""Networks with experts on disk, closed when a test ends."""

from collections.abc import Callable, Iterator

import pytest

from sounding.native.network import KernelNetwork
from tests.native.streamed import streamed


@pytest.fixture
def make() -> Iterator[Callable[..., KernelNetwork]]:
    made: list[KernelNetwork] = []

    def build(**how: object) -> KernelNetwork:
        made.append(streamed(**how))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for network in made:
        assert network.store is not None
        network.store.close()
