"""Mixture of experts: routing by a hash of the token or by learned scores, and a shared expert.

Source: docs/architecture.md 10.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sounding.config import ModelConfig
from sounding.model.layers import Format, Linear
from sounding.ops import experts as ops
from sounding.ops.attention import top_k
from sounding.simulation import Simulation


class Routing(NamedTuple):
    """One layer's routing of each token, for load counts and the balancing losses."""

    chosen: Int[Tensor, "t k"]
    scores: Float[Tensor, "t e"]  # affinity to every expert, before the selection bias


class ExpertGate(nn.Module):
    """Chooses experts for each token. The bias steers the choice and is not trained by gradient."""

    def __init__(self, config: ModelConfig, *, hashed: bool) -> None:
        super().__init__()
        experts, picks = config.n_routed_experts, config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(experts, config.hidden_size))
        if hashed:  # a fixed table: token id to experts
            table = torch.empty(config.vocab_size, picks, dtype=torch.int64)
            self.tid2eid: nn.Parameter | None = nn.Parameter(table, requires_grad=False)
            self.register_parameter("bias", None)
        else:
            self.register_parameter("tid2eid", None)
            self.bias = nn.Parameter(torch.zeros(experts), requires_grad=False)
        self.picks = picks
        self.scale = config.routed_scaling_factor

    def forward(
        self,
        x: Float[Tensor, "t c"],
        tokens: Int[Tensor, " t"],
        replayed: Int[Tensor, "t k"] | None = None,
    ) -> tuple[Routing, Float[Tensor, "t k"]]:
        """The routing and the weight of each chosen expert.

        `replayed` are choices that were made elsewhere: only the choice is theirs, the weights are
        computed from the scores here, so that the gate keeps its gradient.
        """
        scores = ops.affinity(x, self.weight)
        chosen = self.choose(scores, tokens) if replayed is None else replayed
        return Routing(chosen, scores), ops.routing_weights(scores, chosen, self.scale)

    def choose(self, scores: Float[Tensor, "t e"], tokens: Int[Tensor, " t"]) -> Int[Tensor, "t k"]:
        """The experts of each token, by its id or by its affinities and the bias."""
        if self.tid2eid is not None:
            return self.tid2eid[tokens].long()
        # A NaN must reach the output, where it is noticed, not end in a choice of no expert.
        ranked = (scores.detach() + self.bias.to(scores.dtype)).nan_to_num(nan=-1.0)
        return top_k(ranked, self.picks)


class Experts(nn.Module):
    """Three linears, clamped SwiGLU: w1 gate, w3 up, w2 down; one set, or a stack of them."""

    def __init__(
        self, config: ModelConfig, format: Format, simulation: Simulation, stack: int | None = None
    ) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.moe_intermediate_size

        def one(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, format=format, simulation=simulation, stack=stack)

        self.w1 = one(width, inner)
        self.w2 = one(inner, width)
        self.w3 = one(width, inner)


class MoE(nn.Module):
    """Every token goes to its chosen experts and to the shared one."""

    def __init__(self, config: ModelConfig, simulation: Simulation, *, hashed: bool) -> None:
        super().__init__()
        self.gate = ExpertGate(config, hashed=hashed)
        self.experts = Experts(
            config, config.expert_format, simulation, stack=config.n_routed_experts
        )
        self.shared_experts = Experts(config, config.linear_format, simulation)
        self.limit = config.swiglu_limit
        self.run_experts: Callable[..., Tensor] = ops.experts
        """Takes the arguments of `ops.experts`, wherever the experts are."""

    def forward(
        self,
        x: Float[Tensor, "t c"],
        tokens: Int[Tensor, " t"],
        replayed: Int[Tensor, "t k"] | None = None,
    ) -> tuple[Float[Tensor, "t c"], Routing]:
        routing, weights = self.gate(x, tokens, replayed)
        routed, shared = self.experts, self.shared_experts
        always = ops.swiglu(
            x,
            shared.w1.stored,
            shared.w2.stored,
            shared.w3.stored,
            limit=self.limit,
            simulate=shared.w1.simulate,
        )
        output = self.run_experts(
            x,
            routing.chosen,
            weights,
            routed.w1.stored,
            routed.w2.stored,
            routed.w3.stored,
            limit=self.limit,
            simulate=routed.w1.simulate,
            always=always,
        )
        return output, routing
