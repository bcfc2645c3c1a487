"""Training an adapter within a time: steps, held-out loss, stopping, saving, resuming.

The base's weights are frozen; AdamW moves the deltas. Held-out text is read every tenth of the
way: the adapter that did best on it is the one that is kept, and training ends when it has become
worse twice in a row. Everything to go on from is one file, written whole.
"""

import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sounding.data.token_batch import StreamState, TokenBatch
from sounding.files import write_file
from sounding.model.adapters import adapter_of, attach
from sounding.model.from_checkpoint import load_model
from sounding.model.transformer import Transformer
from sounding.ops.loss import cross_entropy
from sounding.train.interrupt import Interrupt
from sounding.train.losses import count_targets, middle_rows, next_token_loss
from sounding.train.metrics import METRICS_NAME, MetricsFile, MetricsRow
from sounding.train.numerics import for_throughput, repeatable
from sounding.train.run_config import RunConfig
from sounding.train.side_by_side import side_by_side
from sounding.train.source import HeldOut, open_held_out, open_source
from sounding.weights.adapters import Adapter, write_adapter
from sounding.weights.checkpoint import Checkpoint

STATE_NAME = "state.safetensors"
_PARTS = 10  # of the way, between validations
_PATIENCE = 2  # validations in a row that are worse than the best
_BETAS = (0.9, 0.99)
_FINAL = 0.1  # share of the learning rate at the end


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """How an adapter is trained."""

    rank: int = 16
    alpha: float = 32.0
    """Deltas are multiplied with alpha / rank."""
    lr: float = 2e-3
    warmup_steps: int = 10
    seconds: float = 1800.0
    """Of training and validation together, over all calls."""
    most_steps: int = 10_000

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "lr", "seconds", "most_steps"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} = {value} must be a finite number above 0")


@dataclass
class _Progress:
    """Counters that a resumed training goes on from."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    parts: int = 0
    """Validations so far, the one before the first step left out."""
    first: float | None = None
    """Held-out loss before the first step."""
    best: float | None = None
    worse: int = 0
    """Validations in a row that were worse than the best."""
    metrics_bytes: int = 0
    data: StreamState | None = None
    settings: dict[str, Any] = field(default_factory=dict)


class AdapterTraining:
    """A tuning in a folder: new, or where it stopped."""

    def __init__(
        self,
        base: Checkpoint,
        digest: str,
        run: RunConfig,
        settings: AdapterSettings,
        *,
        state: Path,
        out: Path,
        begin: Adapter | None = None,
        report: Callable[[MetricsRow], None] = lambda row: None,
    ) -> None:
        """`digest` is that of the base's weights. Progress is kept in the folder `state`, the
        adapter in `out`; `begin` is an adapter to go on from.

        Raises ValueError for a state of other settings, and where one cannot be read.
        """
        self._run, self._settings, self._digest = run, settings, digest
        self._folder, self._out, self._report = state, out, report
        self._model: Transformer = load_model(
            base, dtype=getattr(torch, run.train.dtype), dequantize=torch.bfloat16
        )
        factor = settings.alpha / settings.rank
        self._learning = attach(self._model, settings.rank, factor, run.train.seed, begin=begin)
        self._optimizer = torch.optim.AdamW(
            self._learning, lr=settings.lr, betas=_BETAS, weight_decay=0.0
        )
        self._held_out: HeldOut | None = open_held_out(run)
        self.progress = _Progress(settings=self._identity())
        self._metrics = MetricsFile(state / METRICS_NAME)
        state.mkdir(parents=True, exist_ok=True)
        self._resume()
        self._stream = open_source(run)(self.progress.data)
        self._interrupt = Interrupt()

    # ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> float:
        """How much of the way is done, 0 to 1."""
        return min(1.0, max(self._steps, self.progress.seconds / self._settings.seconds))

    @property
    def _steps(self) -> float:
        return self.progress.step / self._settings.most_steps

    @property
    def finished(self) -> bool:
        return self.done >= 1 or self.progress.worse >= _PATIENCE

    def train(self) -> bool:
        """Train to the end, or until interrupted; returns whether it is finished."""
        with repeatable(self._run.train.deterministic), self._interrupt.listening():
            if self.progress.step == 0 and self.progress.first is None:
                self._timed(self._validate)
                self._save()
            while not self.finished and not self._interrupt.requested:
                self._timed(self._step)
                if self.done * _PARTS >= self.progress.parts + 1:
                    self.progress.parts = int(self.done * _PARTS)
                    self._timed(self._validate)
                    self._save()
            if self._interrupt.requested:
                self._save()
        return self.finished

    def _timed(self, work: Callable[[], None]) -> None:
        began = time.monotonic()
        work()
        self.progress.seconds += time.monotonic() - began

    def _step(self) -> None:
        pairs = list(itertools.islice(self._stream, self._run.train.accumulation))
        batches = [batch for batch, _ in pairs]
        self.progress.data = pairs[-1][1]
        counts = [count_targets(batch, 0) for batch in batches]
        targets = max(1, sum(count["targets"] for count in counts))

        def differentiate(batch: TokenBatch) -> tuple[Tensor, tuple[Tensor, ...]]:
            total, plain = self._loss(batch.padded(self._run.data.batch_tokens))
            return plain.detach(), torch.autograd.grad(total / targets, self._learning)

        began, summed = time.monotonic(), 0.0
        self._optimizer.zero_grad()
        with for_throughput(self._run.train.dtype):
            for loss, gradients in side_by_side(differentiate, batches, threaded=True):
                summed += float(loss)
                for parameter, gradient in zip(self._learning, gradients, strict=True):
                    whole = parameter.grad
                    parameter.grad = gradient if whole is None else whole.add_(gradient)
        norm = nn.utils.clip_grad_norm_(self._learning, self._run.optimizer.clip_norm)
        rate = self._rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if torch.isfinite(norm):
            self._optimizer.step()
        tokens = sum(count["tokens"] for count in counts)
        self.progress.step += 1
        self.progress.tokens += tokens
        self._record(
            {
                "step": self.progress.step,
                "tokens": self.progress.tokens,
                "loss": summed / targets,
                "learning_rate": rate,
                "gradient_norm": float(norm),
                "tokens_per_second": tokens / (time.monotonic() - began),
            }
        )

    def _loss(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Summed over targets: with middles weighing as in training, and plain."""
        model, extra = self._model, self._run.objective.middle_weight - 1
        hidden = model.hidden(model(batch.tokens, batch.lengths).streams)
        plain = total = cross_entropy(hidden, model.head.weight, batch.targets)
        if extra and any(batch.middles):
            rows, wanted = middle_rows(batch)
            total = plain + extra * cross_entropy(hidden[rows], model.head.weight, wanted)
        return total, plain

    def _rate(self) -> float:
        """Linear warm-up, then a cosine over the way.

        Time counts in whole hundredths, so that a run that its steps bound has the same rates on a
        slow machine, and after an interruption.
        """
        settings = self._settings
        way = max(self._steps, int(100 * self.done) / 100)
        warm = min(1.0, (self.progress.step + 1) / settings.warmup_steps)
        falling = _FINAL + (1 - _FINAL) * (1 + math.cos(math.pi * way)) / 2
        return settings.lr * warm * falling

    def _validate(self) -> None:
        """Measure held-out text, and keep the adapter if it is the best so far."""
        progress = self.progress
        if self._held_out is None:
            if progress.step:
                write_adapter(adapter_of(self._model, self._digest), self._out)
            progress.first = progress.first or 0.0
            return
        total, targets = 0.0, 0
        with torch.no_grad(), for_throughput(self._run.train.dtype):
            for batch in self._held_out.batches:
                padded = batch.padded(self._run.data.batch_tokens)
                total += float(next_token_loss(self._model, padded, dense=False))
                targets += count_targets(batch, 0)["targets"]
        loss = total / max(1, targets)
        if progress.first is None:
            progress.first = progress.best = loss
        elif progress.best is None or loss < progress.best:
            progress.best, progress.worse = loss, 0
            write_adapter(adapter_of(self._model, self._digest), self._out)
        else:
            progress.worse += 1
        bits = total / math.log(2) / max(1, self._held_out.num_bytes)
        row = {"step": progress.step, "validation_loss": loss, "bits_per_byte": bits}
        self._record({**row, "tokens": progress.tokens})

    def _record(self, row: MetricsRow) -> None:
        self._metrics.append(row)
        self._report(row)

    # ----------------------------------------------------------------------------------------------
    # Saving and resuming

    def _identity(self) -> dict[str, Any]:
        """What must be the same to go on; more time is welcome."""
        adapter = {
            name: value for name, value in asdict(self._settings).items() if name != "seconds"
        }
        return {"adapter": adapter, "base": self._digest, "run": self._run.to_dict()}

    def _save(self) -> None:
        self.progress.metrics_bytes = self._metrics.sync()
        tensors = {}
        for number, parameter in enumerate(self._learning):
            tensors[f"{number}.value"] = parameter.detach()
            for name, value in self._optimizer.state[parameter].items():
                tensors[f"{number}.{name}"] = value
        facts = {"progress": json.dumps(asdict(self.progress))}
        write_file(self._folder / STATE_NAME, safetensors.torch.save(tensors, facts))

    def _resume(self) -> None:
        path = self._folder / STATE_NAME
        if not path.is_file():
            return
        try:
            with safetensors.safe_open(path, "pt") as file:
                saved = _Progress(**json.loads((file.metadata() or {})["progress"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be resumed ({error}); begin anew with --anew"
            ) from error
        wanted = json.loads(json.dumps(self._identity()))
        if saved.settings != wanted:
            raise ValueError(
                f"{path} is of a tuning with other settings, code or model; begin anew with --anew"
            )
        self.progress = saved
        self._metrics.cut(saved.metrics_bytes)
        with torch.no_grad():
            for number, parameter in enumerate(self._learning):
                parameter.copy_(tensors.pop(f"{number}.value"))
        for name, value in tensors.items():
            number, _, field_name = name.partition(".")
            self._optimizer.state[self._learning[int(number)]][field_name] = value
