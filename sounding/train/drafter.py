"""The objective of a DSpark drafter: drafts as the network itself would continue.

The network is frozen and runs once over each batch. Behind some of its tokens, the anchors, the
drafter makes blocks as in decoding, except that corrections see the true tokens. Losses compare
every row with the network's own distribution at its place. Source: docs/training.md 8.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sounding.data.token_batch import TokenBatch
from sounding.model.dspark import DSpark
from sounding.model.rows import GrowingRows
from sounding.model.state import TensorLayerState, TensorState
from sounding.model.transformer import Transformer
from sounding.ops.loss import IGNORED
from sounding.parallel.group import ALONE, Group
from sounding.state.rows import Retention
from sounding.train.metrics import MetricsRow
from sounding.train.objective import StepPlan
from sounding.train.optim import learning_rate
from sounding.train.run_config import RunConfig
from sounding.train.source import HeldOut

_TOKENS_PER_ANCHOR = 4  # the drafter's rows then cost about as much as the network's
_LEAST_ANCHORS = 64  # of a batch that has so many tokens
_DECAY = 4.0  # rows by which the weight of a row falls to 1/e
_LABEL, _DISTANCE, _CONFIDENCE = 0.1, 0.9, 1.0  # weights of the losses


class DrafterObjective:
    """Trains the DSpark drafter of a network that stays as it is."""

    def __init__(
        self, run: RunConfig, held_out: HeldOut | None = None, group: Group = ALONE
    ) -> None:
        """`held_out` is what `validate` reads. Raises ValueError for a model without a drafter, and
        for processes that share a batch."""
        if run.model.dspark is None:
            raise ValueError("the model has no DSpark drafter to train: give it dspark_* keys")
        if group.size("context") > 1:
            raise ValueError(
                f"parallel.context = {group.size('context')} must be 1 to train a DSpark drafter, "
                "whose blocks begin anywhere in a batch"
            )
        self._run, self._held_out = run, held_out
        self._block = run.model.dspark.block_size

    def plan(self, step: int) -> StepPlan:
        prefix = self._run.model.dspark_prefix
        rate = learning_rate(step, self._run.train)
        return StepPlan("drafter", rate, trains=lambda name: name.startswith(prefix))

    def counts(self, batch: TokenBatch) -> dict[str, int]:
        """`tokens`, and for each row of a block the blocks in which it has a token to draft."""
        valid = _valid_rows(batch, _anchors(batch), self._block).sum(0).tolist()
        rows = {_row(index): int(count) for index, count in enumerate(valid)}
        return {"tokens": len(batch.tokens), **rows}

    def losses(self, model: Transformer, batch: TokenBatch, step: int) -> dict[str, Tensor]:
        return block_sums(model, batch)

    def loss(self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int) -> Tensor:
        return self._weighted(sums, counts)

    def metrics(
        self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int
    ) -> MetricsRow:
        """Rates are those of each row: `acceptance` if drafts were drawn, `agreement` of the
        likeliest draft with the network's likeliest token; `confidence_bias` is what confidence
        promises beyond acceptance. All see true tokens before the row."""
        rows = [max(1, counts[_row(index)]) for index in range(self._block)]
        rates = {
            name: (sums[name].cpu() / torch.tensor(rows)).tolist()
            for name in ("acceptance", "agreement", "confidence_bias")
        }
        agreed = torch.tensor(rates["agreement"])
        return {
            "loss": float(self._weighted(sums, counts).detach()),
            **rates,
            "tokens_per_block": 1 + float(agreed.cumprod(0).sum()),
        }

    def after_step(self, model: Transformer, sums: Mapping[str, Tensor], step: int) -> None:
        return

    @torch.no_grad()
    def validate(self, model: Transformer, step: int) -> MetricsRow | None:
        """The metrics of a step, of the held-out text."""
        if self._held_out is None:
            return None
        device = next(model.parameters()).device
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for batch in self._held_out.batches:
            for name, value in block_sums(model, batch.to(device)).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            for name, count in self.counts(batch).items():
                counts[name] = counts.get(name, 0) + count
        measured = self.metrics(sums, counts, step)
        return {"validation_loss": measured.pop("loss")} | {
            f"held_out_{name}": value for name, value in measured.items()
        }

    def _weighted(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> Float[Tensor, ""]:
        """Losses of all rows, the first of a block weighing the most, over their weights."""
        rows = torch.tensor([counts[_row(index)] for index in range(self._block)])
        weights = torch.exp(-torch.arange(self._block) / _DECAY)
        total = max(1.0, float((weights * rows).sum()))
        each = _LABEL * sums["label"] + _DISTANCE * sums["distance"]
        each = each + _CONFIDENCE * sums["confidence"]
        loss: Tensor = (weights.to(each) * each).sum() / total
        return loss


def block_sums(model: Transformer, batch: TokenBatch) -> dict[str, Float[Tensor, " b"]]:
    """Sums over the blocks of a batch, for each row of a block.

    - `label`: cross-entropy of the token that follows in the text;
    - `distance`: sum over tokens of |draft - network| of the two distributions;
    - `confidence`: cross-entropy of the predicted with the true acceptance, 1 - distance / 2;
    - `acceptance`, `agreement`, `confidence_bias`: see `DrafterObjective.metrics`.
    """
    dspark = model.dspark
    assert dspark is not None, "the network has no DSpark drafter"
    with torch.no_grad():
        output = model(batch.tokens, batch.lengths)
    assert output.taps is not None
    anchors = _anchors(batch).to(batch.tokens.device)
    valid = _valid_rows(batch, anchors, dspark.block_size).flatten()
    ahead = torch.arange(dspark.block_size, device=anchors.device)
    places = (anchors[:, None] + ahead).clamp_max(len(batch.tokens) - 1).flatten()
    states = _states_before(dspark, output.taps, batch, anchors.tolist())
    block = model.draft_block(batch.tokens[anchors], states)
    correction = dspark.correct(block.hidden.flatten(0, 1), batch.tokens[places])
    logits = block.logits.flatten(0, 1) + correction.bias
    with torch.no_grad():
        wanted = model.logits(model.hidden(output.streams[places]))
    distance = (logits.softmax(-1) - wanted.softmax(-1)).abs().sum(-1)
    acceptance = 1 - distance.detach() / 2
    labels = batch.targets[places].where(valid, torch.full_like(places, IGNORED))
    each = {
        "label": functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none"),
        "distance": distance,
        "confidence": functional.binary_cross_entropy_with_logits(
            correction.confidence, acceptance, reduction="none"
        ),
        "acceptance": acceptance,
        "agreement": (logits.argmax(-1) == wanted.argmax(-1)).to(acceptance),
        "confidence_bias": correction.confidence.detach().sigmoid() - acceptance,
    }
    return {
        name: values.where(valid, torch.zeros_like(values)).unflatten(0, (len(anchors), -1)).sum(0)
        for name, values in each.items()
    }


def _states_before(
    dspark: DSpark, taps: Float[Tensor, "t l c"], batch: TokenBatch, anchors: list[int]
) -> list[TensorState]:
    """For each anchor, a state of the drafter that has read the tokens before it."""
    config = dspark.config
    window = config.sliding_window
    begins = _begins(batch)
    keys = dspark.keys(taps, batch.lengths, [0] * len(batch.lengths))
    states = []
    for anchor in anchors:
        blocks = []
        for stage in keys:
            rows = GrowingRows(config.head_dim, Retention(window, window))
            rows.append(stage[int(begins[anchor]) : anchor])
            blocks.append(TensorLayerState(0, rows, None, None))
        states.append(TensorState([], [], blocks))
    return states


def _begins(batch: TokenBatch) -> Int[Tensor, " t"]:
    """For each token the row of the first of its sequence."""
    lengths = torch.tensor(batch.lengths)
    return (lengths.cumsum(0) - lengths).repeat_interleave(lengths)


def _anchors(batch: TokenBatch) -> Int[Tensor, " n"]:
    """Rows of tokens with a target and a token before them, chosen by the batch alone."""
    tokens, targets = batch.tokens.cpu(), batch.targets.cpu()
    allowed = (targets != IGNORED) & (torch.arange(len(tokens)) > _begins(batch))
    rows = allowed.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(int(tokens.sum()))
    order = torch.randperm(len(rows), generator=generator)
    most = max(_LEAST_ANCHORS, len(tokens) // _TOKENS_PER_ANCHOR)
    return rows[order[:most]].sort().values


def _valid_rows(
    batch: TokenBatch, anchors: Int[Tensor, " n"], block_size: int
) -> Bool[Tensor, "n b"]:
    """Rows of blocks whose tokens, and all before them in the block, are to be predicted; the end
    of a sequence has no target, so a block ends there too."""
    places = anchors[:, None] + torch.arange(block_size, device=anchors.device)
    inside = places < len(batch.tokens)
    targets = batch.targets.to(anchors.device)[places.clamp_max(len(batch.tokens) - 1)]
    return (inside & (targets != IGNORED)).cumprod(1).bool()


def _row(index: int) -> str:
    return f"row_{index}"
