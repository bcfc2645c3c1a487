"""A small network that is easy to guess, and a DSpark drafter trained for it in seconds.

The embedding and the head are large beside the layers, so that the likeliest next token mostly
follows from the last one: what the first row of a block sees, and what the others learn.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sounding.config import DSparkConfig, ModelConfig
from sounding.data.token_batch import TokenBatch
from sounding.engine.engine import Engine
from sounding.engine.network import Network
from sounding.engine.requests import EngineStats, GenerationRequest
from sounding.engine.settings import EngineSettings
from sounding.model.from_checkpoint import build_model
from sounding.model.transformer import Transformer
from sounding.ops.loss import IGNORED
from sounding.train.drafter import DrafterObjective
from sounding.train.initialise import initialise
from sounding.train.runs import copying
from tests.engine.running import collect
from tests.networks import as_network

CONFIG: ModelConfig = dataclasses.replace(
    copying().model,
    quantization_config=None,
    dspark=DSparkConfig(
        block_size=4,
        noise_token_id=63,
        target_layer_ids=(2, 3),
        markov_rank=32,
        n_routed_experts=2,
        n_activated_experts=1,
        moe_intermediate_size=32,
        n_blocks=1,
        beside=True,
    ),
)
_SEQUENCES, _LENGTH = 6, 40


def predictable() -> Transformer:
    """The network, with a drafter that has learned nothing."""
    model = Transformer(CONFIG)
    initialise(model, dataclasses.replace(CONFIG, initializer_range=0.04), seed=1)
    with torch.no_grad():
        for weight, seed, scale in ((model.embed.weight, 5, 1.0), (model.head.weight, 6, 0.5)):
            weight.normal_(generator=torch.Generator().manual_seed(seed)).mul_(scale)
    return model


def train(model: Transformer, steps: int) -> None:
    """Train the drafter in place, on random tokens."""
    objective = DrafterObjective(dataclasses.replace(copying(), model=CONFIG))
    trains = objective.plan(0).trains
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and trains(name))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        batch = _batch(generator)
        counts = objective.counts(batch)
        optimizer.zero_grad()
        objective.loss(objective.losses(model, batch, step), counts, step).backward()
        optimizer.step()


def _batch(generator: torch.Generator) -> TokenBatch:
    tokens = torch.randint(2, 63, (_SEQUENCES, _LENGTH), generator=generator)
    targets = functional.pad(tokens[:, 1:], (0, 1), value=IGNORED)
    return TokenBatch(tokens.flatten(), targets.flatten(), [_LENGTH] * _SEQUENCES)


def shuffled(model: Transformer, *, seed: int = 3) -> Transformer:
    """The same network, with the numbers of each of its drafter's tensors in another order."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().clone()
        if name.startswith("drafter."):
            order = torch.randperm(values.numel(), generator=generator)
            values = values.flatten()[order].reshape(values.shape)
        state[name] = values
    return build_model(state, CONFIG)


def served(model: Transformer) -> Network:
    """In bfloat16: by the kernels where they were built."""
    state = {}
    for name, parameter in model.named_parameters():
        precise = name.rpartition(".")[2].startswith("hc_") or name.endswith(
            ("sink", "bias", "ape")
        )
        plain = parameter.dtype == torch.float32 and not precise
        state[name] = parameter.detach().to(torch.bfloat16) if plain else parameter.detach()
    return as_network(build_model(state, CONFIG, dtype=torch.bfloat16))


def answers(
    network: Network, asked: Sequence[GenerationRequest], **settings: object
) -> tuple[list[list[int]], EngineStats]:
    """Tokens of every request, one after the other, and what the engine counted."""
    exact = EngineSettings(exact_splits=True, prefix_limit_bytes=0)
    engine = Engine(network, settings=dataclasses.replace(exact, **settings), stop_tokens=())  # type: ignore[arg-type]
    try:
        return [collect(engine.submit(each))[0] for each in asked], engine.stats()
    finally:
        engine.close()


def acceptance(stats: EngineStats, drafter: str = "dspark") -> list[float]:
    """By position."""
    counts = stats.drafts[drafter]
    return (np.array(counts.accepted) / np.array(counts.verified)).tolist()
