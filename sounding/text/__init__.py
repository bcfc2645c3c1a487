"""Prompt encoding: tokenizer, conversations to text, completions to messages.

Needs neither torch nor a server, so that it can be imported alone.
"""

from sounding.text.dsml.parse import Malformed, Parser, parse, parser
from sounding.text.encoding import encode, encode_completion
from sounding.text.events import (
    ArgumentsDelta,
    Call,
    CallBegun,
    CallDone,
    ContentDelta,
    End,
    Event,
    ParsedCompletion,
    ReasoningDelta,
    Repair,
    coalesce,
    collect,
)
from sounding.text.replay import Replay

__all__ = [
    "ArgumentsDelta",
    "Call",
    "CallBegun",
    "CallDone",
    "ContentDelta",
    "End",
    "Event",
    "Malformed",
    "ParsedCompletion",
    "Parser",
    "ReasoningDelta",
    "Repair",
    "Replay",
    "coalesce",
    "collect",
    "encode",
    "encode_completion",
    "parse",
    "parser",
]
