"""Group relative policy optimisation, as V3.2 and V4 do it.

Advantages are rewards less the mean of their group; four things keep it stable: an unbiased
estimate of the divergence from the start, no lesson from bad answers that the policy would not give
any more, the experts of sampling, and the tokens that sampling left. Source:
docs/post-training.md 3.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sounding.data.token_batch import StreamState
from sounding.model.moe import Routing
from sounding.model.transformer import Transformer
from sounding.ops.token_logprobs import token_logprobs
from sounding.posttrain.rollout_batch import (
    RolloutBatch,
    batch_of,
    empty_like,
    rounded_up,
    shares_of,
)
from sounding.posttrain.rounds import Round
from sounding.posttrain.run_configs import GrpoConfig, GrpoRun
from sounding.train.expert_load import gates
from sounding.train.metrics import MetricsRow
from sounding.train.objective import BatchSource, StepPlan
from sounding.train.optim import learning_rate
from sounding.train.phases import is_indexer

REFERENCE = "reference"  # among what a round is enriched with: log-probabilities of the start


def policy_terms(
    logprobs: Float[Tensor, " n"],
    batch: RolloutBatch,
    config: GrpoConfig,
) -> dict[str, Float[Tensor, " n"]]:
    """For each sampled token, what enters the loss: `policy` and, with a reference, `kl`.

    With r = pi / mu, A the advantage, x = ref / pi:
    policy = -M min(r A, clip(r, 1 - low, 1 + high) A); kl = r (x - log x - 1), which is unbiased
    for samples of mu, and whose gradient stays bounded. M is 0 for answers with A < 0 whose mean
    log mu - log pi is above the limit. `masked` and `clipped` say where M is 0, and where the clip
    has taken the gradient.
    """
    owners, advantages = batch.owners, batch.advantages.to(logprobs.dtype)
    gap = batch.logprobs - logprobs.detach()
    drift = gap.new_zeros(batch.num_answers).index_add(0, owners, gap) / batch.sizes
    masked = (advantages < 0) & (drift > config.off_policy_limit)
    ratio = (logprobs - batch.logprobs).exp()
    advantage = advantages[owners]
    limited = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    gain = torch.minimum(ratio * advantage, limited * advantage)
    terms = {
        "policy": -gain * ~masked[owners],
        "masked": masked[owners].float(),
        "clipped": (limited * advantage < ratio * advantage).float(),
    }
    if REFERENCE in batch.extra:
        log_x = batch.extra[REFERENCE] - logprobs
        terms["kl"] = ratio * (log_x.exp() - log_x - 1)
    return terms


class Grpo:
    """The objective: rewards pull on the tokens of the answers that earned them."""

    def __init__(self, run: GrpoRun, round_metrics: Callable[[], MetricsRow] = lambda: {}) -> None:
        """`round_metrics` is what is recorded of the round that a step belongs to."""
        self._run, self._round_metrics = run, round_metrics
        self._largest = Largest()

    def plan(self, step: int) -> StepPlan:
        rate = learning_rate(step, self._run.train)
        return StepPlan("grpo", rate, "policy_loss", is_policy)

    def counts(self, batch: RolloutBatch) -> dict[str, int]:
        return counts_of(batch)

    def losses(self, model: Transformer, batch: RolloutBatch, step: int) -> dict[str, Tensor]:
        names = ("policy", "kl", "entropy", "difference", "changed", "masked", "clipped")
        zero = torch.zeros((), device=batch.tokens.device)
        if not batch.num_answers:
            return dict.fromkeys(names, zero)
        rollouts = self._run.rollouts
        found = read_answers(model, batch.padded(self._run.data.batch_tokens))
        logprobs, entropy = token_logprobs(
            found.hidden,
            model.head.weight,
            batch.tokens[batch.sampled],
            temperature=rollouts.temperature,
            kept=batch.kept,
        )
        terms = policy_terms(logprobs, batch, self._run.grpo)
        weights = 1 / batch.sizes[batch.owners]  # so that every answer counts the same
        sums = {
            "policy": (terms["policy"] * weights).sum(),
            "kl": (terms["kl"] * weights).sum() if "kl" in terms else zero,
            "entropy": entropy.sum(),
            "changed": found.changed,
            "masked": terms["masked"].sum(),
            "clipped": terms["clipped"].sum(),
        }
        return sums | {"difference": self._largest.note(logprobs, batch)}

    def loss(self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int) -> Tensor:
        total = sums["policy"] + self._run.grpo.kl_weight * sums["kl"]
        return total / max(1, counts["answers"])

    def metrics(
        self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int
    ) -> MetricsRow:
        """Raises ValueError where the trainer's forward differs too much from the sampler's."""
        answers, sampled = max(1, counts["answers"]), max(1, counts["sampled"])
        row: MetricsRow = {
            "policy_loss": float(sums["policy"]) / answers,
            "entropy": float(sums["entropy"]) / sampled,
            "masked_tokens": float(sums["masked"]) / sampled,
            "clipped_tokens": float(sums["clipped"]) / sampled,
            "changed_routings": float(sums["changed"]) / max(1, counts["routings"]),
        }
        if self._run.grpo.kl_weight:
            row["kl"] = float(sums["kl"]) / answers
        row |= difference_row(sums, counts, self._largest, self._run.rollouts.most_difference)
        return row | (self._round_metrics() if counts["fresh"] else {})

    def after_step(self, model: Transformer, sums: Mapping[str, Tensor], step: int) -> None:
        """Nothing moves but by gradients: gates keep the bias that answers were sampled with."""

    def validate(self, model: Transformer, step: int) -> MetricsRow | None:
        """Nothing: `eval` measures checkpoints on tasks held out."""
        return None


# --------------------------------------------------------------------------------------------------
# What GRPO and distillation share


def is_policy(name: str) -> bool:
    """Whether a parameter takes part in sampling a token: MTP blocks only draft, and indexers learn
    from the attention they see, which post-training leaves alone."""
    return not name.startswith(("mtp.", "drafter.")) and not is_indexer(name)


def counts_of(batch: RolloutBatch) -> dict[str, int]:
    """The counts that sums over answers are divided by."""
    sampled = batch.num_sampled
    layers = batch.chosen.shape[0]
    return {
        "answers": batch.num_answers,
        "sampled": sampled,
        "routings": layers * len(batch.tokens),
        "fresh": int(batch.fresh),
        "fresh_sampled": sampled if batch.fresh else 0,
        "tokens": len(batch.tokens),
    }


class ReadAnswers:
    """What a forward over answers gives: the states in front of sampled tokens, and how many
    routings are not those of sampling."""

    def __init__(self, hidden: Float[Tensor, "n c"], changed: Float[Tensor, ""]) -> None:
        self.hidden, self.changed = hidden, changed


def read_answers(model: Transformer, batch: RolloutBatch) -> ReadAnswers:
    """Run the network over a batch, through the experts that sampling took."""
    chosen = batch.chosen.long()
    output = model(batch.tokens, batch.lengths, replayed=list(chosen))
    hidden = model.hidden(output.streams[rounded_up(batch.rows)])[: batch.num_sampled]
    counted = sum(batch.lengths[: batch.num_answers])
    return ReadAnswers(hidden, _changed(model, output.routing, batch.tokens, counted))


@torch.no_grad()
def _changed(
    model: Transformer, routing: Sequence[Routing], tokens: Tensor, counted: int
) -> Float[Tensor, ""]:
    """How many routings of the first `counted` tokens would be others now."""
    total = torch.zeros((), device=tokens.device)
    for gate, routed in zip(gates(model), routing, strict=False):
        own = gate.choose(routed.scores, tokens).sort(-1).values
        differ = (own != routed.chosen.sort(-1).values).any(-1)
        total += differ[:counted].sum()
    return total


class Largest:
    """The largest difference between sampler and trainer in a step; sums cannot carry it."""

    def __init__(self) -> None:
        self._value, self._lock = 0.0, threading.Lock()

    def note(self, logprobs: Float[Tensor, " n"], batch: RolloutBatch) -> Float[Tensor, ""]:
        """Take in a batch; returns the sum of its differences, 0 unless it is fresh."""
        gaps = (logprobs.detach().float() - batch.logprobs).abs()
        if not batch.fresh or not len(gaps):
            return gaps.new_zeros(())
        with self._lock:
            self._value = max(self._value, float(gaps.max()))
        return gaps.sum()

    def take(self) -> float:
        """The largest since the last call."""
        value, self._value = self._value, 0.0
        return value


def difference_row(
    sums: Mapping[str, Tensor], counts: Mapping[str, int], largest: Largest, limit: float
) -> MetricsRow:
    """Mean and largest difference of log-probabilities, where no update lies between.

    Raises ValueError where the mean is above the limit, or no number.
    """
    if not counts["fresh_sampled"]:
        return {}
    mean, most = float(sums["difference"]) / counts["fresh_sampled"], largest.take()
    if not mean <= limit:
        raise ValueError(
            f"log-probabilities of the trainer differ by {mean:.2g} in the mean (at most "
            f"{most:.2g}) from those the answers were sampled with, where rollouts.most_difference "
            f"= {limit:.2g}: the two networks do not compute the same; check that both round alike "
            "(train.qat), or allow more if you know why"
        )
    return {"difference": mean, "largest_difference": most}


# --------------------------------------------------------------------------------------------------
# Batches


def advantages_of(scores: Sequence[float], group: int) -> list[float]:
    """Each score less the mean of its group, not divided by a deviation."""
    made: list[float] = []
    for low in range(0, len(scores), group):
        part = scores[low : low + group]
        mean = sum(part) / len(part)
        made += [score - mean for score in part]
    return made


def grpo_batches(found: Round, run: GrpoRun, rewards: Sequence[float]) -> list[RolloutBatch]:
    """The batches of a round, without groups whose rewards are all the same; none where all are."""
    group = run.rollouts.group
    advantages = advantages_of(rewards, group)
    kept = [
        index
        for index in range(len(rewards))
        if len(set(rewards[index // group * group :][:group])) > 1
    ]
    answers = [found.answers[index] for index in kept]
    if not answers:
        return []
    return laid_out(
        [batch_of([answer], [advantages[i]]) for answer, i in zip(answers, kept, strict=True)],
        lambda share: batch_of([answers[i] for i in share], [advantages[kept[i]] for i in share]),
        run,
    )


def laid_out(
    singles: Sequence[RolloutBatch],
    join: Callable[[Sequence[int]], RolloutBatch],
    run: GrpoRun,
) -> list[RolloutBatch]:
    """Answers as batches of whole steps; those of the first step are fresh."""
    accumulation = run.train.accumulation
    shares = shares_of(
        [len(one.tokens) for one in singles],
        run.data.batch_tokens,
        accumulation,
        run.rollouts.updates,
    )
    batches = [join(share) if share else empty_like(singles[0]) for share in shares]
    return [replace(one, fresh=at < accumulation) for at, one in enumerate(batches)]


def batches_of_rounds(
    open_round: Callable[[int, bool], Sequence[RolloutBatch]], patience: int | None = None
) -> BatchSource[RolloutBatch]:
    """Round after round; `open_round(number, begun)` gives the batches of one.

    Raises ValueError after `patience` rounds in a row without any.
    """

    def open_stream(state: StreamState | None) -> Iterator[tuple[RolloutBatch, StreamState]]:
        number, done = (0, 0) if state is None else (int(state["round"]), int(state["batch"]))
        idle = 0
        while True:
            batches = open_round(number, done > 0)
            idle = 0 if batches else idle + 1
            if patience is not None and idle >= patience:
                raise ValueError(
                    f"the last {idle} rounds, up to round {number}, had no group of answers with "
                    "different rewards, so there is nothing to learn from: give easier or harder "
                    "tasks (best are those that 10 to 90 % of answers solve), raise "
                    "rollouts.group, or grpo.patience_rounds to wait longer"
                )
            for at in range(done, len(batches)):
                last = at + 1 == len(batches)
                yield batches[at], {"round": number + last, "batch": 0 if last else at + 1}
            number, done = number + 1, 0

    return open_stream
