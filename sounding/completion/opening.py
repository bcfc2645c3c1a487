"""Lines of Python that have to open a block, because what stands below them is indented more.

Their first word is one of a few. A network that has read little often writes another statement
there, after which the program cannot be correct.
"""

from sounding.completion.endings import Gap, indentation, scan
from sounding.completion.healing import Healer

_WORDS = "if |elif |else:|for |while |with |def |class |try:|except|finally:|async |match |case "
_OPENERS = tuple(word.encode() for word in _WORDS.split("|"))


def opens_block(gap: Gap) -> bool:
    """Whether the cursor's line, of which nothing is there yet, has to open a block."""
    below = gap.following
    if gap.line.strip() or gap.rest.strip() or below.lstrip()[:1] in ("", "#"):
        return False
    if indentation(below) <= len(gap.line) or gap.prefix.rstrip("\n \t").endswith("\\"):
        return False
    before = scan(gap.prefix)
    # Inside of brackets, or where one is closed below, more indentation means nothing.
    return before.in_code and before.depth <= 0 and scan(gap.suffix).lowest >= 0


class Opening:
    """Lets the line begin with nothing else."""

    def __init__(self, healer: Healer) -> None:
        self._healer = healer

    def allowed(self, rest: bytes, text: str) -> list[int] | None:
        """The ids that may come next behind the `text` of the line, where `rest` of the prompt has
        to be written before it; None when the first word is there."""
        written = text.encode()
        if written.startswith(_OPENERS):
            return None
        left = (word[len(written) :] for word in _OPENERS if word.startswith(written))
        return sorted({token for word in left for token in self._healer.allowed(rest + word)})
