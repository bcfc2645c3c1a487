"""What a model needs, compared with what a machine has.

Everything in memory, or the routed experts on disk: the published models touch all dense weights
and a few experts per token. The token rate is the sum of what reading takes, without overlap: at
batch size 1 decoding reads every active weight once per token, and what the cache of experts lacks
from disk before that.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sounding.weights.description import Description, StateSize
from sounding.weights.machine import Machine
from sounding.weights.memory_plan import divide_memory, floor_bytes
from sounding.weights.units import human_bytes

# Python, torch, and the activations of one chunk of a prompt.
WORKSPACE_BYTES = 2**30
_SLOT_PADDING = 16384  # direct reads begin and end at pages

# Measured with V4-Flash completing code (136 passes, 35,088 requests of experts): hits of a least
# recently used cache by the share of all experts that it holds. No cache hits more than 83 % there,
# since the others of those requests were the first of their expert.
_HIT_SHARES = (0.0, 0.065, 0.109, 0.163, 0.53, 1.0)
_HIT_RATES = (0.0, 0.459, 0.571, 0.677, 0.833, 1.0)
HIT_RATE_SOURCE = (
    "measured with V4-Flash completing code, interpolated; long mixed use hits less often"
)

Verdict = Literal["memory", "stream", "none"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Needs in bytes for one sequence of `context_tokens`, the verdict, and the speed to expect."""

    context_tokens: int
    weight_bytes: int
    expert_bytes: int
    """The part of `weight_bytes` that may stay on disk: routed experts."""
    state_bytes: int
    needed_bytes: int
    """Memory to hold everything: weights, state, workspace."""
    streaming_bytes: int
    """The least memory, with the routed experts on disk."""
    verdict: Verdict
    """memory: fits in RAM; stream: experts are read from disk as needed; none: does not fit."""
    reason: str
    dense_bytes_per_token: int
    expert_bytes_per_token: int
    state_bytes_per_token: int
    cached_experts: float
    """Share of the routed experts that memory has room for."""
    hit_rate: float
    """Share of a token's experts expected in memory."""
    hit_rate_source: str
    disk_bytes_per_token: int
    """Expected reads from disk."""
    chunk_tokens: int
    """Tokens of a prompt for which each expert is read once; 0 if nothing is streamed."""
    tokens_per_second: float
    """By reading alone; 0 where the model does not fit."""
    prompt_tokens_per_second: float
    """Bound of prefill by reading experts from disk; 0 if nothing is streamed."""


def make_plan(
    description: Description, machine: Machine, context_tokens: int, *, on_disk: bool
) -> Plan:
    """Plan a model on a machine; `on_disk`: its weights are on this disk already.

    Raises ValueError for a context the model does not have.
    """
    config = description.config
    limit = config.max_position_embeddings
    if not 1 <= context_tokens <= limit:
        raise ValueError(
            f"a context of {context_tokens:,} tokens is outside the model's 1 to {limit:,}"
        )
    state, experts = StateSize(config), description.streamed_bytes
    slot = experts // description.num_experts + _SLOT_PADDING
    resident = description.total_bytes - experts
    needed = description.total_bytes + state.bytes_at(context_tokens) + WORKSPACE_BYTES
    least = floor_bytes(config, resident, slot)
    verdict, reason = _judge(description, machine, needed, least, on_disk)
    cached, chunk = (1.0, 0) if verdict == "memory" else (0.0, 0)
    if verdict == "stream":
        divided = divide_memory(
            config,
            machine.available_bytes,
            resident_bytes=resident,
            slot_bytes=slot,
            num_experts=description.num_experts,
        )
        cached, chunk = divided.cached_share, divided.chunk_tokens
    routed = description.active_expert_bytes
    missed = (1 - expected_hit_rate(cached)) * routed
    read = description.active_dense_bytes + state.bytes_read_at(context_tokens) + routed
    seconds = missed / machine.disk_bandwidth + read / machine.memory_bandwidth
    sweep = (1 - cached) * experts / machine.disk_bandwidth
    return Plan(
        context_tokens=context_tokens,
        weight_bytes=description.total_bytes,
        expert_bytes=experts,
        state_bytes=state.bytes_at(context_tokens),
        needed_bytes=needed,
        streaming_bytes=least,
        verdict=verdict,
        reason=reason,
        dense_bytes_per_token=description.active_dense_bytes,
        expert_bytes_per_token=routed,
        state_bytes_per_token=state.bytes_read_at(context_tokens),
        cached_experts=cached,
        hit_rate=expected_hit_rate(cached),
        hit_rate_source=HIT_RATE_SOURCE if verdict == "stream" else "all experts are in memory",
        disk_bytes_per_token=round(missed) if verdict == "stream" else 0,
        chunk_tokens=chunk,
        tokens_per_second=0.0 if verdict == "none" else 1 / seconds,
        prompt_tokens_per_second=chunk / sweep if sweep else 0.0,
    )


def expected_hit_rate(share: float) -> float:
    """Share of requests that a least recently used cache of so many of all experts answers."""
    return float(np.interp(share, _HIT_SHARES, _HIT_RATES))


def _judge(
    description: Description, machine: Machine, needed: int, least: int, on_disk: bool
) -> tuple[Verdict, str]:
    available = machine.available_bytes
    if not on_disk and description.total_bytes > machine.disk_free_bytes:
        return "none", (
            f"the weights take {human_bytes(description.total_bytes)} and the disk has "
            f"{human_bytes(machine.disk_free_bytes)} free"
        )
    if needed <= available:
        return "memory", f"{human_bytes(needed)} fit in {human_bytes(available)} of memory"
    if least <= available:
        return "stream", (
            f"{human_bytes(description.total_bytes - description.streamed_bytes)} of weights stay "
            "in memory, the routed experts are read from disk as tokens call for them"
        )
    return "none", (
        f"even with the routed experts on disk it takes {human_bytes(least)} and "
        f"{human_bytes(available)} of memory are free"
    )
