"""Malformed tags as models generate them: the regular expressions of the tolerant parser.

Each parser state (prose, between tags, inside a value) has an expression for the tags it handles,
and one for a text that ends in a possible beginning of such a tag.
"""

import re
from collections.abc import Sequence

from sounding.text.markup import ASSISTANT, BOS, END_THINK, EOS, REMINDER, THINK, USER

_BARS = "[｜|]{1,3}"
_DSML = f"{_BARS}DSML{_BARS}"
_BLOCK = "(?:tool_calls|function_calls)"
_EOS = f"{EOS}|<[｜|]end[▁_]of[▁_]sentence[｜|]>"
_TOKENS = (
    f"(?P<eos>{_EOS})|(?P<turn>{USER}|{ASSISTANT}|{REMINDER})"
    f"|(?P<bos>{BOS})|(?P<think>{THINK})|(?P<end_think>{END_THINK})"
)
# Calls may open without their two line ends; everything else with the token in it is cut, with
# its attributes if it has some. Without a "<", ASCII bars are a table's, not a tag's.
IN_TEXT = re.compile(
    rf"(?P<open>\n{{0,2}}<{_DSML}(?:{_BLOCK}|(?P<direct>invoke))(?![a-z_]))|{_TOKENS}"
    rf"|(?P<stray></?{_BARS}DSML(?:[^<>\n]{{0,200}}>|[｜|]{{0,3}}[a-z_]{{0,14}})"
    r"|｜{1,3}DSML｜{1,3})"
)
IN_BLOCK = re.compile(rf"(?P<tag><(?P<slash>/?){_DSML}(?P<name>[a-z_]{{1,14}}))|{_TOKENS}")
VALUE_END = re.compile(
    rf"(?P<close><?/{_DSML}parameter)|\n?(?:<{_DSML}(?:parameter|invoke|{_BLOCK})(?![a-z_])"
    rf"|</{_DSML}(?:invoke|{_BLOCK})|{_EOS})"
)
# Without groups and look-ahead, for grammars: a text in which this is found may end a value.
ENDS_A_VALUE = (
    rf"<\/?{_DSML}(?:parameter|invoke|{_BLOCK})|\/{_DSML}parameter"
    r"|<[｜|]end[▁_]of[▁_]sentence[｜|]>"
)


def _beginnings(*sequences: Sequence[str]) -> re.Pattern[str]:
    """Match a text's end that may begin one of the sequences of expressions."""
    nested = []
    for atoms in sequences:
        expression = ""
        for atom in reversed(atoms):
            expression = atom + (f"(?:{expression})?" if expression else "")
        nested.append(expression)
    return re.compile("(?:" + "|".join(nested) + r")\Z")


_HALF_DSML = [_BARS, *"DSML", _BARS, "[a-z_]{1,13}"]
_HALF_EOS = ["[｜|]", *"end", "[▁_]", *"of", "[▁_]", *"sentence", "[｜|]"]
_HALF_TOKENS = [list(token)[:-1] for token in (BOS, USER, ASSISTANT, REMINDER, THINK, END_THINK)]
_HALF_TAG = ["<", "/?", *_HALF_DSML]

HALF_IN_TEXT = _beginnings(
    [r"\n", r"\n"],
    [r"\n{0,2}<", "/?", _BARS, *"DSML", r"[^<>\n]{1,200}"],
    ["｜{1,3}", *"DSML", "｜{1,3}"],
    ["<", *_HALF_EOS],
    *_HALF_TOKENS,
)
HALF_IN_BLOCK = _beginnings(_HALF_TAG, ["<", *_HALF_EOS], *_HALF_TOKENS)
HALF_VALUE_END = _beginnings(
    [r"\n"], [r"\n?<", "/?", *_HALF_DSML], ["/", *_HALF_DSML], [r"\n?<", *_HALF_EOS]
)
LONGEST_HALF = 260

_QUOTE = "[\"'“”„‟‘’«»＂]"
NAME = re.compile(
    rf'\s*name\s*=\s*(?:"(?P<exact>[^"\n]*)"|{_QUOTE}(?P<quoted>[^\n]*?){_QUOTE}(?=\s*/?>)'
    r"|(?P<bare>[^\s\"'<>/]+))\s*(?P<empty>/?)>"
)
KEY = re.compile(
    rf'\s*name\s*=\s*(?:"(?P<exact>[^"\n]*)"|{_QUOTE}(?P<quoted>[^\n>]*?){_QUOTE}'
    r"(?=\s*(?:string\s*=|>))|(?P<bare>[^\s\"'<>]+))"
    rf"(?:\s*string\s*=\s*{_QUOTE}?(?P<flag>[Tt]rue|[Ff]alse){_QUOTE}?)?\s*>"
)
LONGEST_ATTRIBUTES = 400
STRICT_NAME = re.compile(r'\s*name="[^"]*">')
STRICT_KEY = re.compile(r' name="[^"]*" string="(?:true|false)">')
