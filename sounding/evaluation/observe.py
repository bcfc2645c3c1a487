"""Observe a network's mechanisms on given tokens: drafts, expert loads, the indexer's selection.

The network runs as deployed: CSA layers read the entries that their indexers select. This is
compared with attention of the same layers over all visible entries.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sounding.model.attention import Selection
from sounding.model.moe import Routing
from sounding.model.transformer import Transformer
from sounding.state.token_ids import require_tokens

_LOGIT_ROWS = 1024  # tokens whose logits are in memory at once


@torch.inference_mode()
def observe(model: Transformer, tokens: Sequence[int], sizes: Sequence[int]) -> dict[str, Any]:
    """Counts of one sequence as a JSON value; counts of several sequences can be added.

    - `drafts`: for each MTP block, the drafts that equal the network's choice, and all drafts;
    - `loads`: tokens of each expert, one row per layer, then one per MTP block;
    - `recall`: for each CSA layer, by number, the sums of `index_recall` for each of `sizes`.

    A draft is the likeliest token of MTP block k after the text up to token t + k + 1; the
    network's choice is its own likeliest token for the same place. Raises ValueError for a token
    outside the vocabulary.
    """
    device = next(model.parameters()).device
    require_tokens(tokens, model.config.vocab_size)
    row = torch.tensor(list(tokens), device=device)
    output = model(row, selection=Selection(recall=tuple(sizes)))
    choices = _likeliest(model, model.hidden(output.streams))
    routing, drafts, streams = output.routing, [], output.streams
    for depth, block in enumerate(model.mtp_blocks):
        # Of the last rows the next token is not known; causality keeps them from the others.
        drafted = model.draft(streams, row.roll(-1 - depth), depth=depth)
        streams = drafted.streams
        count = max(0, len(row) - 1 - depth)
        guesses = _likeliest(model, block.hidden(streams))[:count]
        drafts.append([int((guesses == choices[1 + depth :]).sum()), count])
        routing.append(drafted.routing[0]._replace(chosen=drafted.routing[0].chosen[:count]))
    return {
        "tokens": len(row),
        "drafts": drafts,
        "loads": [_load(routed) for routed in routing],
        "recall": {
            str(layer): report.indexer.recall.tolist()
            for layer, report in enumerate(output.reports)
            if report.indexer.recall is not None
        },
    }


def _likeliest(model: Transformer, hidden: Float[Tensor, "t c"]) -> Int[Tensor, " t"]:
    return torch.cat([model.logits(rows).argmax(-1) for rows in hidden.split(_LOGIT_ROWS)])


def _load(routed: Routing) -> list[int]:
    counts: list[int] = routed.chosen.flatten().bincount(minlength=routed.scores.shape[-1]).tolist()
    return counts
