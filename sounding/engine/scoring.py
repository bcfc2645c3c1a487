"""How likely a network finds given tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sounding.engine.faults import DamagedModel
from sounding.engine.generate import require_tokens
from sounding.model.transformer import Transformer

_LOGIT_ROWS = 1024  # logits of this many tokens exist at once


@torch.inference_mode()
def token_logprobs(model: Transformer, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Natural logarithm of the probability of each token after the first, given those before it.

    All sequences are one ragged chunk, so their tokens together decide the memory it takes.
    Raises ValueError for an empty sequence or a token outside of the vocabulary, `DamagedModel` for
    weights that give none.
    """
    if not all(sequences):
        raise ValueError("a sequence has no tokens; give at least one")
    device = next(model.parameters()).device
    tokens = torch.cat([torch.tensor(list(sequence)) for sequence in sequences]).to(device)
    require_tokens(tokens, model.config.vocab_size)
    lengths = [len(sequence) for sequence in sequences]
    hidden = model.hidden(model(tokens, lengths).streams)
    targets = tokens.roll(-1)  # wrong at the end of each sequence, where none is read
    found = torch.cat(
        [
            _pick(model.logits(rows), wanted)
            for rows, wanted in zip(
                hidden.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS), strict=True
            )
        ]
    )
    if not found.isfinite().all():
        raise DamagedModel(f"of token {int((~found.isfinite()).nonzero()[0])}")
    return [row[:-1].tolist() for row in found.cpu().split(lengths)]


def _pick(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
