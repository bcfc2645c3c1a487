"""Prompt encoding: tokenizer, conversations to text, completions to messages.

Needs neither torch nor a server. A name is imported at its first use, since completing code needs
the tokenizer alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "dsml.parse": ("Malformed", "Parser", "parse", "parser"),
    "encoding": ("encode", "encode_completion"),
    "replay": ("Replay",),
}

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


def __getattr__(name: str) -> Any:
    """Import a public name from its module; those of no other are in `events`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((path for path, names in _MODULES.items() if name in names), "events")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
