"""Cross-entropy over the vocabulary, without ever holding all logits."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sounding.ops.norm import upcast

IGNORED = -100  # target of a position that does not count
CHUNK_TOKENS = 1024  # logits of this many tokens exist at once


def cross_entropy(
    hidden: Float[Tensor, "t c"], head: Float[Tensor, "v c"], targets: Int[Tensor, " t"]
) -> Float[Tensor, ""]:
    """Sum over counted positions of -log softmax(hidden head^T)[target], in float32.

    A sum, so that losses of chunks and processes add up; divide by the number of counted targets.
    Logits are made chunk by chunk and made again for the gradient.
    """
    total = upcast(hidden.new_zeros(()))
    for rows in range(0, hidden.shape[0], CHUNK_TOKENS):
        part = slice(rows, rows + CHUNK_TOKENS)
        total = total + checkpoint(
            _chunk_loss, hidden[part], head, targets[part], use_reentrant=False
        )
    return total


def _chunk_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    logits = upcast(hidden) @ upcast(head).T
    return functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
