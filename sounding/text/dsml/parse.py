"""Parse completions into reasoning, content and tool calls, streamed or as whole texts.

`StrictParser` (strict.py) accepts what the published parser accepts; `TolerantParser` (tolerant.py)
repairs what models really emit. Whole texts take the same path as pieces: `parse` feeds one piece.
Source: docs/prompt.md 7.
"""

from collections.abc import Sequence
from typing import Any

from sounding.text.dsml.parser import Malformed, Parser
from sounding.text.dsml.strict import StrictParser
from sounding.text.dsml.tolerant import TolerantParser
from sounding.text.events import ParsedCompletion, collect

__all__ = ["Malformed", "Parser", "StrictParser", "TolerantParser", "parse", "parser"]


def parser(
    thinking_mode: str, *, tolerant: bool = False, tools: Sequence[Any] | None = None
) -> Parser:
    """A parser for one completion. `tools` (OpenAI shape) guide the repairs of a tolerant one."""
    if tolerant:
        return TolerantParser(thinking_mode, tools)
    return StrictParser(thinking_mode)


def parse(
    text: str, thinking_mode: str, *, tolerant: bool = False, tools: Sequence[Any] | None = None
) -> ParsedCompletion:
    """Read a whole completion, the text after the prompt including EOS.

    Raises Malformed, a ValueError, for a text outside the format unless `tolerant`.
    """
    reader = parser(thinking_mode, tolerant=tolerant, tools=tools)
    return collect(reader.feed(text) + reader.finish())
