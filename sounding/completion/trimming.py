"""Trim a completion to the text to insert, without text that is already after the cursor."""

from sounding.completion.gap import Gap, repeats
from sounding.completion.python_syntax import CLOSING, scan


def trim(text: str, gap: Gap, *, cut_short: bool = False) -> str:
    """Trim a completion to the text to insert at the cursor.

    Drops text already after the cursor and final blank lines; with `cut_short` also the unfinished
    last line, if there are others. Adds a newline if the text below needs one.
    """
    if cut_short and "\n" in text.strip():
        text = text[: text.rstrip().rfind("\n")]
    text = _without_repetition(text, gap)
    if not gap.rest.strip() or gap.takes_newline:
        text = text.rstrip()
    return text + "\n" if text.strip() and gap.takes_newline else text


def _without_repetition(text: str, gap: Gap) -> str:
    bare = text.rstrip()
    for rest in () if gap.takes_newline else (gap.rest.rstrip(), gap.rest.strip()):
        if rest and bare.endswith(rest):
            brackets = any(character in CLOSING for character in rest)
            # In foo(|) the answer "a)" closes one bracket too many, and "b()" does not.
            if not brackets or _closes_more_than_it_opens(bare, gap):
                text = bare[: -len(rest)]
                break
    lines = text.split("\n")
    for index, line in enumerate(lines):
        whole = gap.line + line if index == 0 else line
        if (index or not gap.line.strip()) and repeats(whole, gap.following):
            return "\n".join(lines[:index])
    return text


def _closes_more_than_it_opens(text: str, gap: Gap) -> bool:
    scanner = scan(gap.prefix)
    scanner.lowest = before = scanner.depth
    scanner.feed(text)
    return scanner.lowest < before
