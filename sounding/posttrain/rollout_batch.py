"""Batches of rollouts: sequences laid end to end, with what is known of every sampled token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sounding.data.packing import best_fit
from sounding.ops.token_logprobs import Kept
from sounding.posttrain.rounds import Answer

_ROWS = 256  # matrix products are compiled for each shape they meet: counts are rounded up to this


@dataclass(frozen=True)
class RolloutBatch:
    """Some answers of a round, for one forward. Sampled tokens are numbered in their order."""

    tokens: Int[Tensor, " t"]
    lengths: list[int]
    sampled: Bool[Tensor, " t"]
    """Which tokens were sampled."""
    logprobs: Float[Tensor, " n"]
    """Of every sampled token, by the sampler."""
    advantages: Float[Tensor, " answers"]
    chosen: Int[Tensor, "layers t k"]
    """Experts of every token, while sampling."""
    kept: Kept | None
    extra: dict[str, Tensor]
    """By name, a row for every sampled token."""
    head: Tensor | None = None
    """The teacher's, for distillation."""
    weight: float = 1.0
    """Of the teacher."""
    fresh: bool = True
    """True if no update has been made since sampling."""

    def to(self, device: torch.device) -> "RolloutBatch":
        """Copy the batch to another device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            sampled=self.sampled.to(device),
            logprobs=self.logprobs.to(device),
            advantages=self.advantages.to(device),
            chosen=self.chosen.to(device),
            kept=None if self.kept is None else Kept(*(x.to(device) for x in self.kept)),
            extra={name: value.to(device) for name, value in self.extra.items()},
            head=None if self.head is None else self.head.to(device),
        )

    @property
    def num_answers(self) -> int:
        return len(self.advantages)

    @property
    def num_sampled(self) -> int:
        return len(self.logprobs)

    @cached_property
    def owners(self) -> Int[Tensor, " n"]:
        """The answer that each sampled token belongs to."""
        lengths = torch.tensor(self.lengths[: self.num_answers], device=self.tokens.device)
        answers = torch.arange(self.num_answers, device=self.tokens.device)
        sampled = self.sampled[: int(lengths.sum())]
        return answers.repeat_interleave(lengths)[sampled]

    @cached_property
    def sizes(self) -> Float[Tensor, " answers"]:
        """How many tokens of each answer were sampled."""
        return self.owners.bincount(minlength=self.num_answers).float()

    @cached_property
    def rows(self) -> Int[Tensor, " n"]:
        """The positions in front of sampled tokens, whose logits they were sampled from."""
        return self.sampled.nonzero()[:, 0] - 1

    def padded(self, num_tokens: int) -> "RolloutBatch":
        """The batch with at least `num_tokens` tokens: one more sequence, with nothing sampled."""
        missing = num_tokens - len(self.tokens)
        if missing <= 0:
            return self
        layers, _, choices = self.chosen.shape
        some = torch.arange(choices, dtype=self.chosen.dtype, device=self.chosen.device)
        return replace(
            self,
            tokens=torch.cat((self.tokens, self.tokens.new_zeros(missing))),
            lengths=[*self.lengths, missing],
            sampled=torch.cat((self.sampled, self.sampled.new_zeros(missing))),
            chosen=torch.cat((self.chosen, some.expand(layers, missing, choices)), 1),
        )


def rounded_up(rows: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
    """Positions with some more of the first behind them, up to a round number of them."""
    return torch.cat((rows, rows.new_zeros(-len(rows) % _ROWS)))


def batch_of(answers: Sequence[Answer], advantages: Sequence[float]) -> RolloutBatch:
    """Lay answers end to end."""
    counts = torch.cat([answer.kept_counts for answer in answers])
    kept = Kept(torch.cat([answer.kept_ids for answer in answers]), counts)
    names = answers[0].extra
    return RolloutBatch(
        torch.cat([answer.tokens for answer in answers]),
        [len(answer.tokens) for answer in answers],
        torch.cat([answer.sampled for answer in answers]),
        torch.cat([answer.logprobs for answer in answers]),
        torch.tensor(advantages, dtype=torch.float32),
        torch.cat([answer.chosen for answer in answers], 1),
        kept if len(kept.ids) else None,
        {name: torch.cat([answer.extra[name] for answer in answers]) for name in names},
    )


def empty_like(batch: RolloutBatch) -> RolloutBatch:
    """A batch without answers, of a step that has too few of them."""
    return replace(
        batch,
        tokens=batch.tokens[:0],
        lengths=[],
        sampled=batch.sampled[:0],
        logprobs=batch.logprobs[:0],
        advantages=batch.advantages[:0],
        chosen=batch.chosen[:, :0],
        kept=None,
        extra={name: value[:0] for name, value in batch.extra.items()},
    )


def shares_of(
    lengths: Sequence[int], batch_tokens: int, accumulation: int, updates: int
) -> list[list[int]]:
    """Answers distributed over the batches of at least so many updates, as even as may be.

    Every batch is within `batch_tokens`; their number is a multiple of `accumulation`. Raises
    ValueError for an answer that is longer.
    """
    longest = max(lengths)
    if longest > batch_tokens:
        raise ValueError(
            f"an answer with its prompt has {longest} tokens, and data.batch_tokens = "
            f"{batch_tokens}: raise that, lower rollouts.max_tokens, or take out long prompts"
        )
    needed = len(best_fit(lengths, batch_tokens))
    count = accumulation * max(updates, -(-needed // accumulation))
    while True:
        shares: list[list[int]] = [[] for _ in range(count)]
        held = [0] * count
        for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
            least = min(range(count), key=lambda share: (held[share], share))
            shares[least].append(index)
            held[least] += lengths[index]
        if max(held) <= batch_tokens:
            return shares
        count += accumulation
