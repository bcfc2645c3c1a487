"""Shared by all tests: Hypothesis without deadlines, checked shapes, and small random networks.

Tests of what runs without PyTorch run where it is not installed, too (`scripts/test`), so nothing
here needs it at import.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.networks import NetworkMaker

# Machines are shared and the first call of an op is slow: time says nothing about a result.
settings.register_profile(
    "sounding",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("sounding")

if find_spec("torch"):
    import torch
    from jaxtyping import install_import_hook

    # Tensors here are small, and threads of tests that share two cores spend their time waiting.
    torch.set_num_threads(1)
    install_import_hook("sounding", "beartype.beartype")


@pytest.fixture(scope="session")
def network_maker() -> "NetworkMaker":
    """`make_network`, each network made once per session; treat them as constants."""
    from sounding.model.transformer import Transformer
    from tests.networks import make_network

    made: dict[object, Transformer] = {}

    def maker(config: object, **how: object) -> Transformer:
        key = (config, *sorted(how.items()))
        if key not in made:
            made[key] = make_network(config, **how)  # type: ignore[arg-type]
        return made[key]

    return maker
