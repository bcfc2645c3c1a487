"""The tiny network with its experts on disk, and in memory to compare with."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from sounding.native.expert_policy import ExpertPolicy
from sounding.native.expert_store import ExpertStore
from sounding.native.memory import bring_into_memory
from sounding.native.network import KernelNetwork, Streams
from sounding.native.state import KernelState
from sounding.simulation import DEPLOYED
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.expert_files import ExpertFiles, ReadCall
from sounding.weights.resident import StreamedTensors

VECTORS = Path(__file__).parents[1] / "vectors" / "tiny"
LENGTH = 150
TOKENS = np.random.default_rng(3).integers(512, size=LENGTH).tolist()
NAMES = [*(f"layers.{n}" for n in range(5)), "mtp.0"]


@cache
def in_memory() -> KernelNetwork:
    checkpoint = Checkpoint(VECTORS)
    return KernelNetwork(checkpoint.config, checkpoint.read_all(), DEPLOYED)


@cache
def whole() -> Streams:
    """The streams of all tokens, with everything in memory."""
    return run(in_memory(), TOKENS)


def run(network: KernelNetwork, tokens: Sequence[int], state: KernelState | None = None) -> Streams:
    state = state or network.new_state()
    return network.predict(tokens, (), [len(tokens)], [state]).streams


def streamed(
    *,
    slots: int = 8,
    quotas: Sequence[int] | None = None,
    policy: ExpertPolicy | None = None,
    read: ReadCall = os.preadv,
    readers: int = 2,
    stall_seconds: float = 30.0,
    folder: Path = VECTORS,
) -> KernelNetwork:
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    files = ExpertFiles(checkpoint, NAMES, [config.n_routed_experts] * len(NAMES), read=read)
    store = ExpertStore(
        files,
        slots=slots,
        quotas=quotas,
        policy=policy,
        readers=readers,
        stall_seconds=stall_seconds,
    )
    resident = {name: checkpoint.read_raw(name) for name in checkpoint.names(routed_experts=False)}
    tensors = StreamedTensors(checkpoint, bring_into_memory(resident))
    return KernelNetwork(config, tensors, DEPLOYED, store=store)
