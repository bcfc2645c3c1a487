"""Compare the memory and bandwidth a model needs with those of a machine.

Pure arithmetic on a `Description` and a `Machine`. The speed it names is a ceiling: one sequence,
every byte read once per token, nothing else in the way.
"""

from dataclasses import dataclass
from typing import Literal

from sounding.weights.description import Description, StateSize
from sounding.weights.layout import Component
from sounding.weights.machine import Machine

# Python, torch, and the activations of one chunk of a prompt.
WORKSPACE_BYTES = 2**30

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
    """Memory to hold everything but the routed experts."""
    verdict: Verdict
    """memory: fits in RAM; stream: experts are read from disk as needed; none: does not fit."""
    reason: str
    dense_bytes_per_token: int
    expert_bytes_per_token: int
    state_bytes_per_token: int
    cached_experts: float
    """Share of the routed experts that memory has room for."""
    tokens_per_second: float
    """Bound by reading alone; 0 where the model does not fit."""


def make_plan(
    description: Description, machine: Machine, context_tokens: int, *, on_disk: bool
) -> Plan:
    """Plan a model on a machine; `on_disk`: its weights are on this disk already.

    Raises ValueError for a context the model does not have.
    """
    limit = description.config.max_position_embeddings
    if not 1 <= context_tokens <= limit:
        raise ValueError(
            f"a context of {context_tokens:,} tokens is outside the model's 1 to {limit:,}"
        )
    state = StateSize(description.config)
    experts = description.component_bytes(Component.ROUTED)
    needed = description.total_bytes + state.bytes_at(context_tokens) + WORKSPACE_BYTES
    streaming = needed - experts
    verdict, reason = _judge(description, machine, needed, streaming, on_disk)
    dense, routed = description.active_dense_bytes, description.active_expert_bytes
    read = state.bytes_read_at(context_tokens)
    cached = min(1.0, max(0.0, (machine.available_bytes - streaming) / max(experts, 1)))
    # Experts are taken as equally likely; the cached share of them comes from memory.
    seconds = (dense + read + cached * routed) / machine.memory_bandwidth
    seconds += (1 - cached) * routed / machine.disk_bandwidth
    return Plan(
        context_tokens=context_tokens,
        weight_bytes=description.total_bytes,
        expert_bytes=experts,
        state_bytes=state.bytes_at(context_tokens),
        needed_bytes=needed,
        streaming_bytes=streaming,
        verdict=verdict,
        reason=reason,
        dense_bytes_per_token=dense,
        expert_bytes_per_token=routed,
        state_bytes_per_token=read,
        cached_experts=cached,
        tokens_per_second=0.0 if verdict == "none" else 1 / seconds,
    )


def _judge(
    description: Description, machine: Machine, needed: int, streaming: int, on_disk: bool
) -> tuple[Verdict, str]:
    available = machine.available_bytes
    if not on_disk and description.total_bytes > machine.disk_free_bytes:
        return "none", (
            f"the weights take {human_bytes(description.total_bytes)} and the disk has "
            f"{human_bytes(machine.disk_free_bytes)} free"
        )
    if needed <= available:
        return "memory", f"{human_bytes(needed)} fit in {human_bytes(available)} of free memory"
    if streaming <= available:
        return "stream", (
            f"{human_bytes(streaming)} stay in memory, the routed experts are read from disk as "
            "tokens call for them"
        )
    return "none", (
        f"even without the routed experts it takes {human_bytes(streaming)} and "
        f"{human_bytes(available)} of memory are free"
    )


def human_bytes(num_bytes: int) -> str:
    """A size for people."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} B"
