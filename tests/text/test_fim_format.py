"""The order of prefix, suffix and middle, and where it is kept."""

import itertools
import json
from pathlib import Path

import pytest

from sounding.text.fim_format import FimFormat, FimTokens
from sounding.text.tokenizer import SMALLEST_VOCABULARY, train

TOKENS = FimTokens(bos=0, begin=1, hole=2, end=3)


@pytest.mark.parametrize(
    ("suffix_first", "expected"),
    [(False, [0, 1, 10, 11, 2, 20, 3]), (True, [0, 1, 2, 20, 3, 10, 11])],
)
def test_parts_stand_in_the_order_of_the_format(suffix_first: bool, expected: list[int]) -> None:
    parts = FimFormat(suffix_first).arrange(TOKENS, [10, 11], [20])
    assert list(itertools.chain.from_iterable(parts)) == expected


def test_the_order_is_kept_in_the_folder_of_the_model(tmp_path: Path) -> None:
    assert FimFormat.from_folder(tmp_path) == FimFormat()
    assert FimFormat().write(tmp_path) == []
    [path] = FimFormat(suffix_first=True).write(tmp_path / "model")
    assert FimFormat.from_folder(path.parent) == FimFormat(suffix_first=True)


def test_other_settings_of_a_tokenizer_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    assert FimFormat.from_folder(tmp_path) == FimFormat()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"fim_suffix_first": "yes"}', "must be true or false"),
        ("[]", "must be a JSON object"),
        ("{", "is not readable JSON"),
    ],
)
def test_an_order_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        FimFormat.from_folder(tmp_path)


def test_tokens_are_those_of_the_vocabulary() -> None:
    tokenizer = train(["x = 1\n"], SMALLEST_VOCABULARY)
    ids = FimTokens.of(tokenizer)
    assert (
        tokenizer.decode(ids) == "<｜begin▁of▁sentence｜><｜fim▁begin｜><｜fim▁hole｜><｜fim▁end｜>"
    )
