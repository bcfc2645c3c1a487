"""Texts to keep out: what counts as a repetition and what as a coincidence."""

import gzip
import json
from pathlib import Path

import pytest

from sounding.data.overlap import Overlap, read_texts
from tests.data.conftest import code

SOLUTION = """\
def smallest_gap(values, limit):
    values = sorted(values)
    best = limit
    for left, right in zip(values, values[1:]):
        best = min(best, right - left)
    return best
"""


@pytest.mark.parametrize(
    ("text", "touches"),
    [
        (code(1) + SOLUTION, True),
        (SOLUTION.replace("    ", "\t"), True),
        ("for left, right in  zip(values, values[1:]):\n    pass\n", True),  # one long line
        (SOLUTION.replace("for left, right in", "for left, right in\\\n"), True),  # most runs
        (code(1), False),
        ("values = sorted(values)\nbest = limit\n", False),
    ],
)
def test_what_is_refused(text: str, touches: bool) -> None:
    assert Overlap([SOLUTION]).touches(text) is touches


def test_imports_are_nobodys_answer() -> None:
    line = "from collections import Counter, OrderedDict, defaultdict\n"
    assert not Overlap([line]).touches(line)


def test_texts_are_read_from_all_strings_of_a_row_that_are_long_enough(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"id": 3, "code": SOLUTION, "tests": ["assert a == 1", "assert b == 2" + " " * 40]}
    path.write_text(json.dumps(row) + "\n\n")
    assert read_texts(path) == [SOLUTION, "assert a == 1\nassert b == 2" + " " * 40]
    path.write_text("{}\nnot json\n")
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_texts(path)


def test_texts_in_the_form_in_which_they_are_published(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl.gz"
    row = json.dumps({"code": SOLUTION + "#\u2028\ud800"}, ensure_ascii=True)
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + row.encode()))
    assert read_texts(path) == [SOLUTION + "#\u2028\ud800"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"texts.jsonl.gz is a damaged gzip file"):
        read_texts(path)
