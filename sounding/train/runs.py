"""Recipes: named runs; and how to change, save and read a run, strictly."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from sounding import presets as models
from sounding.config import ModelConfig, QuantizationConfig
from sounding.config_file import parse_config, refuse_unknown
from sounding.data.fim import FimSettings
from sounding.train.run_config import (
    DataConfig,
    LogConfig,
    ObjectiveConfig,
    RunConfig,
    SparsityConfig,
    TrainConfig,
)

R = TypeVar("R", bound=RunConfig)

# --------------------------------------------------------------------------------------------------
# Recipes


def copying() -> RunConfig:
    """Learn to repeat random sequences: every mechanism, no data files, minutes on a CPU."""
    return RunConfig(
        name="copying",
        model=ModelConfig(
            vocab_size=64,
            hidden_size=64,
            moe_intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            head_dim=32,
            qk_rope_head_dim=16,
            q_lora_rank=64,
            num_experts_per_tok=2,
            n_routed_experts=4,
            o_groups=2,
            o_lora_rank=32,
            index_n_heads=4,
            index_head_dim=32,
            index_topk=8,
            sliding_window=16,
            compress_ratios=(0, 4, 128, 4, 0),
            num_hash_layers=1,
            quantization_config=QuantizationConfig(),
        ),
        data=DataConfig(source="copying", sequence_tokens=160, batch_tokens=1280),
        train=TrainConfig(steps=600, lr=5e-3, final_lr=5e-4, warmup_steps=20, decay_steps=200),
        sparsity=SparsityConfig(dense_steps=300, indexer_steps=50),
        log=LogConfig(checkpoint_every=100),
    )


def nano() -> RunConfig:
    """The shipped model for code, in about ten hours on two cores of a CPU: see docs/nano.md."""
    fim = FimSettings(
        rate=0.8,
        longest=384,
        character_share=0.08,
        rest=0.25,
        line=0.5,
        few=0.1,
        block=0.15,
        suffix_first=1.0,
    )
    return RunConfig(
        name="nano",
        model=models.nano(),
        data=DataConfig(batch_tokens=4096, fim=fim, validation_tokens=16_384),
        train=TrainConfig(
            steps=3000,
            lr=1.2e-3,
            final_lr=4e-5,
            warmup_steps=30,
            decay_steps=2500,
            accumulation=2,
        ),
        objective=ObjectiveConfig(middle_weight=3.0),
        sparsity=SparsityConfig(dense_steps=2600, indexer_steps=20),
        log=LogConfig(validate_every=100, checkpoint_every=50, milestone_every=300),
    )


def repeats() -> RunConfig:
    """An exercise for a `nano` that knows its tokens: to look back for tokens seen before."""
    return RunConfig(
        name="repeats",
        model=models.nano(),
        data=DataConfig(source="repeats", sequence_tokens=512, batch_tokens=4096),
        train=TrainConfig(
            steps=60, lr=2e-3, final_lr=2e-3, warmup_steps=10, decay_steps=0, accumulation=2
        ),
        objective=ObjectiveConfig(mtp_weight=0.0),
        sparsity=SparsityConfig(dense_steps=60),
        log=LogConfig(validate_every=30, checkpoint_every=20),
    )


RUNS: dict[str, Callable[[], RunConfig]] = {run.__name__: run for run in (copying, nano, repeats)}


def named_run(name: str) -> RunConfig:
    """The recipe of this name. Raises ValueError with the nearest name if there is none."""
    if name not in RUNS:
        near = difflib.get_close_matches(name, RUNS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{name!r} is neither a recipe ({', '.join(RUNS)}) nor the folder of a run{hint}"
        )
    return RUNS[name]()


# --------------------------------------------------------------------------------------------------
# Changing one field


def change(run: R, settings: Sequence[str]) -> R:
    """Apply settings such as `train.lr=3e-4`, each parsed by the type of its field, all at once.

    Raises ValueError for an unknown field (naming the nearest one) or a value of another type.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"setting {setting!r} must have the form field.name=value")
        *above, name = path.strip().split(".")
        branch = tree
        for part in above:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                raise ValueError(
                    f"setting {setting!r} names a part of a field that is set as a whole"
                )
        branch[name] = text.strip()
    changed: R = _changed(run, tree, "")
    return changed


def _changed(owner: Any, tree: Mapping[str, Any], above: str) -> Any:
    fields = {entry.name: entry for entry in dataclasses.fields(owner)}
    refuse_unknown(tree, fields, above.rstrip(".") or "a run")
    values = {}
    for name, given in tree.items():
        old, where = getattr(owner, name), f"{above}{name}"
        absent = _absent_group(old, fields[name].type)
        if absent is not None and not isinstance(given, str):
            values[name] = _made(absent, given, f"{where}.")
            continue
        if not isinstance(given, str) and not dataclasses.is_dataclass(old):
            raise ValueError(f"{where} = {old!r} has no field {next(iter(given))!r}")
        if not isinstance(given, str):
            values[name] = _changed(old, given, f"{where}.")
        elif dataclasses.is_dataclass(old):
            known = ", ".join(f"{where}.{entry.name}" for entry in dataclasses.fields(old))
            raise ValueError(f"{where} is a group of fields; set one of {known}")
        else:
            values[name] = _parse_text(given, fields[name].type, where)
    return dataclasses.replace(owner, **values)


def _absent_group(old: Any, kind: Any) -> type[Any] | None:
    """The dataclass of a group of fields that may be absent, and is."""
    groups = [option for option in get_args(kind) if dataclasses.is_dataclass(option)]
    return groups[0] if old is None and len(groups) == 1 and isinstance(groups[0], type) else None


def _made(kind: type[Any], tree: Mapping[str, Any], above: str) -> Any:
    """A group of fields from settings, which must give those without a default."""
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    refuse_unknown(tree, fields, above.rstrip("."))
    missing = [
        above + name
        for name, entry in fields.items()
        if name not in tree
        and entry.default is dataclasses.MISSING
        and entry.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{above.rstrip('.')} is absent; to have it, set {', '.join(missing)} too")
    return kind(
        **{name: _parse_text(text, fields[name].type, above + name) for name, text in tree.items()}
    )


def _parse_text(text: str, kind: Any, where: str) -> Any:
    """Read a value as the annotated type."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if NoneType in options and text.lower() in ("none", "null"):
            return None
        kinds = [option for option in options if option is not NoneType]
        return _parse_text(text, kinds[0], where)
    if origin is Literal:
        for option in options:
            if text == str(option):
                return option
        raise ValueError(f"{where} = {text!r} must be {' or '.join(map(str, options))}")
    if origin is tuple and dataclasses.is_dataclass(options[0]):
        return _parse_rows(text, options[0], where)
    if origin is tuple:
        items = text.strip("[]()").split(",")
        return tuple(_parse_text(item.strip(), options[0], where) for item in items if item.strip())
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float, str):
        try:
            return kind(text)
        except ValueError:
            pass
    raise ValueError(f"{where} = {text!r} must be of type {getattr(kind, '__name__', kind)}")


def _parse_rows(text: str, kind: Any, where: str) -> tuple[Any, ...]:
    """Read a JSON list of objects as dataclasses."""
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} = {text!r} must be a JSON list of objects: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{where} = {text!r} must be a JSON list of objects")
    return tuple(_parse_group(kind, row, f"{where}[{at}]") for at, row in enumerate(rows))


# --------------------------------------------------------------------------------------------------
# JSON


def parse_run(raw: Mapping[str, Any]) -> RunConfig:
    """Parse the result of `RunConfig.to_dict`; raises ValueError as `parse_run_as` does."""
    return parse_run_as(RunConfig, raw)


def parse_run_as(kind: type[R], raw: Mapping[str, Any]) -> R:
    """Parse the result of `to_dict` of a run with the fields of `kind`.

    Raises ValueError for unknown keys and values of another type.
    """
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    refuse_unknown(raw, fields, "a run")
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "model":
            values[name] = parse_config(value)
        elif dataclasses.is_dataclass(fields[name].type):
            values[name] = _parse_group(fields[name].type, value, name)
        else:
            values[name] = value
    return kind(**values)


def _parse_group(kind: Any, raw: Mapping[str, Any], where: str) -> Any:
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    if kind is DataConfig:
        raw = _without_second_dataset(raw)
    refuse_unknown(raw, fields, where)
    for name, entry in fields.items():
        needed = entry.default is MISSING and entry.default_factory is MISSING
        if needed and name not in raw:
            raise ValueError(f"{where} lacks {name!r}")
    values = {}
    for name, value in raw.items():
        if isinstance(value, Mapping):
            values[name] = _parse_group(fields[name].type, value, f"{where}.{name}")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            values[name] = _parse_text(text, fields[name].type, f"{where}.{name}")
    return kind(**values)


def _without_second_dataset(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Data settings without those for a second dataset, which runs had before mixtures.

    Raises ValueError where they were used: the order in which such a run read its text is gone.
    """
    if raw.get("more") is not None:
        raise ValueError(
            f"data.more = {raw['more']!r} is of a run from before data.mixture, which cannot go "
            "on in the same order: begin a new run with the weights and moments of its last "
            "checkpoint (--from RUN/checkpoints/step-N), and name both datasets in data.mixture"
        )
    return {name: value for name, value in raw.items() if name not in ("more", "more_times")}


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Fields in which two runs differ, as `train.lr: 0.001 -> 0.0003`."""
    before, after = _flat(old.to_dict()), _flat(new.to_dict())
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            rows.update(_flat(value, f"{above}{name}."))
        else:
            rows[above + name] = value
    return rows
