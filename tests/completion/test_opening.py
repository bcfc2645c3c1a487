"""Lines that have to open a block: which they are, and what they may begin with."""

import pytest

from sounding.completion.gap import Gap
from sounding.completion.healing import Healer
from sounding.completion.opening import Opening, opens_block
from tests.engine.scripted import small_tokenizer

TOKENIZER = small_tokenizer()
OPENING = Opening(Healer(TOKENIZER))


@pytest.mark.parametrize(
    ("prefix", "suffix", "expected"),
    [
        ("def f(x):\n    ", "\n        return x\n", True),
        ("", "\n    return x\n", True),
        ("def f(x):\n    ", "\n\n        return x\n", True),
        ("def f(x):\n    ", "\n    return x\n", False),
        ("def f(x):\n    ", "\nprint(1)\n", False),
        ("def f(x):\n    ", "", False),
        ("def f(x):\n    if", "\n        return x\n", False),  # something is there already
        ("def f(x):\n    ", " # why\n        return x\n", False),
        ("def f(x):\n    ", "\n        # any indentation\n", False),
        ("f(\n    ", "\n        1,\n)\n", False),  # inside of brackets
        ("", "\n    1,\n)\n", False),  # a bracket that this line has to open
        ("x = '''\n", "\n    text\n'''\n", False),
        ("x = 1 + \\\n", "\n    2\n", False),
    ],
)
def test_which_lines_open_a_block(prefix: str, suffix: str, expected: bool) -> None:
    assert opens_block(Gap(prefix, suffix)) is expected


def texts(rest: str, text: str) -> set[str]:
    allowed = OPENING.allowed(rest.encode(), text)
    assert allowed is not None
    return {TOKENIZER.bytes_of(token).decode() for token in allowed}


def test_they_begin_with_a_word_that_opens_one() -> None:
    first = texts("", "")
    assert {"f", "w"} <= first and not {"r", "x", "\n", " ", "return"} & first
    assert all(any(word.startswith(text) for text in first) for word in ("for ", "while ", "try:"))
    assert "r" in texts("", "fo") and all(text.startswith("r") for text in texts("", "fo"))
    assert all(text.startswith(" ") for text in texts("", "for"))
    for begun in ("for ", "if x", "else:", "except"):
        assert OPENING.allowed(b"", begun) is None


def test_what_is_healed_comes_first() -> None:
    found = texts("\n    ", "")
    assert "\n" in found and all(
        text.startswith("\n    ") or "\n    ".startswith(text) for text in found
    )
