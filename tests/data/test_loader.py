"""The stream of batches: what is in it, that it resumes anywhere, that ranks share it exactly."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sounding.data.data_rows import DataRows, LoaderSettings, stream_name
from sounding.data.dataset import Dataset, read_info, tokenize, verify
from sounding.data.fim import FimSettings
from sounding.data.loader import Loader
from sounding.data.token_batch import TokenBatch
from sounding.ops.loss import IGNORED
from sounding.text.markup import BOS, EOS, FIM_BEGIN, FIM_END, FIM_HOLE
from sounding.text.tokenizer import Tokenizer
from tests.data.conftest import code

TEXTS = [code(seed, 1 + seed % 9) for seed in range(60)]
Step = tuple[TokenBatch, dict[str, Any]]


@pytest.fixture(scope="module")
def dataset(tokenizer: Tokenizer) -> Dataset:
    return Dataset.from_texts(TEXTS, tokenizer)


def settings(rate: float = 0.5, **changes: Any) -> LoaderSettings:
    values = {"sequence_length": 128, "window_documents": 16, "fim": FimSettings(rate=rate)}
    return LoaderSettings(**{**values, **changes})


def sequences(batch: TokenBatch) -> list[list[int]]:
    return [part.tolist() for part in torch.split(batch.tokens, batch.lengths)]


def same(one: Step, other: Step) -> bool:
    return (
        torch.equal(one[0].tokens, other[0].tokens)
        and torch.equal(one[0].targets, other[0].targets)
        and (one[0].lengths, one[1]) == (other[0].lengths, other[1])
    )


def test_an_epoch_is_every_document_once(dataset: Dataset) -> None:
    found = []
    for batch, _ in Loader(DataRows(dataset, settings(0.0, sequence_length=2048)), rows=3).batches(
        epochs=1
    ):
        assert len(batch.tokens) == sum(batch.lengths) <= 3 * 2048
        found += sequences(batch)
    bos, eos = dataset.tokenizer.bos_id, dataset.tokenizer.eos_id
    expected = [[bos, *dataset.document(i).tolist(), eos] for i in range(len(dataset))]
    assert sorted(found) == sorted(expected)


def test_long_documents_are_cut_at_line_ends(dataset: Dataset) -> None:
    found = []
    for batch, _ in Loader(DataRows(dataset, settings(0.0)), rows=3).batches(epochs=1):
        assert len(batch.tokens) == sum(batch.lengths) <= 3 * 128
        found += [dataset.tokenizer.decode(ids) for ids in sequences(batch)]
    pieces = [piece.removeprefix(BOS).removesuffix(EOS) for piece in found]
    assert len(pieces) > 2 * len(TEXTS)
    assert all(piece.endswith("\n") or piece + EOS in found for piece in pieces)
    assert all(any(piece in text for text in TEXTS) for piece in pieces)
    lines = [line for text in TEXTS for line in text.splitlines()]
    assert sorted("".join(p if p.endswith("\n") else p + "\n" for p in pieces).splitlines()) == (
        sorted(lines)
    )
    assert (
        sum(BOS in piece for piece in found) == sum(EOS in piece for piece in found) == len(TEXTS)
    )


@pytest.mark.parametrize("middle_only", [False, True])
def test_targets_are_the_next_tokens_of_the_same_sequence(
    dataset: Dataset, middle_only: bool
) -> None:
    end_id = dataset.tokenizer.id_of(FIM_END)
    for batch, _ in Loader(DataRows(dataset, settings(middle_only=middle_only)), rows=4).batches(
        epochs=1
    ):
        wanted = torch.split(batch.targets, batch.lengths)
        for ids, targets in zip(sequences(batch), wanted, strict=True):
            expected = [*ids[1:], IGNORED]
            if middle_only and end_id in ids:
                cut = ids.index(end_id)
                expected[:cut] = [IGNORED] * cut
            assert targets.tolist() == expected


def test_rearranged_documents_are_the_documents(dataset: Dataset) -> None:
    tokenizer = dataset.tokenizer
    begin, hole, end = map(tokenizer.id_of, (FIM_BEGIN, FIM_HOLE, FIM_END))
    loader = Loader(DataRows(dataset, settings(1.0, sequence_length=512)), rows=4)
    rebuilt = []
    for batch, _ in loader.batches(epochs=1):
        for ids in sequences(batch):
            assert len(ids) <= 512
            assert (ids[0], ids[1], ids[-1]) == (tokenizer.bos_id, begin, tokenizer.eos_id)
            at, to = ids.index(hole), ids.index(end)
            parts = (ids[2:at], ids[to + 1 : -1], ids[at + 1 : to])
            rebuilt.append("".join(map(tokenizer.decode, parts)))
            for part in parts:  # each is tokenized as it will be when it is all there is
                assert part == tokenizer.encode(tokenizer.decode(part), named=False)
    assert set(rebuilt) >= {text for text in TEXTS if tokenizer.count(text) < 480}


def test_shorter_pieces_give_a_document_more_middles(dataset: Dataset) -> None:
    hole = dataset.tokenizer.id_of(FIM_HOLE)
    longest = 256

    def found(fim: FimSettings) -> list[list[int]]:
        loader = Loader(DataRows(dataset, settings(sequence_length=1024, fim=fim)), rows=4)
        return [ids for batch, _ in loader.batches(epochs=1) for ids in sequences(batch)]

    whole, cut = (found(FimSettings(rate=1.0, longest=limit)) for limit in (None, longest))
    assert max(map(len, whole)) > longest + 21 >= max(map(len, cut))
    assert sum(hole in ids for ids in cut) > 1.2 * sum(hole in ids for ids in whole)
    lengths = sorted(map(len, cut))
    assert lengths[len(lengths) // 4] < longest // 2 < lengths[-len(lengths) // 8]


def test_middles_are_what_follows_the_end_of_the_question(dataset: Dataset) -> None:
    end = dataset.tokenizer.id_of(FIM_END)
    for batch, _ in Loader(DataRows(dataset, settings(0.5)), rows=4).batches(epochs=1):
        for ids, middle in zip(sequences(batch), batch.middles, strict=True):
            assert middle == (len(ids) - 1 - ids.index(end) if end in ids else 0)


def test_the_suffix_may_come_first(dataset: Dataset) -> None:
    tokenizer = dataset.tokenizer
    begin, hole, end = map(tokenizer.id_of, (FIM_BEGIN, FIM_HOLE, FIM_END))
    how = settings(sequence_length=512, fim=FimSettings(rate=1.0, suffix_first=1.0))
    rebuilt, shares = [], []
    for batch, _ in Loader(DataRows(dataset, how), rows=4).batches(epochs=1):
        for ids, middle in zip(sequences(batch), batch.middles, strict=True):
            assert ids[:3] == [tokenizer.bos_id, begin, hole] and ids[-1] == tokenizer.eos_id
            to = ids.index(end)
            text = ids[to + 1 : -1]  # prefix and middle, tokenized as one
            assert text == tokenizer.encode(tokenizer.decode(text), named=False)
            assert 1 < middle <= len(text) + 1
            rebuilt.append(tokenizer.decode(text) + tokenizer.decode(ids[3:to]))
            shares.append(middle / len(text))
    assert set(rebuilt) >= {text for text in TEXTS if tokenizer.count(text) < 480}
    assert 0.02 < sum(shares) / len(shares) < 0.6
    both = settings(sequence_length=512, fim=FimSettings(rate=1.0, suffix_first=0.5))
    orders = [
        ids[2] == hole
        for batch, _ in Loader(DataRows(dataset, both), rows=4).batches(epochs=4)
        for ids in sequences(batch)
    ]
    assert 0.3 < sum(orders) / len(orders) < 0.8
    with pytest.raises(ValueError, match=r"suffix_first = 2\.0 must be a share"):
        FimSettings(suffix_first=2.0)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (LoaderSettings(), "d5bc62c83f63d941"),
        (
            LoaderSettings(
                sequence_length=512,
                seed=7,
                fim=FimSettings(rate=1.0, longest=256),
                middle_only=True,
            ),
            "a5d40704d9a58da3",
        ),
        (LoaderSettings(split_rate=0.25), "fd83ed39e9699759"),
        (LoaderSettings(fim=FimSettings(suffix_first=1.0)), "f3e09ab02bc47055"),
        (LoaderSettings(split_rate=0.1, fim=FimSettings(suffix_first=0.5)), "75675c835a54c80b"),
    ],
)
def test_streams_keep_the_names_by_which_runs_resume(how: LoaderSettings, name: str) -> None:
    """Names as they were before the first of these fields was added: a change would make every
    state of an unfinished run one of another stream."""
    assert stream_name("0123456789abcdef", how) == name


def test_the_rate_is_a_share_of_documents(dataset: Dataset) -> None:
    begin = dataset.tokenizer.id_of(FIM_BEGIN)
    loader = Loader(DataRows(dataset, settings(0.3, sequence_length=4096)), rows=4)
    ids = [ids for batch, _ in loader.batches(epochs=40) for ids in sequences(batch)]
    assert 0.25 < sum(ids[1] == begin for ids in ids) / len(ids) < 0.35


def test_some_line_ends_are_split_and_nothing_else_changes(dataset: Dataset) -> None:
    tokenizer = dataset.tokenizer

    def stream(rate: float, **how: Any) -> list[list[int]]:
        wide = settings(0.0, sequence_length=2048, split_rate=rate, **how)
        return [
            ids
            for batch, _ in Loader(DataRows(dataset, wide), rows=2).batches(epochs=3)
            for ids in sequences(batch)
        ]

    whole, some, every = stream(0.0), stream(0.3), stream(1.0)
    texts = [sorted(map(tokenizer.decode, ids)) for ids in (whole, some, every)]
    assert texts[0] == texts[1] == texts[2]
    merged = {i for i, b in enumerate(tokenizer.token_bytes) if b in (b":\n", b"):\n", b")\n")}
    counts = [sum(i in merged for ids in found for i in ids) for found in (whole, some, every)]
    assert counts[0] > 300 and counts[2] == 0
    assert 0.6 < counts[1] / counts[0] < 0.8
    assert some == stream(0.3) != stream(0.3, seed=1)
    by_text = {tokenizer.decode(ids): ids for ids in some}
    assert any(by_text[tokenizer.decode(ids)] != ids for ids in some)  # epochs differ


def test_splits_leave_the_choice_of_middles_alone(dataset: Dataset) -> None:
    def rearranged(rate: float) -> list[str]:
        wide = settings(1.0, sequence_length=2048, split_rate=rate)
        steps = Loader(DataRows(dataset, wide), rows=2).batches(epochs=1)
        return sorted(dataset.tokenizer.decode(ids) for b, _ in steps for ids in sequences(b))

    assert rearranged(0.0) == rearranged(0.5)


def test_a_stream_with_splits_resumes_and_has_a_name_of_its_own(dataset: Dataset) -> None:
    loader = Loader(DataRows(dataset, settings(split_rate=0.5)), rows=3)
    steps = list(islice(loader.batches(), 20))
    assert all(map(same, islice(loader.batches(steps[8][1]), 11), steps[9:]))
    with pytest.raises(ValueError, match="another dataset or other loader settings"):
        next(Loader(DataRows(dataset, settings()), rows=3).batches(steps[8][1]))
    with pytest.raises(ValueError, match=r"split_rate = 1\.5 must be a share"):
        settings(split_rate=1.5)


def test_epochs_differ_and_seeds_differ(dataset: Dataset) -> None:
    def stream(seed: int, epochs: int) -> list[list[int]]:
        steps = Loader(DataRows(dataset, settings(seed=seed)), rows=2).batches(epochs=epochs)
        return [batch.tokens.tolist() for batch, _ in steps]

    one, two = stream(0, 1), stream(0, 2)
    assert two[: len(one) - 1] == one[:-1]
    assert not any(tokens in one for tokens in two[len(one) :])
    assert stream(1, 1) != one


@given(data=st.data())
def test_resuming_after_any_batch(dataset: Dataset, data: st.DataObject) -> None:
    loader = Loader(DataRows(dataset, settings()), rows=data.draw(st.integers(1, 7)))
    steps = list(islice(loader.batches(), 30))
    after = data.draw(st.integers(0, len(steps) - 2))
    state = json.loads(json.dumps(steps[after][1]))
    resumed = list(islice(loader.batches(state), len(steps) - after - 1))
    assert all(map(same, resumed, steps[after + 1 :]))


def test_batches_made_ahead_are_the_same(dataset: Dataset) -> None:
    loader = Loader(DataRows(dataset, settings()), rows=3)
    plain = list(loader.batches(epochs=2))
    ahead = list(loader.batches(epochs=2, prefetch=3))
    assert len(plain) == len(ahead) and all(map(same, plain, ahead))
    endless = loader.batches(prefetch=2)
    assert same(next(endless), plain[0])
    endless.close()  # type: ignore[attr-defined]


def test_a_mistake_in_the_thread_is_raised_where_batches_are_used(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = DataRows(dataset, settings())
    monkeypatch.setattr(rows, "_pieces", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(Loader(rows, rows=3).batches(prefetch=2))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batches_of_one_process(dataset: Dataset, world: int) -> None:
    whole = list(islice(Loader(DataRows(dataset, settings()), rows=2 * world).batches(), 12))
    parts = [
        list(
            islice(
                Loader(DataRows(dataset, settings()), rows=2, rank=rank, world=world).batches(), 12
            )
        )
        for rank in range(world)
    ]
    for index, (batch, state) in enumerate(whole):
        shared = [ids for part in parts for ids in sequences(part[index][0])]
        assert sorted(shared) == sorted(sequences(batch))
        assert all(part[index][1] == state for part in parts)


def test_the_last_rows_go_evenly_over_ranks(dataset: Dataset) -> None:
    parts = [
        list(Loader(DataRows(dataset, settings()), rows=4, rank=rank, world=2).batches(epochs=1))
        for rank in range(2)
    ]
    assert len(parts[0]) == len(parts[1])
    assert all(len(batch.tokens) for part in parts for batch, _ in part)


def test_rows_may_change_at_a_resume(dataset: Dataset) -> None:
    narrow = list(islice(Loader(DataRows(dataset, settings()), rows=2).batches(), 6))
    wide = Loader(DataRows(dataset, settings()), rows=4).batches(narrow[1][1])
    batch, state = next(wide)
    assert sequences(batch) == sequences(narrow[2][0]) + sequences(narrow[3][0])
    assert state == narrow[3][1]


def test_states_of_another_stream(dataset: Dataset, tokenizer: Tokenizer) -> None:
    _, state = next(Loader(DataRows(dataset, settings()), rows=2).batches())
    other = Dataset.from_texts(TEXTS[1:], tokenizer)
    for loader in (
        Loader(DataRows(other, settings()), rows=2),
        Loader(DataRows(dataset, settings(seed=1)), rows=2),
        Loader(DataRows(dataset, settings(0.25)), rows=2),
    ):
        with pytest.raises(ValueError, match="another dataset or other loader settings"):
            next(loader.batches(state))


def test_rows_are_nearly_full(dataset: Dataset) -> None:
    # Lines have about twenty tokens here, half of which a cut before a line's end costs.
    whole = settings(0.0, window_documents=60, sequence_length=512)
    steps = list(Loader(DataRows(dataset, whole), rows=1).batches(epochs=1))
    assert sum(len(batch.tokens) for batch, _ in steps) / (512 * len(steps)) > 0.95


def test_settings_that_give_no_rows_are_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="sequence_length = 20 must be at least"):
        settings(sequence_length=20)
    with pytest.raises(ValueError, match="window_documents = 0"):
        settings(window_documents=0)
    with pytest.raises(ValueError, match="rows = 0"):
        Loader(DataRows(dataset, settings()), rows=0)
    with pytest.raises(ValueError, match="rank = 2 must be from 0 to 1"):
        Loader(DataRows(dataset, settings()), rows=1, rank=2, world=2)


def test_names_of_tokens_in_documents_are_text(tokenizer: Tokenizer) -> None:
    text = f"HOLE = '{FIM_HOLE}'\n" + code(1)
    single = Dataset.from_texts([text], tokenizer)
    hole = tokenizer.id_of(FIM_HOLE)
    for rate, count in ((0.0, 0), (1.0, 1)):
        batch, _ = next(
            Loader(DataRows(single, settings(rate, sequence_length=2048)), rows=1).batches()
        )
        assert batch.tokens.tolist().count(hole) == count


def test_documents_that_are_odd(tokenizer: Tokenizer) -> None:
    texts = ["", " \n\n", "ä" * 500, "🦊" * 300, "x" * 3000, "\n" * 600]
    odd = Dataset.from_texts(texts, tokenizer)
    for rate in (0.0, 1.0):
        for batch, _ in Loader(DataRows(odd, settings(rate, sequence_length=64)), rows=2).batches(
            epochs=3
        ):
            assert len(batch.tokens) <= 128


# The files


def test_a_dataset_on_disk(tmp_path: Path, tokenizer: Tokenizer) -> None:
    info = tokenize(iter(TEXTS), tokenizer, tmp_path / "set", source="a test")
    opened = Dataset.open(tmp_path / "set")
    assert read_info(tmp_path / "set") == info
    assert info["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert info["tokens"] == opened.num_tokens == sum(map(tokenizer.count, TEXTS))
    assert [tokenizer.decode(opened.document(i).tolist()) for i in range(len(opened))] == TEXTS
    assert opened.tokens.dtype == np.uint16
    assert opened.digest == Dataset.from_texts(TEXTS, tokenizer).digest
    verify(tmp_path / "set")
    assert not list(tmp_path.glob(".*"))


def test_existing_empty_and_damaged_datasets_are_refused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder = tmp_path / "set"
    tokenize(TEXTS, tokenizer, folder)
    with pytest.raises(ValueError, match="exists; choose a new folder"):
        tokenize(TEXTS, tokenizer, folder)
    with pytest.raises(ValueError, match="there is no document"):
        tokenize([], tokenizer, tmp_path / "empty")
    tokens = folder / "tokens.bin"
    content = tokens.read_bytes()
    tokens.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(ValueError, match="is damaged"):
        verify(folder)
    tokens.write_bytes(content[:-2])
    with pytest.raises(ValueError, match="is cut short"):
        Dataset.open(folder)
    with pytest.raises(ValueError, match="is no dataset"):
        Dataset.open(tmp_path)
    with pytest.raises(ValueError, match="offsets must go from 0"):
        Dataset(np.zeros(3, np.uint32), np.array([0, 2]), tokenizer)
