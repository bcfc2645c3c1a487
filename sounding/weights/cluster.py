"""Plan a network on many devices: what lies where, what crosses the links, what bounds the speed.

Pure arithmetic on a config. Sizes are exact; speeds of devices are stated by their makers, not
measured, and every time that follows from them is a bound: nothing waits, and work is even.
Source: docs/clusters.md 6.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, prod

from sounding.config import ModelConfig
from sounding.weights.description import Description, StateSize
from sounding.weights.layout import Component, Kind, Parameter, count_parameters, parameters
from sounding.weights.units import human_bytes

_SIZE = re.compile(r"(\d+)x(\d+(?:\.\d+)?)(GB|GiB|TB|TiB)")
_UNITS = {"GB": 10**9, "GiB": 2**30, "TB": 10**12, "TiB": 2**40}
_TWO_MOMENTS = {Component.EMBEDDING, Component.HEAD, Component.NORM}
_NODE = 8  # devices that one box connects
_NODE_LINK, _NETWORK_LINK = 200e9, 50e9  # NVLink of an H800; a network of 400 Gb/s for each device
_WORKSPACE_BYTES = 4 * 2**30  # buffers of kernels and of communication, and activations of a chunk


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal devices, each connected to all others; bytes, bytes per second and FLOP per second."""

    devices: int
    device_bytes: int
    memory_bandwidth: float = 3.35e12
    link_bandwidth: float
    """Of one device, in one direction."""
    flops: float = 1.979e15
    """Of FP8 products; those in bf16 are half as fast."""
    stated: tuple[str, ...] = ("memory_bandwidth", "link_bandwidth", "flops")
    """The speeds that are a maker's statement, of an H800."""


def parse_cluster(
    text: str,
    *,
    memory_bandwidth: float | None = None,
    link_bandwidth: float | None = None,
    flops: float | None = None,
) -> Cluster:
    """`8x80GB`, and speeds where the user knows them. Raises ValueError for another form.

    A link is taken to be one within a box for up to 8 devices, and a network's for more.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or int(match[1]) < 1 or float(match[2]) == 0:
        raise ValueError(f"cluster {text!r} must be COUNTxMEMORY, such as 8x80GB")
    given = {
        name: value
        for name, value in (
            ("memory_bandwidth", memory_bandwidth),
            ("link_bandwidth", link_bandwidth),
            ("flops", flops),
        )
        if value is not None
    }
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"{name} = {value} must be above 0")
    stated = tuple(name for name in Cluster.stated if name not in given)
    devices, size = int(match[1]), int(float(match[2]) * _UNITS[match[3]])
    given.setdefault("link_bandwidth", _NODE_LINK if devices <= _NODE else _NETWORK_LINK)
    return Cluster(devices=devices, device_bytes=size, stated=stated, **given)


# --------------------------------------------------------------------------------------------------
# Serving


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """Routed experts divided over the devices, all else on each, sequences divided.

    Bytes and times are of one device in one step, which decodes a token of each of its sequences.
    """

    replicated_bytes: int
    experts_per_layer: int
    expert_bytes: int
    state_bytes: int
    """Of one sequence of the context."""
    sequences: int
    """How many a device has room for; 0 if the weights alone are too large."""
    least_devices: int
    """The fewest of these devices that hold the weights and a sequence each; 0 if none do."""
    memory_bytes_per_step: int
    link_bytes_per_step: int
    flops_per_step: float
    seconds: dict[str, float] = field(default_factory=dict)
    """By what each would take alone: memory, link, compute."""
    bound: str = "none"
    tokens_per_second: float = 0.0
    """Of all devices together."""


def plan_serving(description: Description, cluster: Cluster, context_tokens: int) -> ServingPlan:
    """A model as it is stored, on a cluster."""
    config = description.config
    state = StateSize(config).bytes_at(context_tokens)
    held, experts = _expert_share(description, cluster.devices)
    replicated = _replicated(description)
    free = cluster.device_bytes - replicated - experts - _WORKSPACE_BYTES
    sequences = max(0, free // state)
    memory = link = 0
    flops = 0.0
    seconds: dict[str, float] = {}
    if sequences:
        tokens = sequences * cluster.devices
        touched = 1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** tokens
        read = StateSize(config).bytes_read_at(context_tokens)
        memory = int(description.active_dense_bytes + experts * touched + sequences * read)
        link = sequences * dispatch_bytes_per_token(config, cluster.devices)
        flops = 2.0 * _counted(config).active * sequences
        seconds = {
            "memory": memory / cluster.memory_bandwidth,
            "link": link / cluster.link_bandwidth,
            "compute": flops / cluster.flops,
        }
    bound = max(seconds, key=lambda name: seconds[name]) if seconds else "none"
    return ServingPlan(
        replicated_bytes=replicated,
        experts_per_layer=held,
        expert_bytes=experts,
        state_bytes=state,
        sequences=sequences,
        least_devices=_least_devices(description, cluster, state),
        memory_bytes_per_step=memory,
        link_bytes_per_step=link,
        flops_per_step=flops,
        seconds=seconds,
        bound=bound,
        tokens_per_second=sequences * cluster.devices / seconds[bound] if seconds else 0.0,
    )


def dispatch_bytes_per_token(config: ModelConfig, devices: int) -> int:
    """What a token sends to experts elsewhere, and gets back: FP8 there and bf16 back."""
    pairs = config.num_hidden_layers * config.num_experts_per_tok
    return pairs * 3 * config.hidden_size * (devices - 1) // devices


def flops_per_link_byte(config: ModelConfig) -> int:
    """The products of a token's visit to an expert over the bytes that it sends: as long as a
    device computes no more in the time of a byte, the link is hidden behind its work."""
    return 6 * config.hidden_size * config.moe_intermediate_size // (3 * config.hidden_size)


def _expert_share(description: Description, devices: int) -> tuple[int, int]:
    """Experts of each layer that the fullest device holds, and their bytes in all layers."""
    total = description.config.n_routed_experts
    held = ceil(total / devices)
    return held, description.component_bytes(Component.ROUTED) * held // total


def _replicated(description: Description) -> int:
    return description.total_bytes - description.component_bytes(Component.ROUTED)


def _least_devices(description: Description, cluster: Cluster, state: int) -> int:
    room = cluster.device_bytes - _replicated(description) - _WORKSPACE_BYTES - state
    for devices in range(1, description.config.n_routed_experts + 1):
        if _expert_share(description, devices)[1] <= room:
            return devices
    return 0


# --------------------------------------------------------------------------------------------------
# Training


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Training as `train` does it, `parallel.expert` x `parallel.data`; a step is one sequence of
    the context on each device. Bytes are of one device, and those of links are sent by it."""

    expert: int
    data: int
    parameter_bytes: int
    """Weights and gradients in float32, sharded over all devices."""
    moment_bytes: int
    """One moment of matrices, two of all else, sharded likewise."""
    gathered_bytes: int
    """Weights and gradients that are whole while they are used: of the embedding, the head and the
    drafter all the time, of one block at a time."""
    free_bytes: int
    """What is left for activations; below 0 it does not fit."""
    link_bytes: dict[str, int]
    """In a step: weights gathered twice and gradients scattered, tokens to experts and back both
    ways, matrices to their owners and back."""
    seconds: dict[str, float]
    """link and compute, each alone."""
    bound: str
    tokens_per_second: float
    """Of all devices together; 0 where it does not fit."""


def plan_training(
    config: ModelConfig, cluster: Cluster, context_tokens: int, expert: int | None = None
) -> TrainingPlan:
    """Experts over as many devices as divide both, unless `expert` says how many.

    Raises ValueError for an `expert` that does not divide both.
    """
    devices = cluster.devices
    expert = _most_even(config.n_routed_experts, devices) if expert is None else expert
    if devices % expert or config.n_routed_experts % expert:
        raise ValueError(
            f"parallel.expert = {expert} must divide the {devices} devices and "
            f"model.n_routed_experts = {config.n_routed_experts}"
        )
    every = _shapes(config)
    total = _count(every)
    moments = sum(prod(each.shape) * (1 + (not _is_matrix(each))) for each in every)
    gathered = 8 * _gathered(every, expert, replicas=devices // expert)
    parameter_bytes, moment_bytes = 8 * total // devices, 4 * moments // devices
    links = _training_links(config, every, devices, expert, context_tokens)
    # Backward passes take twice the products of forward ones.
    seconds = {
        "link": sum(links.values()) / cluster.link_bandwidth,
        "compute": 6.0 * _counted(config).active * context_tokens / (cluster.flops / 2),
    }
    free = cluster.device_bytes - parameter_bytes - moment_bytes - gathered - _WORKSPACE_BYTES
    bound = max(seconds, key=lambda name: seconds[name])
    return TrainingPlan(
        expert=expert,
        data=devices // expert,
        parameter_bytes=parameter_bytes,
        moment_bytes=moment_bytes,
        gathered_bytes=gathered,
        free_bytes=free,
        link_bytes=links,
        seconds=seconds,
        bound=bound,
        tokens_per_second=devices * context_tokens / seconds[bound] if free >= 0 else 0.0,
    )


def _training_links(
    config: ModelConfig, every: Sequence[Parameter], devices: int, expert: int, tokens: int
) -> dict[str, int]:
    routed = _count(each for each in every if _is_routed(each))
    dense = _count(every) - routed
    matrices = _count(each for each in every if _is_matrix(each) and not _is_routed(each))
    replicas = devices // expert
    layers = config.num_hidden_layers + config.num_mtp_layers
    pairs = tokens * layers * config.num_experts_per_tok
    return {
        "weights": 3 * 4 * dense * (devices - 1) // devices,
        "experts' weights": 3 * 4 * (routed // expert) * (replicas - 1) // replicas,
        # In bf16: tokens and results, and the gradients of both; routing weights in float32.
        "tokens": pairs * (4 * 2 * config.hidden_size + 2 * 4) * (expert - 1) // expert,
        "matrices": 2 * 4 * (matrices // devices) * (devices - 1) // devices,
    }


def _gathered(every: Sequence[Parameter], expert: int, replicas: int) -> int:
    """Numbers that a device has whole, beside its shards, at the worst moment."""
    blocks: dict[str, int] = {}
    for each in every:
        part = each.name.split(".")
        block = ".".join(part[:2]) if part[0] == "layers" else ""
        size = prod(each.shape)
        if _is_routed(each):
            size = size // expert if replicas > 1 else 0
        blocks[block] = blocks.get(block, 0) + size
    return blocks.pop("", 0) + max(blocks.values(), default=0)


def _is_routed(parameter: Parameter) -> bool:
    return parameter.kind is Kind.EXPERT


def _is_matrix(parameter: Parameter) -> bool:
    return len(parameter.shape) > 1 and parameter.component not in _TWO_MOMENTS


def _count(every: Iterable[Parameter]) -> int:
    return sum(prod(each.shape) for each in every)


def _most_even(experts: int, devices: int) -> int:
    return max(size for size in range(1, devices + 1) if devices % size == experts % size == 0)


_counted = functools.cache(count_parameters)


@functools.cache
def _shapes(config: ModelConfig) -> tuple[Parameter, ...]:
    """All that is trained: tens of thousands of matrices for a published model."""
    return tuple(each for each in parameters(config) if each.kind is not Kind.TABLE)


def fits(plan: ServingPlan | TrainingPlan) -> str:
    """The verdict on a plan, in words."""
    if isinstance(plan, TrainingPlan):
        if plan.free_bytes >= 0:
            return f"{human_bytes(plan.free_bytes)} are left on each for activations"
        return f"{human_bytes(-plan.free_bytes)} too much for each"
    if plan.sequences:
        return f"each holds {plan.sequences:,} sequences"
    if plan.least_devices:
        return f"does not fit; {plan.least_devices} such devices are needed"
    return "does not fit however many such devices there are"
