"""Find exercises that duplicate one another or a text that must stay out of training.

Programs are compared by their token n-grams, twice: with their names, and with every name they
define replaced by one word, so that renaming does not hide a copy. Descriptions are compared by
their words.
"""

import ast
import builtins
import functools
import io
import keyword
import math
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sounding.textbook.exercises import Exercise

RUN_TOKENS = 6
MIN_TOKENS = 30
"""Shorter programs have too few n-grams to distinguish a copy from a common idiom."""
MAX_LIKENESS = 0.6
"""Jaccard similarity of token n-grams, names kept, from which two programs count as one."""
MAX_SHAPE_LIKENESS = 0.8
"""The same limit with all defined names replaced by one word."""
MIN_WORDS = 6
"""Shorter descriptions consist of words that most descriptions share."""
MAX_REQUEST_LIKENESS = 0.65
"""Jaccard similarity of words from which two descriptions count as one."""

_STOP = frozenset(
    "a an the of to in is it and or for with that from as by on given return returns write "
    "function python find get be are if its all into each which this when using use "
    "program".split()
)


@dataclass(frozen=True)
class Text:
    """A program or a description, and the exercise or file line it belongs to."""

    owner: str
    text: str


def programs_of(exercise: Exercise) -> list[Text]:
    """The programs of an exercise that a model learns."""
    return [Text(exercise.name, text) for text in exercise.solutions]


def requests_of(exercise: Exercise) -> list[Text]:
    """The descriptions of an exercise."""
    return [Text(exercise.name, text) for text in exercise.descriptions]


def like_programs(ours: Sequence[Text], theirs: Sequence[Text]) -> Iterator[str]:
    """Yield a line for each pair of ours and theirs that is one program; owners must differ."""
    for shape, limit in ((False, MAX_LIKENESS), (True, MAX_SHAPE_LIKENESS)):
        how = "apart from names" if shape else "in its text"
        for one, other, share in _pairs(ours, theirs, functools.partial(_runs, shape=shape), limit):
            yield f"{one} is like {other} {how} ({share:.0%})"


def like_requests(ours: Sequence[Text], theirs: Sequence[Text]) -> Iterator[str]:
    """Yield a line for each pair of ours and theirs that asks for the same in the same words."""
    for one, other, share in _pairs(ours, theirs, _words, MAX_REQUEST_LIKENESS):
        yield f"{one} is asked for like {other} ({share:.0%} of the words)"


def _pairs(
    ours: Sequence[Text],
    theirs: Sequence[Text],
    features: Callable[[str], frozenset[Any]],
    limit: float,
) -> Iterator[tuple[str, str, float]]:
    """Pairs whose sets of features have a Jaccard similarity of at least `limit`.

    Such pairs share a feature among the n - ceil(limit * n) + 1 rarest of each set of n. Only pairs
    that do are compared.
    """
    sets = [features(text.text) for text in theirs]
    frequency = Counter(member for members in sets for member in members)

    def rarest(members: frozenset[Any]) -> list[Any]:
        count = len(members) - math.ceil(limit * len(members)) + 1
        return sorted(members, key=lambda member: (frequency[member], member))[:count]

    index: dict[Any, list[int]] = defaultdict(list)
    for number, members in enumerate(sets):
        for member in rarest(members):
            index[member].append(number)
    told: set[tuple[str, str]] = set()
    for text in ours:
        mine = features(text.text)
        for number in sorted(
            {number for member in rarest(mine) for number in index.get(member, ())}
        ):
            other = theirs[number].owner
            pair = (min(text.owner, other), max(text.owner, other))
            if text.owner == other or pair in told:
                continue
            share = len(mine & sets[number]) / len(mine | sets[number])
            if share >= limit:
                told.add(pair)
                yield text.owner, other, share


@functools.cache
def _words(text: str) -> frozenset[str]:
    words = frozenset(re.findall(r"[a-z]+", text.lower())) - _STOP
    return words if len(words) >= MIN_WORDS else frozenset()


@functools.cache
def _runs(text: str, shape: bool) -> frozenset[tuple[str, ...]]:
    tokens = list(_tokens(text, shape))
    if len(tokens) < MIN_TOKENS:
        return frozenset()
    return frozenset(zip(*(tokens[offset:] for offset in range(RUN_TOKENS)), strict=False))


def _tokens(text: str, shape: bool) -> Iterator[str]:
    """Tokens without comments, layout, imports; `shape` replaces defined names and literals."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        own = _own_names(ast.parse(text)) if shape else frozenset()
    except (SyntaxError, tokenize.TokenError, IndentationError):
        yield from re.findall(r"\w+|[^\w\s]", text)
        return
    skipping = False
    begins = True
    for token in tokens:
        if token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT):
            begins, skipping = begins or token.type == tokenize.NEWLINE, False
            continue
        if token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            continue
        if begins:
            skipping = token.string in ("import", "from")
        begins = False
        if skipping:
            continue
        if shape and token.type in (tokenize.NUMBER, tokenize.STRING):
            yield "0"
        elif shape and token.string in own and not keyword.iskeyword(token.string):
            yield "name"
        else:
            yield token.string


def _own_names(tree: ast.AST) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return frozenset(names - set(dir(builtins)))


def names_in(texts: Iterable[str]) -> frozenset[str]:
    """Names of the functions that programs define."""
    return frozenset(name for text in texts for name in re.findall(r"\bdef (\w+)\(", text))
