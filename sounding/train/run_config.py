"""The settings of a training run: a tree of frozen dataclasses without tensors.

Named runs, and the ways to change, save and read one, are in `runs`.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from sounding.config import ModelConfig
from sounding.data.fim import FimSettings
from sounding.data.shares import Share, require_mixture


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Muon and AdamW. Source: docs/training.md 5."""

    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-20
    muon_momentum: float = 0.95
    muon_update_rms: float = 0.18
    muon_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The dtype of Newton-Schulz products; weights and moments are always float32."""
    clip_norm: float = 1.0
    """Gradients longer than this are scaled down to it."""

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2", "muon_momentum"):
            _require(self, name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("eps", "muon_update_rms", "clip_norm"):
            _require(self, name, getattr(self, name) > 0, "above 0")
        _require(self, "weight_decay", self.weight_decay >= 0, "at least 0")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is minimised. Source: docs/training.md 2 and 3."""

    mtp_weight: float = 0.3
    """Weight of the MTP blocks' loss until the learning rate decays; at 0 the blocks do not run."""
    mtp_weight_in_decay: float = 0.1
    middle_weight: float = 1.0
    """Weight of a token of a middle, where one of ordinary text has 1: middles are short, and only
    they teach the network to read the text on both sides."""
    balance_weight: float = 1e-4
    """Weight of the loss that balances expert load within each sequence."""
    bias_speed: float = 0.001
    """How far each gate's bias moves per step against its expert's load."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            _require(self, entry.name, getattr(self, entry.name) >= 0, "at least 0")


@dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """The schedule of CSA layers from dense to sparse attention. Source: docs/training.md 4.1.

    Steps [0, dense_steps): CSA layers attend to every visible entry, the indexer rests. The next
    `indexer_steps`: still dense, and only the indexer trains, on the attention it sees. After that:
    attention is sparse, and the network and the indexer each train by their own losses.
    """

    dense_steps: int = 0
    indexer_steps: int = 0
    indexer_lr: float = 1e-3
    """Constant, while only the indexer learns."""

    def __post_init__(self) -> None:
        for name in ("dense_steps", "indexer_steps"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        _require(self, "indexer_lr", self.indexer_lr > 0, "above 0")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a step is skipped, and when training rolls back."""

    loss_margin: float = 1.0
    """A loss this far above its recent median, in nats, is a spike; that step is skipped."""
    spike_factor: float = 10.0
    """So is a gradient norm above this many times the largest recent one, if it is long enough to
    be clipped."""
    history_steps: int = 64
    """Steps that count as recent; nothing is a spike until half as many were taken."""
    patience: int = 8
    """After so many skipped steps in a row training rolls back to the last checkpoint, and goes on
    with later data."""
    rollbacks: int = 3
    """Rollbacks of a run; one more ends it with an error."""

    def __post_init__(self) -> None:
        _require(self, "loss_margin", self.loss_margin > 0, "above 0")
        _require(self, "spike_factor", self.spike_factor > 1, "above 1")
        for name in ("history_steps", "patience"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "rollbacks", self.rollbacks >= 0, "at least 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where tokens come from, and how a batch is made of them."""

    source: Literal["dataset", "copying", "repeats"] = "dataset"
    """`copying` generates sequences whose second half repeats the first; it needs no files.
    `repeats` draws unrelated tokens from the dataset and repeats a stretch of them, which teaches a
    network that knows the tokens already to look back (see `synthetic.py`)."""
    path: str | None = None
    """Folder of the dataset to train on, as `data tokenize` makes it."""
    mixture: tuple[Share, ...] = ()
    """Or several datasets, with weights that may change over the run, as JSON:
    `[{"name": "corpus", "path": "train", "weight": 0.7}, ...]`, and `"final_weight"`."""
    held_out: str | None = None
    """Folder of the dataset to validate on; without it there is no validation."""
    sequence_tokens: int = 1024
    """Longest sequence."""
    batch_tokens: int = 4096
    """Most tokens of a batch (one forward pass); a step has `train.accumulation` of them."""
    fim: FimSettings = field(default_factory=FimSettings)
    split_rate: float = 0.1
    """Share of tokens of punctuation and line ends that are split in two, so that a text which
    stops between them is no surprise."""
    validation_tokens: int = 65536
    """Most held-out tokens of a validation."""

    @property
    def rows(self) -> int:
        """How many of the longest sequences fit into a batch."""
        return self.batch_tokens // self.sequence_tokens

    def __post_init__(self) -> None:
        _require(self, "sequence_tokens", self.sequence_tokens >= 2, "at least 2")
        rule = f"a multiple of sequence_tokens = {self.sequence_tokens}"
        rows, rest = divmod(self.batch_tokens, self.sequence_tokens)
        _require(self, "batch_tokens", rows >= 1 and rest == 0, rule)
        _require(self, "split_rate", 0 <= self.split_rate <= 1, "a share from 0 to 1")
        require_mixture(self.mixture)
        if self.mixture and (self.path is not None or self.source != "dataset"):
            other = (
                f"path = {self.path!r}" if self.path is not None else f"source = {self.source!r}"
            )
            raise ValueError(
                f"data.{other} and data.mixture both say what to read; take one of them out, such "
                "as with data.path=none"
            )
        _require(self, "validation_tokens", self.validation_tokens >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop, and the schedule of the learning rate. Source: docs/training.md 5.4."""

    steps: int = 1000
    """Steps of the whole run."""
    lr: float = 2.7e-4
    """Highest learning rate, of Muon and AdamW alike."""
    final_lr: float = 2.7e-5
    warmup_steps: int = 100
    """The first steps, over which the rate rises linearly."""
    decay_steps: int = 200
    """The last steps, over which a cosine leads to `final_lr`; MTP weighs less from there on."""
    accumulation: int = 1
    """Batches whose gradients make one step."""
    seed: int = 0
    """Seed of the initial weights, the hash tables and the order of data."""
    initial_weights: str | None = None
    """Folder of a model to begin with instead of random weights, or of a run's checkpoint
    (`RUN/checkpoints/step-N`) to begin with weights and moments; read at step 0 only."""
    only: str | None = None
    """Train only parameters whose names begin with this, such as `mtp.`."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The dtype in which the network computes; weights, gradients and moments are float32."""
    qat: bool = False
    """Quantization-aware training: round weights and activations as they are
    deployed. Source: docs/training.md 6."""
    compile: bool = False
    """Run the network's blocks through torch.compile, which takes minutes at first."""
    deterministic: bool = True
    """Allow only deterministic algorithms; resuming is exact only then."""

    def __post_init__(self) -> None:
        _require(self, "steps", self.steps >= 1, "at least 1")
        _require(self, "warmup_steps", self.warmup_steps >= 0, "at least 0")
        rule = f"between 0 and steps = {self.steps}"
        _require(self, "decay_steps", 0 <= self.decay_steps <= self.steps, rule)
        _require(self, "lr", 0 < self.lr < math.inf, "a finite number above 0")
        _require(self, "final_lr", 0 <= self.final_lr <= self.lr, f"from 0 to lr = {self.lr}")
        _require(self, "accumulation", self.accumulation >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the processes of a run share its work; see docs/clusters.md. Not part of what a run
    computes: it may go on with others."""

    data: int | None = None
    """Processes that take batches of their own; none: all that the other two leave."""
    expert: int = 1
    """Processes that routed experts are divided over; each takes batches of its own, too."""
    context: int = 1
    """Processes that share a batch, each with its part of the tokens."""
    whole_models: bool = True
    """Whether the first of several processes adds the whole model to each checkpoint, for other
    commands; it must have the memory for it."""

    def __post_init__(self) -> None:
        for name in ("data", "expert", "context"):
            value = getattr(self, name)
            _require(self, name, value is None or value >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a run reports and saves, in steps."""

    every: int = 1
    validate_every: int = 250
    checkpoint_every: int = 250
    keep_checkpoints: int = 2
    milestone_every: int = 0
    """Steps between milestones: weights in bf16 that are kept for good, to be measured; 0: none."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            least = 0 if entry.name == "milestone_every" else 1
            _require(self, entry.name, getattr(self, entry.name) >= least, f"at least {least}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes; the device is not part of it."""

    name: str
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; the model in its published form."""
        return {**dataclasses.asdict(self), "model": self.model.to_dict()}


def _require(owner: object, name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {getattr(owner, name)!r} must be {rule}")
