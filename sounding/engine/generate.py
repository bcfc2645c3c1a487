"""Checking prompts, and running a network over given tokens: logits under any split."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sounding.config import ModelConfig
from sounding.engine.faults import DamagedModel
from sounding.model.state import growing_state
from sounding.model.transformer import Transformer


def require_tokens(tokens: Int[Tensor, "*batch"], vocab_size: int) -> None:
    """Raise ValueError for an id outside the vocabulary, which would index past the embedding."""
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(outside):
        raise ValueError(
            f"token id {int(outside[0])} is outside the model's vocabulary of {vocab_size}: "
            "were these tokens made with its own tokenizer?"
        )


def checked_prompt(
    prompt: Sequence[int], max_tokens: int, config: ModelConfig, limit: int | None = None
) -> Int[Tensor, " t"]:
    """A prompt as a tensor, once it is known that the model can continue it for `max_tokens`.

    Raises ValueError for an empty prompt, ids outside the vocabulary, and a length past what the
    model is made for.
    """
    limit = limit or config.max_position_embeddings
    if not prompt:
        raise ValueError("the prompt has no tokens; give at least one to continue from")
    if len(prompt) + max_tokens > limit:
        raise ValueError(
            f"{len(prompt)} prompt tokens and max_tokens = {max_tokens} exceed the "
            f"{limit} positions of the model; shorten the prompt or ask for fewer"
        )
    tokens = torch.tensor(list(prompt))
    require_tokens(tokens, config.vocab_size)
    return tokens


@torch.inference_mode()
def split_logits(
    model: Transformer,
    tokens: Int[Tensor, "b t"],
    splits: Sequence[Sequence[int]],
    progress: Callable[[int], None] = lambda tokens: None,
) -> Float[Tensor, "b t v"]:
    """Logits of every position, float32; splits[i] says how sequence i comes in pieces.

    Step k is one ragged chunk of the k-th piece of every sequence that has one. `progress` is
    told the tokens done in each step. Raises ValueError for ids outside of the vocabulary,
    `DamagedModel` for logits that are not finite.
    """
    require_tokens(tokens, model.config.vocab_size)
    states = [growing_state(model.config) for _ in tokens]
    logits = torch.empty(*tokens.shape, model.config.vocab_size)
    for step in range(max(map(len, splits), default=0)):
        active = [index for index, sizes in enumerate(splits) if step < len(sizes)]
        sizes = [splits[index][step] for index in active]
        starts = [states[index].length for index in active]
        spans = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        chunk = torch.cat([tokens[index, span] for index, span in zip(active, spans, strict=True)])
        output = model(chunk, sizes, [states[index] for index in active])
        rows = model.logits(model.hidden(output.streams)).float().split(sizes)
        for index, span, row in zip(active, spans, rows, strict=True):
            if not row.isfinite().all():
                raise DamagedModel(f"of sequence {index} behind token {span.start}")
            logits[index, span] = row
        progress(sum(sizes))
    return logits
