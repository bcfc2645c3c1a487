"""Ids are the published ones; our own vocabularies are laid out alike; streams are whole."""

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.text.coverage import measure, script
from sounding.text.markup import NAMED_TOKENS
from sounding.text.tokenizer import SMALLEST_VOCABULARY, Tokenizer, TooManyTokens, train
from tests.text.vectors import published_tokenizer

TEXT = (Path(__file__).parents[2] / "docs" / "prompt.md").read_text(encoding="utf-8")
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train([TEXT], 700)


def test_the_published_tokenizer_has_its_documented_ids() -> None:
    published = published_tokenizer()
    assert published.num_tokens == 129_280
    assert len(published.named) == 1_283
    spot = {
        "<｜begin▁of▁sentence｜>": 0, "<｜end▁of▁sentence｜>": 1, "<｜▁pad▁｜>": 2,
        "<｜place▁holder▁no▁0｜>": 128000, "<｜User｜>": 128803, "<｜Assistant｜>": 128804,
        "<|EOT|>": 128805, "<｜tool▁sep｜>": 128814, "<think>": 128821, "</think>": 128822,
        "｜DSML｜": 128825, "<｜latest_reminder｜>": 128828, "<｜action｜>": 128829,
        "<｜title｜>": 128836, "<dsml:": 128840, "<｜read_url｜>": 128845, "<｜image｜>": 129279,
    }  # fmt: skip
    assert {name: published.id_of(name) for name in spot} == spot
    # The named tokens are the run from the first of fill-in-the-middle on, in this order.
    assert [published.id_of(name) for name in NAMED_TOKENS] == list(range(128800, 128847))
    assert (published.bos_id, published.eos_id, published.pad_id) == (0, 1, 2)


def test_a_prompt_is_encoded_as_it_stands() -> None:
    published = published_tokenizer()
    prompt = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>"
    ids = published.encode(prompt)
    assert [ids[0], ids[1], *ids[-2:]] == [0, 128803, 128804, 128822]
    assert len(ids) == published.count(prompt) == 5
    plain = published.encode(prompt, named=False)
    assert not set(plain) & set(published.named.values())
    assert published.decode(plain) == published.decode(ids) == prompt
    assert published.encode_many([prompt, "x"]) == [ids, published.encode("x")]


@given(ANY_TEXT)
def test_decoding_gives_the_text_back(small: Tokenizer, text: str) -> None:
    for tokenizer in (published_tokenizer(), small):
        ids = tokenizer.encode(text, named=False)
        assert tokenizer.decode(ids) == text
        assert tokenizer.count(text, named=False) == len(ids)
        assert tokenizer.count_bytes(ids) == len(text.encode())


@given(st.lists(st.one_of(ANY_TEXT, st.sampled_from(NAMED_TOKENS))), st.booleans())
def test_ids_are_those_of_the_library_one_text_at_a_time(
    small: Tokenizer, parts: list[str], named: bool
) -> None:
    text = "".join(parts)
    for tokenizer in (published_tokenizer(), small):
        core = tokenizer.core if named else tokenizer._nameless
        assert tokenizer.encode(text, named=named) == core.encode(text).ids


def test_other_threads_go_on_while_a_text_is_encoded() -> None:
    """With the GIL held throughout, the loop would not come to a second round."""
    tokenizer = published_tokenizer()
    text = "a b " * 500_000
    done = threading.Event()

    def count() -> None:
        tokenizer.count(text)
        done.set()

    worker = threading.Thread(target=count)
    rounds = 0
    worker.start()
    while not done.wait(0.001):
        rounds += 1
    worker.join()
    assert rounds > 20


@pytest.mark.parametrize("text", ["a b " * 200_000, "x" * 900_000, TEXT * 20, "好" * 300_000])
def test_a_text_of_too_many_tokens(text: str) -> None:
    tokenizer = published_tokenizer()
    count = tokenizer.count(text)
    assert len(tokenizer.encode(text, most_tokens=count)) == count
    for most in (count - 1, count // 2, 10):
        with pytest.raises(TooManyTokens) as refused:
            tokenizer.encode(text, most_tokens=most)
        assert most < refused.value.num_tokens <= count
        assert refused.value.exact == (refused.value.num_tokens == count)


def test_a_text_that_is_far_too_long_is_refused_by_its_bytes_or_its_beginning() -> None:
    tokenizer = published_tokenizer()
    text = "a b " * 1_000_000
    with pytest.raises(TooManyTokens) as refused:
        tokenizer.encode(text, most_tokens=1000)
    assert refused.value.num_tokens == -(-len(text) // tokenizer.longest_token_bytes)
    with pytest.raises(TooManyTokens) as refused:
        tokenizer.encode(text, most_tokens=100_000)
    assert 100_000 < refused.value.num_tokens < 300_000  # of two million


@settings(max_examples=200)
@given(st.lists(st.integers(0, 699), max_size=40), ANY_TEXT)
def test_a_stream_is_the_whole_in_whole_characters(
    small: Tokenizer, ids: list[int], text: str
) -> None:
    # Random ids are mostly invalid UTF-8; the text's own are characters in pieces.
    for sequence in (ids, small.encode(text, named=False)):
        stream, parts = small.stream(), []
        for index, token in enumerate(sequence):
            parts.append(stream.push(token))
            whole = small.decode(sequence[: index + 1])
            said = "".join(parts)
            assert whole.startswith(said)
            # Nothing but a character that may still be completed is held back.
            assert whole[len(said) :].strip("\ufffd") == ""
        assert "".join(parts) + stream.finish() == small.decode(sequence)


def test_a_stream_waits_for_the_rest_of_a_character(small: Tokenizer) -> None:
    stream, ids = small.stream(), small.encode("🙂", named=False)
    assert len(ids) == 4
    assert [stream.push(token) for token in ids] == ["", "", "", "🙂"]
    assert stream.push(ids[0]) == ""
    assert stream.push(small.encode("a")[0]) == "\ufffda"
    assert stream.push(ids[0]) + stream.finish() == "\ufffd"


def test_a_trained_vocabulary_is_laid_out_like_the_published(small: Tokenizer) -> None:
    assert small.num_tokens == 700
    assert (small.bos_id, small.eos_id, small.pad_id) == (0, 1, 2)
    assert [small.id_of(name) for name in NAMED_TOKENS] == list(range(653, 700))
    ours = json.loads(small.core.to_str())
    published = json.loads(published_tokenizer().core.to_str())
    for part in ("pre_tokenizer", "decoder", "post_processor"):
        assert ours[part] == published[part]
    flags = {token["content"]: {**token, "id": None} for token in published["added_tokens"]}
    for token in ours["added_tokens"]:
        assert {**token, "id": None} == flags[token["content"]]
    # Training learnt something, and the same each time.
    assert small.count(TEXT) < 0.6 * len(TEXT.encode())
    assert train([TEXT], 700).core.to_str() == small.core.to_str()


def test_saving_and_loading(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path / "tokenizer.json")
    assert list(tmp_path.iterdir()) == [tmp_path / "tokenizer.json"]
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert Tokenizer.from_file(path).encode(TEXT) == small.encode(TEXT)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json: not a tokenizer"):
        Tokenizer.from_file(tmp_path / "other.json")


def test_mistakes_are_named(small: Tokenizer) -> None:
    with pytest.raises(ValueError, match="did you mean '<｜User｜>'"):
        small.id_of("<|User|>")
    with pytest.raises(ValueError, match="700 is no token"):
        small.decode([700])
    with pytest.raises(ValueError, match="surrogate"):
        small.encode("a\ud800")
    with pytest.raises(ValueError, match=f"alone are {SMALLEST_VOCABULARY}"):
        train([TEXT], SMALLEST_VOCABULARY - 1)
    with pytest.raises(ValueError, match="at most"):
        train(["abc"], 2000)
    assert train([TEXT], SMALLEST_VOCABULARY).num_tokens == SMALLEST_VOCABULARY


def test_coverage_by_language_and_type(small: Tokenizer) -> None:
    texts = [("a.py", "x = 1\n"), ("b.py", "y"), ("c.md", "Привет"), ("LICENSE", "free <think>")]
    rows = measure(small, [(Path(name), text) for name, text in texts])
    seen = {(row.language, row.file_type): (row.files, row.num_bytes) for row in rows}
    assert seen == {
        ("Python", ".py"): (2, 7),
        ("Cyrillic", ".md"): (1, 12),
        ("Latin", "(none)"): (1, 12),
        ("all", ""): (4, 31),
    }
    assert rows[-1].num_tokens == sum(small.count(text, named=False) for _, text in texts)
    assert script("函数 a") == "CJK"
    assert script("123") == "no letters"
