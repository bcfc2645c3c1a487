"""Inputs drawn anew for a function whose right programs are known, and its test on them.

The text of this file becomes part of a test (`checks.py`), which runs in the tests' process of a
trial: it has the standard library only, and an answer sees nothing of it but arguments. Inputs are
put together from those of the published tests, so that they stay inside of what the function is
asked to take; inputs on which right programs differ, raise or run long say nothing and are left
out.
"""

import copy
import math
import random
import signal
import types
from collections.abc import Sequence
from typing import Any

_SECONDS = 0.5  # of a right program for one input


class _TooLong(BaseException):
    pass


def drawn_inputs(seen: Sequence[tuple[Any, ...]], seed: int, count: int) -> list[tuple[Any, ...]]:
    """Arguments of `count` calls, each those of a call that was seen with one or two changed."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        base = list(copy.deepcopy(rng.choice([one for one in seen if one])))
        places = rng.sample(range(len(base)), min(len(base), rng.choice((1, 1, 2))))
        for at in places:
            base[at] = _drawn([one[at] for one in seen if len(one) > at], rng)
        made.append(tuple(base))
    return made


def _drawn(pool: Sequence[Any], rng: random.Random) -> Any:
    """A value like those of a pool: of the type of one of them, its parts from all."""
    like = rng.choice(pool)
    same = [one for one in pool if type(one) is type(like)]
    if type(like) is int:
        return rng.choice([like, rng.randint(min(same), max(same))])
    if type(like) is float:
        return rng.choice([like, round(rng.uniform(min(same), max(same)), 2)])
    if type(like) is str:
        return _text(like, same, rng)
    if type(like) in (list, tuple, set):
        return _parts(like, same, rng)
    if type(like) is dict:
        values = [value for one in same for value in one.values()]
        keys = [key for key in like if rng.random() < 0.8]
        return {key: copy.deepcopy(rng.choice([like[key], rng.choice(values)])) for key in keys}
    return copy.deepcopy(like)


def _parts(like: Any, same: Sequence[Any], rng: random.Random) -> Any:
    """A list, tuple or set of parts that were seen; sorted or without repetition where all are."""
    parts = [part for one in same for part in one]
    record = type(like) is tuple and len({len(one) for one in same}) == 1
    if not parts or record:  # each place of a record has values of its own
        return type(like)(_drawn([one[i] for one in same], rng) for i in range(len(like)))
    size = rng.randint(0 if any(not one for one in same) else 1, max(map(len, same)))
    chosen = [copy.deepcopy(rng.choice(parts)) for _ in range(size)]
    if type(like) is set:
        return set(chosen)
    if all(_distinct(one) == list(one) for one in same):
        chosen = _distinct(chosen)
    for falling in (False, True):
        if all(_sorted(one, falling) == list(one) for one in same):
            chosen = _sorted(chosen, falling)
    return type(like)(chosen)


def _distinct(items: Any) -> list[Any]:
    return list({repr(item): item for item in items}.values())


def _sorted(items: Any, falling: bool) -> list[Any]:
    try:
        return sorted(items, reverse=falling)
    except TypeError:
        return []


def _text(like: str, same: Sequence[str], rng: random.Random) -> str:
    """Lines or words that were seen, in another order and number; a single word stays whole."""
    for separator in ("\n", "; ", ", ", ",", " "):
        if separator in like:
            pieces = [piece for one in same for piece in one.split(separator)]
            if separator not in "\n ":
                pieces = [piece for piece in pieces if piece and "\n" not in piece]
            size = rng.randint(1, max(2, like.count(separator) + 1))
            return separator.join(rng.choice(pieces) for _ in range(size))
    if all(one.isalpha() or not one for one in same) and rng.random() < 0.7:
        letters = list(like + rng.choice(same))
        return "".join(rng.sample(letters, rng.randint(0, len(letters))))
    return like


def agreed(programs: Sequence[Any], arguments: tuple[Any, ...]) -> list[Any]:
    """[the value of all programs], or [] where one raises, runs long, or has another one."""
    values = []
    for program in programs:
        try:
            values.append(_timed(program, copy.deepcopy(arguments)))
        except (Exception, _TooLong):
            return []
    if isinstance(values[0], types.GeneratorType):
        return []
    return values[:1] if all(same_value(one, values[0]) for one in values) else []


def _timed(program: Any, arguments: tuple[Any, ...]) -> Any:
    def end(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        return program(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def same_value(value: Any, expected: Any) -> bool:
    """Equal in value and exact type, all the way down; floats within 1e-9."""
    if type(value) is not type(expected):
        return False
    if isinstance(expected, float):
        both_nan = value != value and expected != expected
        return both_nan or math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(map(same_value, value, expected))
    if isinstance(expected, dict):
        return value.keys() == expected.keys() and all(
            same_value(value[key], expected[key]) for key in expected
        )
    return bool(value == expected)


def load(text: str, entry_point: str) -> Any:
    """The function of a program, loaded apart from all others."""
    module = types.ModuleType("right")
    exec(compile(text, "right.py", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__[entry_point]
