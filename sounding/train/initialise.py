"""Initial weights, a function of the seed and of a parameter's name alone.

Every matrix and the embedding are normal with standard deviation `initializer_range`; norms are 1;
sinks, `ape` and biases 0. Hyper-connections begin as a plain residual: with `base` 0 and small
`scale`, every stream takes each output once, the streams are averaged, and what a sub-layer reads
is their sum up to a factor that its norm removes. `fn` is random, so the streams grow apart.
Source: docs/training.md 7.
"""

import math
import zlib

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sounding.config import ModelConfig

HC_SCALE = 0.01  # gating factors start small, as the report says without a number


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of a network in place.

    Numbers are drawn on the CPU, so they do not depend on the device, and from a generator for
    each parameter, so they do not depend on which others there are.
    """
    for name, param in model.named_parameters():
        generator = torch.Generator().manual_seed(seed + (zlib.crc32(name.encode()) << 20))
        leaf = name.rpartition(".")[2]
        if leaf == "tid2eid":
            param.copy_(
                hash_table(config.vocab_size, config.n_routed_experts, param.shape[1], generator)
            )
        elif leaf.endswith("_scale"):
            param.fill_(HC_SCALE)
        elif leaf in ("ape", "attn_sink", "bias") or leaf.endswith("_base"):
            param.zero_()
        elif param.ndim == 1:
            param.fill_(1.0)
        else:
            param.copy_(torch.randn(param.shape, generator=generator) * config.initializer_range)


def hash_table(
    vocab_size: int, num_experts: int, picks: int, generator: torch.Generator
) -> Int[Tensor, "v k"]:
    """Experts of every token id: distinct within a token, and each as often as any other.

    Random permutations of all experts are laid end to end and cut into rows; a permutation is
    repeated until its end is also the end of a row, so no row mixes two.
    """
    lap = math.lcm(picks, num_experts)
    blocks = -(-vocab_size * picks // lap)
    orders = torch.rand(blocks, num_experts, generator=generator).argsort(1)
    rows = orders.repeat(1, lap // num_experts).reshape(-1, picks)[:vocab_size]
    return rows[torch.randperm(vocab_size, generator=generator)]
