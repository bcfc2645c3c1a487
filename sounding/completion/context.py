"""Choose parts of other files to show in the prompt before the file under completion.

A small model sees about a thousand tokens, fewer than most files have. Pieces of other files are
ranked by the rare names they share with the text around the cursor.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_NAME = re.compile(r"[^\W\d]\w{2,}")
_PIECE_LINES = 24
_AROUND_LINES = 40
_STEP_LINES = 4
_MOST_CHARACTERS = 400_000  # total of all files
_MOST_TRIED = 64  # pieces; more than these would not fit

File = tuple[str, str]  # path, text


class _Piece(NamedTuple):
    file: int
    line: int
    text: str
    names: frozenset[str]


def relevant_context(
    files: Sequence[File],
    prefix: str,
    suffix: str,
    *,
    budget_tokens: int,
    count: Callable[[str], int],
) -> str:
    """The best pieces of `files` that together have at most `budget_tokens`, counted by `count`.

    Pieces are in the files' order, below a comment with the file's path; "" if no piece shares a
    name with the text around the cursor. Only the first characters of many or large files are
    searched, because this must be faster than typing.
    """
    pieces: list[_Piece] = []
    room = _MOST_CHARACTERS
    for number, (_, file_text) in enumerate(files):
        pieces += _pieces(number, file_text[:room])
        room = max(0, room - len(file_text))
    lines = prefix.split("\n")[-_AROUND_LINES:] + suffix.split("\n")[: _AROUND_LINES // 2]
    wanted = frozenset(_NAME.findall("\n".join(lines)))
    seen_in = Counter(name for piece in pieces for name in piece.names)
    scores = {
        piece: sum(math.log1p(len(pieces) / seen_in[name]) for name in piece.names & wanted)
        for piece in pieces
    }
    chosen: list[_Piece] = []
    text = ""
    ranked = sorted(pieces, key=lambda piece: (-scores[piece], piece.file, piece.line))
    for piece in ranked[:_MOST_TRIED]:
        if not scores[piece]:
            break
        longer = _shown([*chosen, piece], files)
        if count(longer) <= budget_tokens:
            chosen.append(piece)
            text = longer
    return text


def settled(prefix: str) -> str:
    """The lines above the cursor's, in steps of a few lines, so that typing rarely changes them."""
    lines = prefix.split("\n")
    done = len(lines) - 1
    return "\n".join(lines[: max(done // _STEP_LINES * _STEP_LINES, min(done, _STEP_LINES))])


def _pieces(number: int, text: str) -> Iterator[_Piece]:
    lines = text.split("\n")
    for at in range(0, len(lines), _PIECE_LINES):
        piece = "\n".join(lines[at : at + _PIECE_LINES]).strip("\n")
        if piece.strip():
            yield _Piece(number, at, piece, frozenset(_NAME.findall(piece)))


def _shown(pieces: Sequence[_Piece], files: Sequence[File]) -> str:
    parts = []
    shown = None
    for piece in sorted(pieces):
        if piece.file != shown:
            parts.append(f"# {files[piece.file][0]}\n")
            shown = piece.file
        parts.append(piece.text + "\n\n")
    return "".join(parts)
