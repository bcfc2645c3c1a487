"""The settings of post-training runs, beside those that every run has, and their recipes."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from sounding.config import ModelConfig
from sounding.text.markup import EFFORT_TEXTS
from sounding.train.run_config import (
    DataConfig,
    LogConfig,
    RunConfig,
    TrainConfig,
)


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value!r} must be {rule}")


def _require_scheme(name: str, scheme: str) -> None:
    _require(scheme in EFFORT_TEXTS, name, scheme, f"one of {list(EFFORT_TEXTS)}")


@dataclass(frozen=True, kw_only=True)
class ConversationsConfig:
    """What `posttrain sft` trains on."""

    path: str | None = None
    """JSON lines of conversations."""
    held_out: str | None = None
    """The same, to validate on."""
    effort_scheme: str = "april"
    """Which efforts `thinking` may name: see docs/prompt.md 9."""

    def __post_init__(self) -> None:
        _require_scheme("conversations.effort_scheme", self.effort_scheme)


@dataclass(frozen=True, kw_only=True)
class RolloutsConfig:
    """How answers are sampled from the network that is being trained."""

    tasks: str | None = None
    """JSON lines of tasks: prompts with what their answers are graded by."""
    prompts: int = 8
    """Prompts of a round."""
    group: int = 8
    """Answers to each of them."""
    max_tokens: int = 256
    """Of an answer; one that has not ended by then scores 0."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    updates: int = 1
    """Least number of updates from one round. A round that does not fit one takes more."""
    width: int = 16
    """Answers that are sampled at a time."""
    reference: bool = False
    """Sample by the PyTorch reference even where the kernels serve the network."""
    most_difference: float = 1e-3
    """Mean difference of log-probabilities between sampler and trainer, in nats, above which the
    run stops."""
    keep_rounds: int = 32
    """Rounds whose answers stay on disk; a checkpoint needs the round it was taken in."""
    effort_scheme: str = "april"
    turns: int = 8
    """Most turns of an answer that calls tools."""
    program_seconds: float = 10.0
    """Wall time of a program in the sandbox, when an answer is graded or a tool runs it."""

    def __post_init__(self) -> None:
        for name in (
            "prompts", "group", "max_tokens", "updates", "width", "keep_rounds", "turns"
        ):  # fmt: skip
            value = getattr(self, name)
            _require(value >= 1, f"rollouts.{name}", value, "at least 1")
        _require(self.temperature > 0, "rollouts.temperature", self.temperature, "above 0")
        seconds = self.program_seconds
        _require(seconds > 0, "rollouts.program_seconds", seconds, "above 0")
        difference = self.most_difference
        _require(difference > 0, "rollouts.most_difference", difference, "above 0")
        _require_scheme("rollouts.effort_scheme", self.effort_scheme)


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """Group relative policy optimisation. Source: docs/post-training.md 3."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    """A ratio counts from 1 - clip_low to 1 + clip_high; 0.28 leaves rare tokens more room."""
    kl_weight: float = 0.0
    """Weight of the divergence from the weights that the run began with."""
    off_policy_limit: float = 0.03
    """An answer worse than its group teaches nothing once the mean of log mu - log pi over it is
    above this."""
    length_penalty: float = 0.0
    """Taken off the reward of an answer of `rollouts.max_tokens`; of shorter ones in proportion."""
    patience_rounds: int = 8
    """So many rounds in a row without a group whose rewards differ end the run."""

    def __post_init__(self) -> None:
        _require(0 < self.clip_low < 1, "grpo.clip_low", self.clip_low, "between 0 and 1")
        _require(self.clip_high > 0, "grpo.clip_high", self.clip_high, "above 0")
        for name in ("kl_weight", "off_policy_limit", "length_penalty"):
            value = getattr(self, name)
            _require(value >= 0, f"grpo.{name}", value, "at least 0")
        _require(
            self.patience_rounds >= 1, "grpo.patience_rounds", self.patience_rounds, "at least 1"
        )


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A specialist, and the prompts that it teaches."""

    name: str
    model: str
    """Folder of its weights."""
    prompts: str
    """JSON lines of conversations; the answers at their ends are not read."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        _require(self.weight > 0, f"the weight of teacher {self.name!r}", self.weight, "above 0")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """On-policy distillation. Source: docs/post-training.md 4."""

    teachers: tuple[Teacher, ...] = ()
    """As JSON: `[{"name": "repair", "model": "runs/repair", "prompts": "repair.jsonl"}, ...]`."""
    forward_weight: float = 0.0
    """Share of KL(teacher || student) in the loss; the rest is KL(student || teacher)."""
    cache_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The dtype in which teachers' hidden states are kept."""

    def __post_init__(self) -> None:
        share = self.forward_weight
        _require(0 <= share <= 1, "distill.forward_weight", share, "from 0 to 1")
        names = [teacher.name for teacher in self.teachers]
        _require(len(names) == len(set(names)), "distill.teachers", names, "of different names")


@dataclass(frozen=True, kw_only=True)
class SftRun(RunConfig):
    """A run of `posttrain sft`."""

    conversations: ConversationsConfig = field(default_factory=ConversationsConfig)


@dataclass(frozen=True, kw_only=True)
class GrpoRun(RunConfig):
    """A run of `posttrain grpo`."""

    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)


@dataclass(frozen=True, kw_only=True)
class DistillRun(RunConfig):
    """A run of `posttrain distill`."""

    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)


# --------------------------------------------------------------------------------------------------
# Recipes, for a model in FP4 of the size of `nano`

_DATA = DataConfig(sequence_tokens=2048, batch_tokens=4096)
_LOG = LogConfig(validate_every=50, checkpoint_every=10)


def sft_recipe(model: ModelConfig) -> SftRun:
    """Fine-tuning at a quarter of the pre-training rate."""
    return SftRun(
        name="sft",
        model=model,
        data=_DATA,
        train=TrainConfig(
            steps=200,
            lr=3e-4,
            final_lr=1e-5,
            warmup_steps=10,
            decay_steps=190,
            accumulation=2,
            qat=model.quantization_config is not None,
        ),
        log=_LOG,
    )


def grpo_recipe(model: ModelConfig) -> GrpoRun:
    """Rates a twentieth of pre-training's: most steps move a weight by less than a code of FP4."""
    train, rollouts = _policy(model), _rollouts(model)
    return GrpoRun(name="grpo", model=model, data=_DATA, train=train, log=_LOG, rollouts=rollouts)


def distill_recipe(model: ModelConfig) -> DistillRun:
    """As GRPO, with a teacher at every token instead of a reward at the end."""
    return DistillRun(
        name="distill",
        model=model,
        data=_DATA,
        train=_policy(model),
        log=_LOG,
        rollouts=dataclasses.replace(_rollouts(model), prompts=64, group=1),
    )


def _rollouts(model: ModelConfig) -> RolloutsConfig:
    """The kernels of sampler and trainer sum in another order. For `nano` in bfloat16 that makes
    0.009 nats in the mean; with activations rounded to FP8, where a last bit can become a whole
    code, 0.05."""
    return RolloutsConfig(most_difference=0.02 if model.quantization_config is None else 0.1)


def _policy(model: ModelConfig) -> TrainConfig:
    return TrainConfig(
        steps=100,
        lr=6e-5,
        final_lr=6e-6,
        warmup_steps=5,
        decay_steps=95,
        accumulation=4,
        qat=model.quantization_config is not None,
    )
