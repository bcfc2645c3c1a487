"""How a memory budget is divided between weights, states, activations and experts.

Plain numbers: `plan` computes with them before anything is loaded, and loading obeys them.
"""

from dataclasses import dataclass

from sounding.config import ModelConfig
from sounding.state.row_layout import all_lists
from sounding.weights.units import human_bytes

PROCESS_BYTES = 320 << 20  # Python, libraries, the tokenizer
LEAST_CHUNK, MOST_CHUNK = 64, 4096  # tokens of a step
LEAST_SLOTS = 8  # experts in transit: less, and the disk waits for the processor
_LEAST_STATE_TOKENS = 4096
_STATE_SHARE = _PREFIX_SHARE = 16  # parts of what weights leave, for states and the prefix cache
_WORKSPACE_SHARE = 5
_MOST_STATE_BYTES, _MOST_PREFIX_BYTES = 4 << 30, 2 << 30


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of a budget by use."""

    budget_bytes: int
    resident_bytes: int
    """Weights that every token needs."""
    state_bytes: int
    """Limit of the states of running sequences."""
    prefix_bytes: int
    """Limit of the prefix cache."""
    chunk_tokens: int
    """Most tokens of a step."""
    workspace_bytes: int
    """Activations of such a step."""
    slots: int
    """Experts in memory."""
    slot_bytes: int
    num_experts: int
    """Experts of all layers."""

    @property
    def cached_share(self) -> float:
        """Share of the experts that memory has room for."""
        return min(1.0, self.slots / max(1, self.num_experts))


def workspace_bytes_per_token(config: ModelConfig) -> int:
    """Upper estimate of the memory that the kernels use for each token of a step."""
    c, inner, k = config.hidden_size, config.moe_intermediate_size, config.num_experts_per_tok
    heads, width = config.num_attention_heads, config.head_dim
    streams = config.hc_mult * c
    experts = k * (10 * c + 14 * inner) + 8 * c + 8 * inner
    attention = 12 * heads * width + 6 * config.index_n_heads * config.index_head_dim
    attention += 8 * config.index_topk + 8 * config.o_groups * config.o_lora_rank
    reports = config.num_hidden_layers * (4 * config.n_routed_experts + 8 * k)
    return experts + attention + reports + 14 * streams


def everything_bytes(config: ModelConfig, weight_bytes: int) -> int:
    """Memory in which a network runs with all weights in it."""
    workspace = 1024 * workspace_bytes_per_token(config)
    return PROCESS_BYTES + weight_bytes + _least_state_bytes(config) + workspace


def floor_bytes(config: ModelConfig, resident_bytes: int, slot_bytes: int) -> int:
    """The least memory in which a network runs with its experts on disk."""
    workspace = LEAST_CHUNK * workspace_bytes_per_token(config)
    fixed = PROCESS_BYTES + resident_bytes + _least_state_bytes(config) + workspace
    return fixed + LEAST_SLOTS * slot_bytes


def divide_memory(
    config: ModelConfig,
    budget_bytes: int,
    *,
    resident_bytes: int,
    slot_bytes: int,
    num_experts: int,
) -> MemoryPlan:
    """Divide a budget. Raises ValueError for one below the floor, which it names."""
    floor = floor_bytes(config, resident_bytes, slot_bytes)
    if budget_bytes < floor:
        raise ValueError(
            f"--memory {human_bytes(budget_bytes)} is below {human_bytes(floor)}, the "
            f"least that this model runs with: {human_bytes(resident_bytes)} of weights that every "
            f"token needs, {human_bytes(floor - resident_bytes)} for experts in transit, states "
            "and the program; give that much, or choose a smaller model"
        )
    rest = budget_bytes - PROCESS_BYTES - resident_bytes
    states = max(_least_state_bytes(config), min(_MOST_STATE_BYTES, rest // _STATE_SHARE))
    prefixes = min(_MOST_PREFIX_BYTES, rest // _PREFIX_SHARE)
    per_token = workspace_bytes_per_token(config)
    fitting = max(LEAST_CHUNK, min(MOST_CHUNK, rest // _WORKSPACE_SHARE // per_token))
    chunk = fitting - fitting % LEAST_CHUNK
    left = rest - states - chunk * per_token
    slots = max(LEAST_SLOTS, (left - prefixes) // slot_bytes)
    prefixes = max(0, min(prefixes, left - slots * slot_bytes))
    return MemoryPlan(
        budget_bytes=budget_bytes,
        resident_bytes=resident_bytes,
        state_bytes=states,
        prefix_bytes=prefixes,
        chunk_tokens=chunk,
        workspace_bytes=chunk * per_token,
        slots=min(slots, num_experts + LEAST_SLOTS),
        slot_bytes=slot_bytes,
        num_experts=num_experts,
    )


def _least_state_bytes(config: ModelConfig) -> int:
    """States of two short sequences."""
    return 2 * sum(
        rows.slots(_LEAST_STATE_TOKENS) * rows.width * (4 if rows.format == "projections" else 2)
        for rows in all_lists(config)
    )
