"""What a tokenizer.json may say: nothing that cuts, changes or loses text, no id the model lacks.

Catches: settings of the file that the library obeys in silence, tables as long as a foreign id.
"""

import copy
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sounding.text.markup import USER
from sounding.text.tokenizer import SMALLEST_VOCABULARY, Tokenizer, train

TEXT = "def f(x):\n    return  x + 1\n\n\nEine Zeile é函😀  <｜User｜> end "
SMALL = train([TEXT * 3, "return self.width"], SMALLEST_VOCABULARY + 9)
LAYOUT: dict[str, Any] = json.loads(SMALL.core.to_str())
Change = Callable[[dict[str, Any]], None]


def changed(change: Change) -> str:
    layout = copy.deepcopy(LAYOUT)
    change(layout)
    return json.dumps(layout)


def put(path: str, value: Any) -> Change:
    """Sets one value, at a path such as model/vocab/x."""

    def change(layout: dict[str, Any]) -> None:
        *folders, last = path.split("/")
        place: Any = layout
        for folder in folders:
            place = place[int(folder)] if isinstance(place, list) else place[folder]
        place[int(last) if isinstance(place, list) else last] = value

    return change


TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 640}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2,
    "pad_type_id": 0, "pad_token": "x",
}  # fmt: skip
TEMPLATE: dict[str, Any] = {
    "type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        put("truncation", TRUNCATION),
        put("truncation", {**TRUNCATION, "direction": "Left"}),
        put("padding", PADDING),
        put("post_processor", TEMPLATE),
        put("post_processor", None),
        put("normalizer", {"type": "Sequence", "normalizers": []}),
        put("decoder", None),
    ],
)
def test_what_has_no_business_in_a_prompt_is_left_out(change: Change, tmp_path: Path) -> None:
    """All tokens are there, in every way of asking."""
    made = Tokenizer.from_json(changed(change))
    for text in ("", TEXT, TEXT * 40):
        for named in (True, False):
            expected = SMALL.encode(text, named=named)
            assert made.encode(text, named=named) == expected
            assert made.encode_many([text], named=named) == [expected]
            assert made.count(text, named=named) == len(expected)
    made.save(tmp_path / "tokenizer.json")
    assert Tokenizer.from_file(tmp_path).encode(TEXT * 9) == SMALL.encode(TEXT * 9)


def with_token(**how: Any) -> Change:
    def change(layout: dict[str, Any]) -> None:
        number = SMALL.num_tokens
        token = {
            "id": number, "content": "<new>", "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": False,
        }  # fmt: skip
        layout["added_tokens"].append(token | how)

    return change


SPLIT = {"type": "Split", "pattern": {"Regex": " "}, "invert": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("normalizer", {"type": "NFKC"}), "normalizer NFKC changes text"),
        (put("normalizer", {"type": "Lowercase"}), "normalizer Lowercase"),
        (
            put("normalizer", {"type": "Sequence", "normalizers": [{"type": "StripAccents"}]}),
            "StripAccents",
        ),
        (put("pre_tokenizer/pretokenizers/3/add_prefix_space", True), "add_prefix_space"),
        (put("pre_tokenizer/pretokenizers/0", {**SPLIT, "behavior": "Removed"}), "removes"),
        (put("pre_tokenizer/pretokenizers/0", {"type": "WhitespaceSplit"}), "WhitespaceSplit"),
        (put("pre_tokenizer", None), "must end with ByteLevel"),
        (put("pre_tokenizer", {"type": "Metaspace"}), "Metaspace may change text"),
        (put("model/dropout", 0.5), "model.dropout"),
        (put("model/continuing_subword_prefix", "##"), "continuing_subword_prefix"),
        (put("model/end_of_word_suffix", "</w>"), "end_of_word_suffix"),
        (put("model/type", "WordPiece"), "only byte-level BPE"),
        (lambda layout: layout["model"]["vocab"].pop("Ġ"), "no token for 1 of the 256 bytes"),
        (put("added_tokens/4/lstrip", True), "swallows the white space before"),
        (put("added_tokens/4/rstrip", True), "swallows the white space behind"),
        (put("added_tokens/4/single_word", True), "not found next to a letter"),
        (with_token(content=""), "needs an id and a content"),
        (with_token(content=USER), "twice"),
        (with_token(id=5), "has id 5, which .* has too"),
        (with_token(id=SMALL.num_tokens + 3), "cannot have id"),
        (with_token(id=-1), "whole numbers"),
        (with_token(id=True), "whole numbers"),
        (put("added_tokens/0/id", 7), "in the vocabulary and 7 in added_tokens"),
        (put("model/vocab/a", 2**31), "'a' has id 2147483648"),
        (put("model/vocab/a", 2**70), "'a' has id"),
        (put("model/vocab/a", 66.0), "whole numbers"),
        (put("model/vocab/new", 66), "has id 66, which .* has too"),
        (put("model", []), "must have a model with a vocab"),
        (put("added_tokens", {}), "must be a list"),
        (put("normalizer", []), "must name its type"),
    ],
)
def test_what_changes_text_in_silence_is_refused(
    change: Change, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(changed(change))
    with pytest.raises(ValueError, match=rf"tokenizer\.json: .*{message}"):
        Tokenizer.from_file(path)


def test_text_that_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for text in ("", "[1]", "{", '{"a": ' + "9" * 5000 + "}", "[" * 10**5, '{"a": 1, "a": 2}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            Tokenizer.from_file(path)


def test_ids_belong_to_the_model() -> None:
    text, size = SMALL.core.to_str(), SMALL.num_tokens
    for vocab_size in (size, size + 1023):
        assert Tokenizer.from_json(text, vocab_size).num_tokens == size
    with pytest.raises(ValueError, match=rf"has id {size - 1}; the model has {size - 1} ids"):
        Tokenizer.from_json(text, size - 1)
    with pytest.raises(ValueError, match="do not belong together"):
        Tokenizer.from_json(text, size + 1024)


def test_nothing_is_allocated_for_an_id_that_is_refused() -> None:
    texts = [changed(put("model/vocab/a", number)) for number in (2**31, 2**22)]
    tracemalloc.start()
    for text in texts:
        for vocab_size in (None, 8192):
            with pytest.raises(ValueError, match="'a' has id"):
                Tokenizer.from_json(text, vocab_size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(texts[0])


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(SMALL.core.to_str(), encoding="utf-8-sig")
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8-sig")
    assert Tokenizer.from_file(tmp_path).encode(TEXT) == SMALL.encode(TEXT)
