"""Checks of token ids before a network reads them."""

from collections.abc import Sequence

from sounding.config import ModelConfig
from sounding.state.token_ids import require_tokens


def check_prompt(
    prompt: Sequence[int], max_tokens: int, config: ModelConfig, limit: int | None = None
) -> None:
    """Raise ValueError unless the model can continue a prompt for `max_tokens`.

    Refused are an empty prompt, ids outside the vocabulary, and a length past what the model is
    made for.
    """
    limit = limit or config.max_position_embeddings
    if not prompt:
        raise ValueError("the prompt has no tokens; give at least one to continue from")
    if len(prompt) + max_tokens > limit:
        raise ValueError(
            f"{len(prompt)} prompt tokens and max_tokens = {max_tokens} exceed the "
            f"{limit} positions of the model; shorten the prompt or ask for fewer"
        )
    require_tokens(prompt, config.vocab_size)
