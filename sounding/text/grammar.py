"""The grammar of a valid assistant turn, for constrained decoding.

Written in Lark for llguidance: it needs no torch, where xgrammar imports it. A sampled turn
that follows the grammar is one the strict parser accepts, calling only the given tools, with
values of their schemas. Not enforced: `pattern`, `format` and length of raw strings, and a JSON
value's strings may still spell a closing tag.
"""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import llguidance

from sounding.text.dsml.calls import check_name, parameter_head
from sounding.text.dsml.values import STRING, Schemas
from sounding.text.markup import (
    BOS,
    CALLS_CLOSE,
    CALLS_OPEN,
    DSML,
    END_THINK,
    EOS,
    INVOKE_CLOSE,
    INVOKE_OPEN,
    PARAMETER_CLOSE,
    THINK,
    to_json,
)
from sounding.text.tokenizer import Tokenizer

# A line end belongs to the literal before it: the lexer takes the longest literal, and could not
# distinguish two with a common start, one of them with the line end and the next tag.
_CLOSE = f"<{PARAMETER_CLOSE}>\n"
# Up to here parameters may come in any order; each order of more would be a rule of its own.
_MOST_IN_ANY_ORDER = 5
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
    `schema` the content is JSON that follows it, and there is none before calls. Parameters come
    in any order where a tool has few and in the order of its schema where it has many; a tool
    without named properties takes any. Raises ValueError for a tool whose names or values the
    format cannot carry.
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
        lines.append(f"json: %json {to_json(schema)}")
    if may_call:
        schemas = Schemas(tools)
        rules = [_Tool(f"t{i}", tool["function"], schemas) for i, tool in enumerate(tools)]
        opening, close = _literal(f"{CALLS_OPEN}>\n"), _in_regex(PARAMETER_CLOSE)
        lines += [
            f"block: opening call{'+' if parallel else ''} {_literal(CALLS_CLOSE)}",
            f"opening[lazy]: {'CLEAN ' if schema is None else ''}{opening}",
            "call: " + " | ".join(rule.name for rule in rules),
            rf"RAW: /(.|\n)*/ & ~/(.|\n)*{close}(.|\n)*/",
            f"raw[lazy]: RAW {_literal(_CLOSE)}",
            *(line for rule in rules for line in rule.lines()),
        ]
    return "\n".join(lines) + "\n"


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
        raise ValueError(f"llguidance cannot follow the grammar: {made.get_error()}")
    return made


class _Tool:
    """The rules of one tool's calls."""

    def __init__(self, name: str, function: Mapping[str, Any], schemas: Schemas) -> None:
        self.name = name
        self._function = function
        self._schemas = schemas
        parameters = function.get("parameters")
        self._schema = parameters if isinstance(parameters, Mapping) else {}
        properties = self._schema.get("properties")
        self._properties = dict(properties) if isinstance(properties, Mapping) else {}
        self._keys = list(self._properties)
        required = self._schema.get("required") or ()
        self._required = {self._keys.index(key) for key in required if key in self._properties}
        self._open = bool(self._schema.get("additionalProperties")) or not self._properties

    def lines(self) -> list[str]:
        tool = self._function["name"]
        check_name(tool)
        head = _literal(f'{INVOKE_OPEN} name="{tool}">\n')
        lines = [f"{self.name}: {head} {self.name}_first"]
        for index, key in enumerate(self._keys):
            lines.append(f"{self.name}_p{index}: {self._parameter(key)}")
        if self._open:
            lines += self._any_parameter()
        end = f"{INVOKE_CLOSE}>\n"
        lines.append(f"{self.name}_end: {_literal(end)}")
        start = frozenset(range(len(self._keys)))
        # Without parameters there is an empty line instead.
        lines.append(f"{self.name}_first: {self._choices(start, _literal(chr(10) + end))}")
        for left in self._states(start):
            lines.append(f"{self._state(left)}: {self._choices(left, f'{self.name}_end')}")
        return lines

    def _state(self, left: frozenset[int]) -> str:
        return f"{self.name}_left{'_'.join(map(str, sorted(left)))}"

    def _next(self, left: frozenset[int]) -> list[tuple[int, frozenset[int]]]:
        """Each parameter that may come next, with those left after it."""
        if len(self._keys) <= _MOST_IN_ANY_ORDER:
            return [(index, left - {index}) for index in sorted(left)]
        steps = []
        for index in sorted(left):
            steps.append((index, frozenset(i for i in left if i > index)))
            if index in self._required:
                break
        return steps

    def _states(self, start: frozenset[int]) -> list[frozenset[int]]:
        """Every set of parameters that can be left after the first."""
        found: dict[frozenset[int], None] = {}
        waiting = [start]
        while waiting:
            for _, left in self._next(waiting.pop()):
                if left not in found:
                    found[left] = None
                    waiting.append(left)
        return list(found)

    def _choices(self, left: frozenset[int], end: str) -> str:
        choices = [
            f"{self.name}_p{index} {self._state(after)}" for index, after in self._next(left)
        ]
        if not left & self._required:
            choices.append(end)
            if self._open:
                choices.append(f"{self.name}_any+ {self.name}_end")
        return " | ".join(choices)

    def _parameter(self, key: str) -> str:
        """A parameter by its schema: raw if that is a string, JSON otherwise."""
        tool, schema = self._function["name"], self._properties[key]
        types = self._schemas.types(tool, key)
        choices = []
        if types is None or "string" in types:
            head = _literal(parameter_head(tool, key, True))
            allowed = _strings(schema)
            if allowed is None:
                choices.append(f"{head} raw")
            else:
                for text in allowed:
                    if PARAMETER_CLOSE in text:
                        raise ValueError(
                            f"{key} of {tool} allows {text!r}, which contains its closing tag; "
                            "take the value out of the schema"
                        )
                    choices.append(_literal(parameter_head(tool, key, True) + text + _CLOSE))
        if types is None or types - STRING:
            head, close = _literal(parameter_head(tool, key, False)), _literal(_CLOSE)
            choices.append(f"{head} %json {self._json_schema(schema, types)} {close}")
        return " | ".join(choices)

    def _json_schema(self, schema: Any, types: frozenset[str] | None) -> str:
        """The schema of a value written as JSON: with its definitions, without plain strings."""
        if not isinstance(schema, Mapping):
            return "{}"
        alone = dict(schema)
        for name in ("$defs", "definitions"):
            if name in self._schema:
                alone[name] = self._schema[name]
        if isinstance(alone.get("type"), list):
            alone["type"] = [name for name in alone["type"] if name != "string"]
        if isinstance(alone.get("enum"), list):
            alone["enum"] = [value for value in alone["enum"] if not isinstance(value, str)]
        for union in ("anyOf", "oneOf"):
            if isinstance(alone.get(union), list):
                alone[union] = [part for part in alone[union] if not _is_string(part)]
        return to_json(alone)

    def _any_parameter(self) -> list[str]:
        taken = "|".join(_in_regex(key) for key in self._keys)
        but = f" & ~/({taken})/" if taken else ""
        raw, as_json = (_literal(f'" string="{kind}">') for kind in ("true", "false"))
        head, close = _literal(f'<{DSML}parameter name="'), _literal(_CLOSE)
        key = f"{self.name.upper()}_KEY"
        return [
            rf'{key}: /[^"<>\n｜]+/{but}',
            f"{self.name}_any: {head} {key} ({raw} raw | {as_json} %json {{}} {close})",
        ]


def _is_string(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "string"


def _strings(schema: Any) -> list[str] | None:
    """The only strings a schema allows, None if it does not list them."""
    if isinstance(schema, Mapping) and "const" in schema:
        return [schema["const"]]
    if isinstance(schema, Mapping) and isinstance(schema.get("enum"), list):
        return [value for value in schema["enum"] if isinstance(value, str)]
    return None


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _in_regex(text: str) -> str:
    return "".join("\\" + c if c in r"\/.*+?()[]{}|^$-&~" else c for c in text)
