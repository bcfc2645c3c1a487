"""Where Ray is missing, the options that need it say what to install."""

import importlib.util

import pytest

from sounding.cli.posttrain import _samplers
from sounding.cli.serving import _replica_options
from sounding.cluster import require_ray


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_replicas_and_actors_say_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"pip install 'sounding\[cluster\]'"):
        require_ray("--replicas")
    with pytest.raises(ValueError, match=r"--replicas needs Ray, which is not installed"):
        _replica_options(2, None, None, None, 16, 30.0, load_adapters=False)
    with pytest.raises(ValueError, match=r"--actors needs Ray"), _samplers(2, None):
        pass


def test_options_of_replicas_need_their_number() -> None:
    assert _replica_options(None, None, None, None, 16, 30.0, load_adapters=True) is None
    with pytest.raises(ValueError, match="--most-replicas 4 needs --replicas"):
        _replica_options(None, 4, None, None, 16, 30.0, load_adapters=False)
    with (
        pytest.raises(ValueError, match="--ray-address auto needs --actors"),
        _samplers(None, "auto"),
    ):
        pass
