"""Where batches come from, and what is saved beside a model that was made of them."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sounding.data.dataset import tokenize
from sounding.ops.loss import IGNORED
from sounding.text.fim_format import FimFormat
from sounding.text.tokenizer import SMALLEST_VOCABULARY, train
from sounding.train.runs import change, named_run
from sounding.train.source import files_beside, open_source
from sounding.train.synthetic import repeats

TOKENS = np.arange(100, 400, dtype=np.uint16)


@pytest.mark.parametrize("sequence_tokens", [8, 33, 256])
def test_targets_are_the_second_time_of_a_stretch(sequence_tokens: int) -> None:
    places = set()
    for batch, _ in itertools.islice(repeats(TOKENS, sequence_tokens, 4, 0)(None), 20):
        assert batch.lengths == [sequence_tokens] * 4
        assert set(batch.tokens.tolist()) <= set(TOKENS.tolist())
        rows = batch.tokens.view(4, -1)
        for row, targets in zip(rows, batch.targets.view(4, -1), strict=True):
            counted = (targets != IGNORED).nonzero().flatten()
            begin, end = int(counted[0]), int(counted[-1]) + 1
            assert len(counted) == end - begin
            assert torch.equal(targets[begin:end], row[begin + 1 : end + 1])
            again = row[begin : end + 1]
            length = len(again)
            assert sequence_tokens // 8 <= length <= sequence_tokens // 2
            earlier = [
                at for at in range(begin - length + 1) if torch.equal(row[at : at + length], again)
            ]
            assert earlier, "what is said again was said before"
            places.add((earlier[0], begin - earlier[0]))
    assert len(places) > (3 if sequence_tokens == 8 else 40)


def test_the_stream_resumes_and_depends_on_the_seed() -> None:
    stream = list(itertools.islice(repeats(TOKENS, 32, 2, 5)(None), 6))
    resumed = list(itertools.islice(repeats(TOKENS, 32, 2, 5)(stream[2][1]), 3))
    for (batch, state), (again, later) in zip(stream[3:], resumed, strict=True):
        assert torch.equal(batch.tokens, again.tokens) and state == later
    other, _ = next(repeats(TOKENS, 32, 2, 6)(None))
    assert not torch.equal(other.tokens, stream[0][0].tokens)


def test_the_order_of_gaps_is_saved_with_the_model(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    train(["def f(x):\n    return x + 1\n" * 20], SMALLEST_VOCABULARY).save(data / "tokenizer.json")
    for share, first in ((0.0, False), (1.0, True)):
        settings = [f"data.path={data}", f"data.fim.suffix_first={share}"]
        model = tmp_path / f"model-{share}"
        model.mkdir()
        for file in files_beside(change(named_run("nano"), settings), tmp_path / f"run-{share}"):
            shutil.copy(file, model)
        assert FimFormat.from_folder(model).suffix_first == first


def test_a_mixture_is_read_by_its_weights_and_resumes(tmp_path: Path) -> None:
    texts = {name: [f"# {name} {n}\n" + "x = 1\n" * 30 for n in range(9)] for name in ("a", "b")}
    tokenizer = train([text for some in texts.values() for text in some], SMALLEST_VOCABULARY)
    for name, some in texts.items():
        tokenize(some, tokenizer, tmp_path / name)
    parts = [
        {"name": "a", "path": str(tmp_path / "a"), "weight": 1, "final_weight": 0},
        {"name": "b", "path": str(tmp_path / "b"), "weight": 0, "final_weight": 1},
    ]
    settings = [f"data.mixture={json.dumps(parts)}", "train.steps=20", "train.decay_steps=0"]
    settings += ["data.sequence_tokens=256", "data.batch_tokens=1024", "train.accumulation=1"]
    settings.append(f"model.vocab_size={tokenizer.num_tokens}")
    run = change(named_run("nano"), settings)
    found = list(itertools.islice(open_source(run)(None), 20))
    said = [b"".join(tokenizer.token_bytes[i] for i in batch.tokens.tolist()) for batch, _ in found]
    shares = [text.count(b"# b") / text.count(b"# ") for text in said]
    assert sum(shares[:5]) < 1 < 4 < sum(shares[15:])
    resumed = list(itertools.islice(open_source(run)(found[7][1]), 12))
    for (batch, state), (again, later) in zip(found[8:], resumed, strict=True):
        assert torch.equal(batch.tokens, again.tokens) and state == later
    assert files_beside(run, tmp_path / "run")[0] == tmp_path / "a" / "tokenizer.json"
