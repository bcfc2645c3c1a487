"""Runs are read and changed strictly."""

import json

import pytest

from sounding.train.runs import RUNS, change, copying, differences, named_run, parse_run


@pytest.mark.parametrize("name", RUNS)
def test_a_run_survives_json(name: str) -> None:
    run = named_run(name)
    assert run.name == name
    assert parse_run(json.loads(json.dumps(run.to_dict()))) == run


def test_settings_go_by_the_type_of_the_field() -> None:
    run = change(
        copying(),
        [
            "train.lr=3e-4",
            "train.final_lr=1e-5",
            "train.qat=true",
            "data.path=/some/where",
            "data.fim.rate=0.25",
            "model.compress_ratios=[4, 4, 4, 4, 0]",
            "model.rope_scaling.factor=2",
        ],
    )
    assert run.train.lr == 3e-4 and run.train.qat is True
    assert run.data.path == "/some/where" and run.data.fim.rate == 0.25
    assert run.model.compress_ratios == (4, 4, 4, 4, 0)
    assert run.model.rope_scaling is not None and run.model.rope_scaling.factor == 2.0
    assert change(run, ["data.path=none"]).data.path is None
    assert differences(copying(), change(copying(), ["train.lr=0.01"])) == [
        "train.lr: 0.005 -> 0.01"
    ]


def test_settings_that_only_fit_together_are_taken_together() -> None:
    run = change(copying(), ["train.steps=10", "train.decay_steps=5"])
    assert (run.train.steps, run.train.decay_steps) == (10, 5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.learning_rate=1", "unknown key 'learning_rate'"),
        ("train.lrr=1", "did you mean 'lr'"),
        ("trian.lr=1", "did you mean 'train'"),
        ("train.lr", "field.name=value"),
        ("train.lr=fast", "train.lr = 'fast' must be of type float"),
        ("train.qat=1", "train.qat = '1' must be of type bool"),
        ("train.steps=1e3", "train.steps = '1e3' must be of type int"),
        ("train.dtype=half", "train.dtype = 'half' must be bfloat16 or float32"),
        ("train.lr=-1", "lr = -1.0 must be a finite number above 0"),
        ("train=1", "train is a group of fields; set one of train.steps"),
        ("train.lr.peak=1", "train.lr = 0.005 has no field 'peak'"),
        ("data.batch_tokens=100", "batch_tokens = 100 must be a multiple of"),
    ],
)
def test_other_settings_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        change(copying(), [setting])


def test_an_unknown_run_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'copying'"):
        named_run("copy")


def test_saved_runs_are_read_strictly() -> None:
    raw = copying().to_dict()
    raw["train"]["speed"] = 1
    with pytest.raises(ValueError, match="unknown key 'speed'"):
        parse_run(raw)
