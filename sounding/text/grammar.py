"""The grammar of a valid assistant turn, for constrained decoding.

Written in Lark for llguidance: it needs no torch, where xgrammar imports it. A sampled turn
that follows the grammar is one the strict parser accepts, calling only the given tools, with
values of their schemas; what a schema asks for and a grammar cannot hold is refused by its name.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import llguidance

from sounding.text.call_grammar import literal, tool_rules
from sounding.text.json_schema.document import SchemaDocument
from sounding.text.json_schema.json_values import json_grammar
from sounding.text.markup import (
    BOS,
    CALLS_CLOSE,
    CALLS_OPEN,
    DSML,
    END_THINK,
    EOS,
    THINK,
)
from sounding.text.tokenizer import Tokenizer

_LARGEST_STEP = 9_999  # of multipleOf: milliseconds to make


def require_affordable(schema: Any) -> None:
    """Raise ValueError where a JSON schema asks for what takes too long to enforce.

    `multipleOf` becomes an automaton with a state per remainder: a million take a minute to make,
    and longer to follow, while every other request waits.
    """
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            step = part.get("multipleOf")
            if isinstance(step, int | float) and _digits(step) > _LARGEST_STEP:
                raise ValueError(
                    f"multipleOf = {step} cannot be enforced: without its decimal point it must be "
                    f"at most {_LARGEST_STEP}; leave it out, or say it in the description"
                )
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part


def _digits(step: int | float) -> int:
    """The digits of a number without point and exponent: 0.25 is 25."""
    try:
        return int("".join(map(str, Decimal(str(step)).normalize().as_tuple().digits)))
    except (InvalidOperation, ValueError):  # not a number, or none
        return 0


def turn_grammar(
    tools: Sequence[Mapping[str, Any]],
    thinking_mode: str,
    *,
    calls: str = "auto",
    parallel: bool = True,
    schema: Any = None,
) -> str:
    """Return the Lark grammar of the turn after the prompt, EOS excluded.

    `calls` is "auto", "required" or "none"; without `parallel` a turn has one call at most. With a
    `schema` the content is JSON that follows it. Before calls there is no content where they are
    required, or a schema is given. The calls of a tool follow its schema where they are required
    or the tool is strict; in another case a schema that cannot be held is left out.

    Parameters come in any order where a tool has few and in the order of its schema where it has
    many. Raises ValueError for tools and schemas that cannot be held.
    """
    if thinking_mode not in ("chat", "thinking"):
        raise ValueError(f"thinking_mode is {thinking_mode!r}; it is 'chat' or 'thinking'")
    if calls not in ("auto", "required", "none"):
        raise ValueError(f"calls is {calls!r}; it is 'auto', 'required' or 'none'")
    if calls == "required" and not tools:
        raise ValueError("a call is required but there are no tools; give some, or calls='auto'")
    require_affordable([schema, *(tool.get("function") for tool in tools)])
    may_call = calls != "none" and bool(tools)
    content = "CLEAN" if schema is None else "json"
    turn = {"required": "block"}.get(calls, f"{content} | block" if may_call else content)
    forbidden = "|".join(_in_regex(text) for text in (DSML, THINK, END_THINK, BOS, EOS))
    lines = [
        "%llguidance {}",
        f"start: CLEAN {END_THINK} turn" if thinking_mode == "thinking" else "start: turn",
        f"turn: {turn}",
        rf"CLEAN: /(.|\n)*/ & ~/(.|\n)*({forbidden})(.|\n)*/",
    ]
    if schema is not None:
        lines.append(f"json: %json {schema_grammar(schema)}")
    if may_call:
        opening = literal(f"{CALLS_OPEN}>\n")
        text_first = calls != "required" and schema is None
        lines += [
            f"block: opening call{'+' if parallel else ''} {literal(CALLS_CLOSE)}",
            f"opening[lazy]: CLEAN {opening}" if text_first else f"opening: {opening}",
            "call: " + " | ".join(f"t{index}" for index in range(len(tools))),
        ]
        for index, tool in enumerate(tools):
            held = calls == "required" or bool(tool["function"].get("strict"))
            lines += tool_rules(f"t{index}", tool["function"], held=held)
    return "\n".join(lines) + "\n"


def schema_grammar(schema: Any) -> str:
    """What follows `%json` in a grammar, for content that follows a JSON schema.

    Raises ValueError for a schema that cannot be held.
    """
    require_affordable(schema)
    document = SchemaDocument(schema, "the JSON schema")
    written = json_grammar(document.root, document, "the JSON schema")
    if written is None:
        raise ValueError("the JSON schema admits no value at all")
    return written


def constraint_tokenizer(
    tokenizer: Tokenizer, num_tokens: int | None = None
) -> llguidance.LLTokenizer:
    """The vocabulary for llguidance; takes about a second, so reuse it.

    `num_tokens` is the width of the logits where the model's is larger than the vocabulary's.
    """
    return llguidance.LLTokenizer(
        tokenizer.core.to_str(), n_vocab=num_tokens, eos_token=tokenizer.eos_id
    )


def matcher(vocabulary: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    """A matcher at the start of the grammar. Raises ValueError for a grammar it cannot follow."""
    made = llguidance.LLMatcher(vocabulary, llguidance.LLMatcher.grammar_from_lark(grammar))
    if made.is_error():
        reason = made.get_error().strip().splitlines()[0]
        raise ValueError(f"llguidance cannot follow the grammar: {reason}")
    return made


def _in_regex(text: str) -> str:
    return "".join("\\" + c if c in r"\/.*+?()[]{}|^$-&~" else c for c in text)
