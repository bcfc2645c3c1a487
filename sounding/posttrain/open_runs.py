"""Puts a run of post-training together: its network, its batches, its objective, its trainer."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sounding.data.token_batch import TokenBatch
from sounding.engine.sampling import SamplingParams
from sounding.model.transformer import Transformer
from sounding.posttrain.conversations import prompt_of, read_conversations
from sounding.posttrain.dialogues import Dialogues
from sounding.posttrain.distill import Distill, TaughtBatches, Teachers
from sounding.posttrain.frozen import load_frozen, reference_logprobs
from sounding.posttrain.grpo import REFERENCE, Grpo, batches_of_rounds, grpo_batches
from sounding.posttrain.rollout_batch import RolloutBatch
from sounding.posttrain.rollouts import RolloutSettings
from sounding.posttrain.rounds import Answer, Enrich, Round, RoundPrompts, Rounds
from sounding.posttrain.run_configs import DistillRun, GrpoRun, RolloutsConfig, SftRun
from sounding.posttrain.sampler import Sampler
from sounding.posttrain.sft import held_out_of, read_samples, sample_source
from sounding.posttrain.task_prompts import GradedChats, drawn, read_tasks, task_prompts
from sounding.text.tokenizer import Tokenizer
from sounding.train.build_network import build_network
from sounding.train.metrics import MetricsRow
from sounding.train.run_config import RunConfig
from sounding.train.supervised import Supervised
from sounding.train.trainer import Trainer

_log = logging.getLogger(__name__)

Report = Callable[[MetricsRow], None]
_BESIDE = ("tokenizer.json", "tokenizer_config.json")


def tokenizer_of(run: RunConfig, folder: Path) -> Tokenizer:
    """The tokenizer of a run, copied into its folder from beside the weights it begins with.

    Raises ValueError where there is none.
    """
    if not (folder / _BESIDE[0]).is_file():
        begins = run.train.initial_weights
        if begins is None or not (Path(begins) / _BESIDE[0]).is_file():
            raise ValueError(
                f"train.initial_weights = {begins!r} has no {_BESIDE[0]}: post-training begins "
                "with the folder of a model (--from), whose tokenizer lies beside its weights"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name in reversed(_BESIDE):
            if (Path(begins) / name).is_file():
                shutil.copyfile(Path(begins) / name, folder / name)
    return Tokenizer.from_file(folder, run.model.vocab_size)


def files_beside(folder: Path) -> list[Path]:
    """What is saved with every model of a run, for `tokenizer_of` has put it there."""
    return [folder / name for name in _BESIDE if (folder / name).is_file()]


# --------------------------------------------------------------------------------------------------
# SFT


def open_sft(
    run: SftRun, folder: Path, *, report: Report = lambda row: None, allow_change: bool = False
) -> Trainer[TokenBatch]:
    """The trainer of a run of `posttrain sft`, new or resumed.

    Raises ValueError for conversations that cannot be trained on, before anything else is done.
    """
    if run.conversations.path is None:
        raise ValueError("conversations.path is not set: name a file of conversations (--data)")
    tokenizer = tokenizer_of(run, folder)
    samples = read_samples(Path(run.conversations.path), run, tokenizer)
    held_out = None
    if run.conversations.held_out is not None:
        held_out = held_out_of(
            read_samples(Path(run.conversations.held_out), run, tokenizer), run, tokenizer
        )
    return Trainer(
        run,
        folder,
        sample_source(samples, run.data.batch_tokens, run.train.seed),
        Supervised(run, held_out),
        device=torch.device("cpu"),
        report=report,
        beside=files_beside(folder),
        allow_change=allow_change,
    )


# --------------------------------------------------------------------------------------------------
# Rollouts


MakeSampler = Callable[[Transformer, RolloutsConfig], Sampler]


def local_sampler(model: Transformer, config: RolloutsConfig) -> Sampler:
    """One engine in this process."""
    return Sampler(model, width=config.width, reference=config.reference)


class RoundFacts:
    """What is recorded of the round that a step belongs to."""

    def __init__(self) -> None:
        self.row: MetricsRow = {}

    def __call__(self) -> MetricsRow:
        return self.row


def rollout_settings(config: RolloutsConfig, seed: int, eos: int) -> RolloutSettings:
    """How answers are sampled."""
    return RolloutSettings(
        params=SamplingParams(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            min_p=config.min_p,
            seed=seed,
        ),
        max_tokens=config.max_tokens,
        eos=eos,
        width=config.width,
    )


def require_room(
    prompts: Sequence[Sequence[int]], names: Sequence[str], run: RunConfig, max_tokens: int
) -> None:
    """Raise ValueError for a prompt that leaves no room for an answer of `max_tokens`."""
    room = min(run.data.batch_tokens, run.model.max_position_embeddings)
    for prompt, name in zip(prompts, names, strict=True):
        if len(prompt) + max_tokens > room:
            raise ValueError(
                f"the prompt of {name} has {len(prompt)} tokens and rollouts.max_tokens is "
                f"{max_tokens}, where {room} fit a batch (data.batch_tokens) and the model: "
                "shorten it, or change one of them"
            )


def _rounds(
    run: GrpoRun | DistillRun,
    folder: Path,
    model: Transformer,
    tokenizer: Tokenizer,
    ask: Callable[[int], RoundPrompts],
    enrich: Enrich | None,
    make_sampler: MakeSampler,
) -> Rounds:
    """The rounds of a run in a folder, sampled from `model`."""
    config = run.rollouts
    return Rounds(
        folder,
        model,
        make_sampler(model, config),
        ask,
        rollout_settings(config, run.train.seed, tokenizer.eos_id),
        enrich=enrich,
        keep=config.keep_rounds,
    )


def open_grpo(
    run: GrpoRun,
    folder: Path,
    task: GradedChats | None = None,
    *,
    report: Report = lambda row: None,
    allow_change: bool = False,
    make_sampler: MakeSampler = local_sampler,
) -> Trainer[RolloutBatch]:
    """The trainer of a run of `posttrain grpo`, new or resumed; `task` is that of
    `rollouts.tasks` by default. Raises ValueError for tasks that cannot be asked."""
    config = run.rollouts
    tokenizer = tokenizer_of(run, folder)
    if task is None:
        if config.tasks is None:
            raise ValueError("rollouts.tasks is not set: name a file of tasks (--tasks)")
        task = read_tasks(Path(config.tasks), config.program_seconds)
    if config.group < 2:
        raise ValueError(
            f"rollouts.group = {config.group} must be at least 2: rewards are compared in a group"
        )
    model = build_network(run, torch.device("cpu"))
    rounds = _rounds(
        run,
        folder,
        model,
        tokenizer,
        _ask_tasks(run, task, tokenizer),
        _reference(run) if run.grpo.kl_weight else None,
        make_sampler,
    )
    facts = RoundFacts()
    idle = 0

    def open_round(number: int, begun: bool) -> list[RolloutBatch]:
        nonlocal idle
        found = rounds.open(number, begun=begun)
        rewards = rewards_of(found, run)
        batches = grpo_batches(found, run, rewards)
        facts.row = round_facts(found, run, rewards, tokenizer.eos_id) | {"idle_rounds": idle}
        idle = 0 if batches else idle + 1
        if not batches:
            _log.warning("round %d: all answers of every group have the same reward", number)
        return batches

    return Trainer(
        run,
        folder,
        batches_of_rounds(open_round, run.grpo.patience_rounds),
        Grpo(run, facts),
        device=torch.device("cpu"),
        network=model,
        report=report,
        beside=files_beside(folder),
        allow_change=allow_change,
    )


def _ask_tasks(
    run: GrpoRun, task: GradedChats, tokenizer: Tokenizer
) -> Callable[[int], RoundPrompts]:
    """A function from the number of a round to its prompts, with a dialogue for each answer."""
    config = run.rollouts
    conversations, prompts = task_prompts(task, tokenizer, effort_scheme=config.effort_scheme)
    require_room(prompts, [one.where for one in conversations], run, config.max_tokens)

    def ask(number: int) -> RoundPrompts:
        chosen = drawn(len(prompts), number, config.prompts, run.train.seed)
        examples = [index for index in chosen for _ in range(config.group)]
        dialogues = Dialogues(
            task,
            examples,
            conversations,
            prompts,
            tokenizer,
            eos=tokenizer.eos_id,
            most_turns=config.turns,
            most_tokens=min(run.data.batch_tokens, run.model.max_position_embeddings),
            most_sampled=config.max_tokens,
        )
        return RoundPrompts(
            [prompts[index] for index in examples], dialogues.grade, dialogues.reply
        )

    return ask


def _reference(run: GrpoRun) -> Enrich:
    """Adds the log-probabilities of the weights that the run began with."""
    begins = run.train.initial_weights
    if begins is None:
        raise ValueError(
            f"grpo.kl_weight = {run.grpo.kl_weight} needs train.initial_weights (--from): the "
            "divergence is from the weights that the run began with"
        )
    frozen: list[Transformer] = []

    def enrich(answers: Sequence[Answer]) -> list[dict[str, Tensor]]:
        if not frozen:
            frozen.append(load_frozen(Path(begins), run))
        found = reference_logprobs(frozen[0], answers, run, run.rollouts.temperature)
        return [{REFERENCE: logprobs} for logprobs in found]

    return enrich


def rewards_of(found: Round, run: GrpoRun) -> list[float]:
    """Scores, less what length costs."""
    penalty, most = run.grpo.length_penalty, run.rollouts.max_tokens
    return [one.score - penalty * one.num_sampled / most for one in found.answers]


def round_facts(found: Round, run: GrpoRun, rewards: Sequence[float], eos: int) -> MetricsRow:
    """Rewards, passes, lengths: what is recorded of a round."""
    group, answers = run.rollouts.group, found.answers
    passed = np.array([one.score >= 1 for one in answers]).reshape(-1, group)
    spread = [len(set(rewards[low : low + group])) > 1 for low in range(0, len(rewards), group)]
    return {
        "round": found.number,
        "reward": float(np.mean(rewards)),
        "pass_at_1": float(passed.mean()),
        f"pass_at_{group}": float(passed.any(-1).mean()),
        "answer_tokens": float(np.mean([one.num_sampled for one in answers])),
        "unfinished": float(np.mean([int(one.tokens[-1]) != eos for one in answers])),
        "time_outs": float(np.mean(["time" in one.reason.split() for one in answers])),
        "groups_without_spread": spread.count(False),
    }


def open_distill(
    run: DistillRun,
    folder: Path,
    *,
    report: Report = lambda row: None,
    allow_change: bool = False,
    make_sampler: MakeSampler = local_sampler,
) -> Trainer[RolloutBatch]:
    """The trainer of a run of `posttrain distill`, new or resumed. Raises ValueError for teachers
    of another vocabulary and prompts that cannot be asked."""
    tokenizer = tokenizer_of(run, folder)
    teachers = Teachers(run, tokenizer)
    ask, owners = _ask_teachers(run, tokenizer)
    model = build_network(run, torch.device("cpu"))
    rounds = _rounds(
        run,
        folder,
        model,
        tokenizer,
        ask,
        lambda answers: teachers.enrich(answers, owners),
        make_sampler,
    )
    facts = RoundFacts()

    def open_round(number: int, begun: bool) -> TaughtBatches:
        found = rounds.open(number, begun=begun)
        lengths = [one.num_sampled for one in found.answers]
        facts.row = {"round": number, "answer_tokens": float(np.mean(lengths))}
        return TaughtBatches(found, run, teachers)

    return Trainer(
        run,
        folder,
        batches_of_rounds(open_round),
        Distill(run, facts),
        device=torch.device("cpu"),
        network=model,
        report=report,
        beside=files_beside(folder),
        allow_change=allow_change,
    )


def _ask_teachers(
    run: DistillRun, tokenizer: Tokenizer
) -> tuple[Callable[[int], RoundPrompts], list[int]]:
    """A function from the number of a round to its prompts, and a list that it fills with the
    teacher of each prompt of the latest round.

    The prompts of a round are ordered by teacher.
    """
    config = run.rollouts
    prompts: list[list[int]] = []
    owners: list[int] = []
    names: list[str] = []
    for number, teacher in enumerate(run.distill.teachers):
        path = Path(teacher.prompts)
        for conversation in read_conversations(path, effort_scheme=config.effort_scheme):
            prompts.append(prompt_of(conversation, tokenizer))
            owners.append(number)
            names.append(conversation.where)
    require_room(prompts, names, run, config.max_tokens)
    latest: list[int] = []

    def ask(number: int) -> RoundPrompts:
        found = drawn(len(prompts), number, config.prompts, run.train.seed)
        ordered = sorted(found, key=lambda index: owners[index])
        chosen = [index for index in ordered for _ in range(config.group)]
        latest[:] = [owners[index] for index in chosen]
        return RoundPrompts([prompts[index] for index in chosen])

    return ask, latest
