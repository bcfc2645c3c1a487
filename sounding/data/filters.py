"""Filters for training files, with the reason for each file that is dropped.

Reasons are fixed words, so that they can be counted. `path_reason` decides before a file is
read, `content_reason` after it was decoded. Thresholds were set by inspecting the dropped files.
"""

import ast
import re
import warnings
from collections.abc import Sequence
from pathlib import PurePosixPath

from sounding.data.credentials import find_credential
from sounding.data.licenses import header_allows

REASONS = {
    "type": "not one of the chosen file types",
    "vendored": "a copy of somebody else's code",
    "test-data": "input of tests rather than code",
    "generated": "written by a program",
    "minified": "lines too long for a person",
    "large": "longer than the limit",
    "small": "too short to teach anything",
    "encoding": "not UTF-8",
    "binary": "contains NUL or other control characters",
    "table": "mostly numbers or punctuation",
    "syntax": "the running Python cannot parse it",
    "licence": "its licence is not a permissive one",
    "secret": "contains what looks like a credential",
    "unreadable": "could not be read",
    "duplicate": "identical to a kept document",
    "near-duplicate": "nearly identical to a kept document",
    "excluded": "overlaps with the texts to keep out",
    "left-out": "the manifest names the hash of its text",
}

MAX_BYTES = 400_000
MIN_CHARACTERS = 80
MAX_LINE_CHARACTERS = 1000
MAX_MEAN_LINE_CHARACTERS = 120
MIN_LETTER_SHARE = 0.30  # of the characters that are not white space
MAX_DIGIT_SHARE = 0.25

_VENDORED = frozenset(
    "_vendor vendor vendored _vendored third_party thirdparty 3rdparty extern externals _external "
    "_extern _bundled bundled node_modules site-packages".split()
)
_TEST_DATA = frozenset(
    "testdata test_data test-data tests_data fixtures cassettes snapshots __snapshots__ "
    "golden goldens baseline_images".split()
)
_TEST_FOLDERS = frozenset({"test", "tests", "testing"})
_GENERATED_NAMES = re.compile(
    r"(_pb2(_grpc)?|parsetab|lextab|yacctab|\.min|_generated|_autogen)\.\w+$"
)
_GENERATED_MARK = re.compile(
    r"@generated|auto-?\s?generated|\bgenerated (automatically|by|from|using|with)\b"
    r"|\bdo not (edit|modify)\b|\bcode generated\b",
    re.IGNORECASE,
)
_GENERATED_HEAD_LINES = 12
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_LETTER = re.compile(r"[^\W\d_]")


def path_reason(path: str, num_bytes: int, suffixes: Sequence[str]) -> str | None:
    """Return the reason to drop a file unread, or None."""
    pure = PurePosixPath(path)
    folders = [part.lower() for part in pure.parts[:-1]]
    if not any(pure.name.endswith(suffix) for suffix in suffixes):
        return "type"
    if _VENDORED.intersection(folders):
        return "vendored"
    if _TEST_DATA.intersection(folders) or _data_below_tests(folders):
        return "test-data"
    if _GENERATED_NAMES.search(pure.name):
        return "generated"
    if num_bytes > MAX_BYTES:
        return "large"
    return None


def _data_below_tests(folders: Sequence[str]) -> bool:
    for position, folder in enumerate(folders):
        if folder in _TEST_FOLDERS and "data" in folders[position + 1 :]:
            return True
    return False


def decode(content: bytes) -> str | None:
    """Text of a file with `\\n` line ends and no byte-order mark, or None if it is not UTF-8.

    Nothing else is changed: white space at line ends, tabs and form feeds are part of the code.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def content_reason(path: str, text: str, *, public: bool) -> str | None:
    """Return the reason to drop a decoded file, or None. `public`: require a permissive licence."""
    if len(text.strip()) < MIN_CHARACTERS:
        return "small"
    if _CONTROL.search(text):
        return "binary"
    lines = text.split("\n")
    if _is_generated(lines):
        return "generated"
    if max(map(len, lines)) > MAX_LINE_CHARACTERS or len(text) > MAX_MEAN_LINE_CHARACTERS * len(
        lines
    ):
        return "minified"
    if _is_table(text):
        return "table"
    if public and not header_allows(text):
        return "licence"
    if find_credential(text):
        return "secret"
    if path.endswith(".py") and not _parses(text):
        return "syntax"
    return None


def _is_generated(lines: Sequence[str]) -> bool:
    """A mark in a comment or docstring on top; below it, the word is about something else."""
    for line in lines[:_GENERATED_HEAD_LINES]:
        if line.startswith(("import ", "from ", "def ", "class ", "@")):
            return False
        if _GENERATED_MARK.search(line):
            return True
    return False


def _is_table(text: str) -> bool:
    dense = "".join(text.split())
    digits = sum(map(dense.count, "0123456789"))
    letters = len(_LETTER.findall(dense))
    return digits > MAX_DIGIT_SHARE * len(dense) or letters < MIN_LETTER_SHARE * len(dense)


def _parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in strings are the file's own affair
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
