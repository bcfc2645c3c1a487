"""The grammar rules of tool calls, in Lark for llguidance.

The prompt format writes a call's arguments one by one: a string as it is, every other value as
JSON. Each tool has a rule, each way to give its arguments, each set of parameters that are left,
and each value.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from itertools import combinations
from typing import Any

import llguidance

from sounding.text.dsml.broken_markup import ENDS_A_VALUE
from sounding.text.dsml.calls import check_name, parameter_head
from sounding.text.json_schema.arguments import Shape, shapes
from sounding.text.json_schema.document import TYPES, Schema, SchemaDocument
from sounding.text.json_schema.json_values import json_grammar
from sounding.text.json_schema.strings import EVERY, Strings, only_strings, strings
from sounding.text.markup import DSML, INVOKE_CLOSE, INVOKE_OPEN, PARAMETER_CLOSE, to_json

# A line end belongs to the literal before it: the lexer takes the longest literal, and could not
# distinguish two with a common start, one of them with the line end and the next tag.
_CLOSE = f"<{PARAMETER_CLOSE}>\n"
# Up to here parameters may come in any order; each order of more would be a rule of its own.
_MOST_IN_ANY_ORDER = 5
_LONGEST_KEY = 256  # what the tolerant parser reads back, with room for the rest of the tag
_NO_ARGUMENTS = {"type": "object", "additionalProperties": False}
_ANY_ARGUMENTS = {"type": "object"}
# The name of a property that its schema does not name. One called `arguments` would be taken for
# a wrapper of them all.
_OTHER_KEY = r'/[^"<>\n\\｜|]{1,100}/ & ~"arguments"'
_JSON_TYPES = [name for name in TYPES if name != "string"]


def tool_rules(name: str, function: Mapping[str, Any], *, held: bool) -> list[str]:
    """The rules of a tool's calls, of which the first is `name` and the others begin with it.

    A tool without `parameters` takes none. Raises ValueError for a name that the format cannot
    carry, and, where `held`, for a schema that cannot be; else such a tool takes any arguments.
    """
    tool = function["name"]
    check_name(tool)
    parameters = function.get("parameters")
    try:
        return _Tool(name, tool, _NO_ARGUMENTS if parameters is None else parameters).lines
    except ValueError:
        if held:
            raise
        return _Tool(name, tool, _ANY_ARGUMENTS).lines


def literal(text: str) -> str:
    """A text in a grammar."""
    return json.dumps(text, ensure_ascii=False)


class _Tool:
    """The rules of one tool, as `lines`."""

    def __init__(self, name: str, tool: str, parameters: Any) -> None:
        document = SchemaDocument(parameters, f"the parameters of {tool}")
        values = _Values(name, tool, document)
        made = [
            _Arguments(f"{name}_s{index}", shape, values)
            for index, shape in enumerate(shapes(document))
        ]
        missing = dict.fromkeys(key for one in made for key in one.missing)
        made = [one for one in made if not one.missing]
        if not made:
            for_what = f"none is possible for {list(missing)}" if missing else "its parts disagree"
            raise document.fault("", f"no arguments at all follow this schema: {for_what}")
        head = literal(f'{INVOKE_OPEN} name="{tool}">\n')
        self.lines = [
            f"{name}: {head} ({' | '.join(f'{one.name}_first' for one in made)})",
            f"{name}_end: {literal(f'{INVOKE_CLOSE}>{chr(10)}')}",
            *(line for one in made for line in one.lines()),
            *values.lines,
        ]


class _Values:
    """The rules of one tool's parameters, made when they are asked for."""

    def __init__(self, name: str, tool: str, document: SchemaDocument) -> None:
        self.name, self._tool, self._document = name, tool, document
        self.lines: list[str] = []
        self._made: dict[str, str | None] = {}

    def parameter(self, key: str, schema: Schema) -> str | None:
        """The rule of a named parameter, None where no value is possible."""
        # Raises for a name that could not be read back.
        parameter_head(self._tool, key, True)
        if len(key) > _LONGEST_KEY or re.search(r'["<>\n]', key):
            raise self._document.fault(
                "", f"the parameter name {key!r:.80} could not be read back; rename the parameter"
            )
        return self._rule(literal(key), schema, f"parameter {key}")

    def other(self, known: set[str], keys: Strings, schema: Schema) -> str | None:
        """The rule of parameters without a name in the schema."""
        expression = f"{_OTHER_KEY} & {keys.expression}"
        if known:
            expression += f" & ~({' | '.join(literal(key) for key in sorted(known))})"
        if _is_void(expression):
            return None
        terminal = f"{self.name.upper()}_K{len(self._made)}"
        rule = self._rule(terminal, schema, "additionalProperties")
        if rule is not None:
            self.lines.append(f"{terminal}: {expression}")
        return rule

    def _rule(self, key: str, schema: Schema, what: str) -> str | None:
        known = f"{key} {to_json(schema)}"
        if known in self._made:
            return self._made[known]
        where = f"{what} of {self._tool}"
        rule = f"{self.name}_p{len(self._made)}"
        choices = []
        plain = self._plain(schema, where)
        if plain is not None:
            self.lines.append(f"{rule.upper()}: {plain} {literal(_CLOSE)}")
            choices.append(f"{literal(_flag(True))} {rule.upper()}")
        if schema is not False and not only_strings(schema):
            limited: Schema = {"allOf": [schema, {"type": _JSON_TYPES}]}
            as_json = json_grammar(limited, self._document, where)
            if as_json is not None:
                choices.append(f"{literal(_flag(False))} %json {as_json} {literal(_CLOSE)}")
        self._made[known] = rule if choices else None
        if choices:
            head = literal(f'<{DSML}parameter name="')
            self.lines.append(f"{rule}: {head} {key} ({' | '.join(choices)})")
        return self._made[known]

    def _plain(self, schema: Schema, where: str) -> str | None:
        """The terminal of the strings that a schema admits, None if there are none."""
        try:
            made = strings(schema, self._document)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if made.listed is None:
            expression = f"({made.expression} & ~/(.|\\n)*({ENDS_A_VALUE})(.|\\n)*/)"
            return None if made is not EVERY and _is_void(expression) else expression
        for text in made.listed:
            if re.search(ENDS_A_VALUE, text):
                raise ValueError(
                    f"{where} allows {text!r}, which contains its closing tag; "
                    "take the value out of the schema"
                )
        return made.expression if made.listed else None


class _Arguments:
    """The rules of one way to give a tool's arguments."""

    def __init__(self, name: str, shape: Shape, values: _Values) -> None:
        self.name, self._end = name, f"{values.name}_end"
        rules = {key: values.parameter(key, shape.of(key)) for key in shape.keys}
        self.missing = [key for key in shape.required if rules.get(key) is None]
        """Required parameters without a possible value."""
        keys = [key for key, rule in rules.items() if rule is not None]
        self._rules = [rules[key] for key in keys]
        self._required = {index for index, key in enumerate(keys) if key in shape.required}
        others = [values.other(shape.known, names, schema) for names, schema in shape.others()]
        self._others = [rule for rule in others if rule is not None]

    def lines(self) -> list[str]:
        # Without parameters there is an empty line instead.
        empty = literal(f"\n{INVOKE_CLOSE}>\n")
        make = self._in_any_order if len(self._rules) <= _MOST_IN_ANY_ORDER else self._in_order
        others = [f"{self.name}_other: {' | '.join(self._others)}"] if self._others else []
        return [*make(empty), *others]

    def _ends(self, end: str) -> list[str]:
        """What may follow the last of the named parameters."""
        return [end, *([f"{self.name}_other+ {self._end}"] if self._others else [])]

    def _in_any_order(self, empty: str) -> list[str]:
        """A rule for each set of parameters that are left, and one for the beginning."""
        everything = frozenset(range(len(self._rules)))
        lines = []
        for count in range(len(self._rules), -1, -1):
            for left in map(frozenset, combinations(sorted(everything), count)):
                steps = [f"{self._rules[i]} {self._state(left - {i})}" for i in sorted(left)]
                ends = not left & self._required
                choices = [*steps, *(self._ends(self._end) if ends else [])]
                if left == everything:
                    first = [*steps, *(self._ends(empty) if ends else [])]
                    lines.append(f"{self.name}_first: {' | '.join(first)}")
                lines.append(f"{self._state(left)}: {' | '.join(choices)}")
        return lines

    def _state(self, left: frozenset[int]) -> str:
        return f"{self.name}_left{'_'.join(map(str, sorted(left)))}"

    def _in_order(self, empty: str) -> list[str]:
        """Two rules for each parameter, which it begins with or leaves out: before any was given,
        and behind one."""
        lines = [f"{self.name}_first: {self.name}_begin0"]
        for step, end in (("begin", empty), ("from", self._end)):
            for index, rule in enumerate(self._rules):
                choices = [f"{rule} {self.name}_from{index + 1}"]
                if index not in self._required:
                    choices.append(f"{self.name}_{step}{index + 1}")
                lines.append(f"{self.name}_{step}{index}: {' | '.join(choices)}")
            last = len(self._rules)
            lines.append(f"{self.name}_{step}{last}: {' | '.join(self._ends(end))}")
        return lines


def _flag(string: bool) -> str:
    return f'" string="{"true" if string else "false"}">'


@cache
def _byte_vocabulary() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer("byte")


def _is_void(expression: str) -> bool:
    """Whether no text matches a terminal."""
    grammar = llguidance.LLMatcher.grammar_from_lark(f'start: TEXT\nTEXT: {expression} "x"\n')
    follows = llguidance.LLMatcher(_byte_vocabulary(), grammar)
    follows.compute_bitmask()
    return bool(follows.is_error())
