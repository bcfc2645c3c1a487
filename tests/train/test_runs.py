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
        ("data.mixture=corpus:1", "data.mixture = 'corpus:1' must be a JSON list of objects"),
        ('data.mixture={"name": "a"}', "must be a JSON list of objects"),
        ('data.mixture=[{"name": "a", "path": "a"}]', "data.mixture\\[0\\] lacks 'weight'"),
        ('data.mixture=[{"name": "a", "weigth": 1}]', "did you mean 'weight'"),
        ('data.mixture=[{"name": "a", "path": "a", "weight": "much"}]', "must be of type float"),
        ('data.mixture=[{"name": "a", "path": "a", "weight": -1}]', "weight of 'a' = -1.0 must be"),
        ('data.mixture=[{"name": "a", "path": "a", "weight": 1}]', "take one of them out"),
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


MIXTURE = [
    {"name": "corpus", "path": "/data/train", "weight": 3, "final_weight": 1},
    {"name": "book", "path": "/data/book", "weight": 1},
]


def test_a_mixture_survives_json() -> None:
    setting = f"data.mixture={json.dumps(MIXTURE)}"
    run = change(named_run("nano"), [setting])
    corpus, book = run.data.mixture
    assert (corpus.path, corpus.weight, corpus.final_weight) == ("/data/train", 3.0, 1.0)
    assert (book.name, book.weight, book.final_weight) == ("book", 1.0, None)
    assert parse_run(json.loads(json.dumps(run.to_dict()))) == run
    assert change(run, ["data.mixture=[]", "data.path=x"]).data.mixture == ()
    with pytest.raises(ValueError, match=r"data.path = 'x' and data.mixture both say what to read"):
        change(run, ["data.path=x"])
    assert "data.mixture: " in differences(named_run("nano"), run)[0]


def test_runs_from_before_mixtures_are_read_unless_they_had_two_datasets() -> None:
    raw = change(named_run("nano"), ["data.path=/data/train"]).to_dict()
    del raw["data"]["mixture"]
    raw["data"] |= {"more": None, "more_times": 1}
    assert parse_run(raw).data.path == "/data/train"
    raw["data"] |= {"more": "/data/problems", "more_times": 250}
    with pytest.raises(ValueError, match=r"begin a new run .* \(--from RUN/checkpoints/step-N\)"):
        parse_run(raw)
