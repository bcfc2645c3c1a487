"""Code in the text of an answer."""

import re

_FENCE = re.compile(r"^(`{3,})[^\n`]*\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)


def code_of(answer: str) -> str:
    """The code of an answer: its only fenced block, or all of it where there is none.

    "" for an answer of several blocks: it is not for the grader to choose among them.
    """
    blocks = [found[2] for found in _FENCE.finditer(answer)]
    if len(blocks) > 1:
        return ""
    return blocks[0] if blocks else answer


def fenced(code: str, language: str = "python") -> str:
    """Code as a fenced block. Raises ValueError for code with a fence of its own."""
    if "```" in code:
        raise ValueError(f"{code!r:.60} has a fence in it and cannot stand in another one")
    return f"```{language}\n{code.rstrip(chr(10))}\n```"
