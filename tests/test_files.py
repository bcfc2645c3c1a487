"""Lines of JSON in the forms in which they are published, and files that are something else."""

import gzip
import json
from pathlib import Path

import pytest

from sounding.files import read_json_lines

ROWS = [{"a": "\u2028 \x85 \x0c é"}, {"a": 1}]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.rstrip("\n").encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode(),
        gzip.compress(TEXT.encode()),
        gzip.compress(TEXT[: TEXT.index("\n") + 1].encode("utf-8-sig"))
        + gzip.compress(TEXT[TEXT.index("\n") + 1 :].encode()),
    ],
    ids=["plain", "no last newline", "byte-order mark", "CRLF", "gzip", "two gzip members"],
)
def test_rows_in_every_published_form(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rows"
    path.write_bytes(data)
    assert list(read_json_lines(path)) == [(1, ROWS[0]), (2, ROWS[1])]


def test_blank_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("\n \n[1]\n\n")
    assert list(read_json_lines(path)) == [(3, [1])]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1\n{", "rows, line 2 is not JSON: Expecting"),
        (b'1\n"\xe9"', r"rows, line 2 is not UTF-8: byte 1 is 0xe9"),
        (b"[" * 100_000, "rows, line 1 is not JSON: "),
        (b"9" * 5000, "rows, line 1 is not JSON: Exceeds the limit"),
        (gzip.compress(b"1\n", mtime=0)[:-3], "rows is a damaged gzip file"),
        (b"\x1f\x8bno gzip", "rows is a damaged gzip file"),
        ("{}".encode("utf-16"), "rows is UTF-16; give lines of JSON in UTF-8, plain or gzipped"),
        (b"PK\x03\x04", "rows is a zip archive"),
        (b"PAR1", "rows is Parquet"),
        (b"\x28\xb5\x2f\xfd", "rows is zstandard"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read_json_lines(path))
