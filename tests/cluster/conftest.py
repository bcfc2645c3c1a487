"""A cluster of Ray of this machine's own, for the tests that need one; it ends with the module."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import psutil
import pytest

from sounding.cluster.remote_engine import RemoteEngine
from sounding.loading import SHIPPED


@pytest.fixture(scope="module")
def two_replicas() -> Iterator[RemoteEngine]:
    """Two replicas of the shipped model, in processes of their own."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'sounding[cluster]'")
    from sounding.cluster.replica import EngineSource
    from sounding.cluster.serving import ReplicaOptions, start_replicas

    folder = tempfile.mkdtemp(prefix="ray")  # its sockets allow short paths only
    os.environ["RAY_TMPDIR"] = folder
    try:
        engine = start_replicas(
            EngineSource(model=str(SHIPPED)), ReplicaOptions(replicas=2, grace_seconds=10.0)
        )
        yield engine
        engine.close()
    finally:
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(folder, ignore_errors=True)
    psutil.wait_procs(processes_of_ray(), timeout=30)
    assert processes_of_ray() == []


def processes_of_ray() -> list[psutil.Process]:
    """What runs below this process and belongs to Ray."""
    return [one for one in psutil.Process().children(recursive=True) if "ray" in _command(one)]


def replica_processes() -> list[psutil.Process]:
    """Those of replicas that have started."""
    return [one for one in processes_of_ray() if "ServeReplica" in _command(one)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
