"""Regular expressions of JSON schemas, in the dialect of the constraint library.

The standard means ECMAScript's, many validators have their own language's: `\\d` is ten digits in
one and hundreds in another. What is made here admits only texts on which they agree.
"""

import re

# Outside of a character class, and inside of one; in a negated class the wide sets apply.
# Written as no literal is, so that they are found again.
_NARROW = {"d": r"\x{30}-9", "w": r"A-Za-z\x{30}-9_", "s": r" \t\n\r\f\v"}
_WIDE = {
    "d": r"\p{Nd}",
    "w": r"\p{L}\p{N}_",
    "s": r" \t\n\r\f\v\x{85}\x{1c}-\x{1f}\x{feff}\p{Z}",
}
_CONTROL = {"t": r"\t", "n": r"\n", "r": r"\r", "f": r"\f", "v": r"\v", "0": r"\x{0}"}
_ANY = r"(?:.|\n)"
_LINE_END = r"\n\r\x{2028}\x{2029}"
_QUANTIFIER = re.compile(r"(?:[*+?]|\{[0-9]+(?:,[0-9]*)?\})")


def portable(pattern: str) -> str:
    """Translate a pattern. Raises ValueError for what it cannot say, naming it."""
    if len(pattern) > 10_000:
        raise ValueError("a pattern of more than 10,000 characters is not supported")
    try:
        re.compile(_python(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"the pattern {pattern!r:.80} is not supported: {error}") from None
    reader = _Reader(pattern)
    return reader.read()


def found_in(pattern: str, text: str) -> bool:
    """Whether a text matches a pattern that `portable` made."""
    return re.search(_python_of_portable(pattern), text) is not None


def is_narrowed(pattern: str) -> bool:
    """Whether a portable pattern admits less than the one it was made of, in some dialect."""
    return any(mark in pattern for mark in (_NARROW["d"], _NARROW["s"], r"\p{", _LINE_END))


def whole(pattern: str) -> str:
    """A portable pattern, which is searched for, as an expression of the whole text.

    Raises ValueError for `^` and `$` elsewhere than at the ends of an alternative.
    """
    alternatives = []
    for part in _alternatives(pattern):
        begins, ends = part.startswith("^"), part.endswith("$")
        body = part[begins : len(part) - ends]
        if "^" in _outside_of_classes(body) or "$" in _outside_of_classes(body):
            raise ValueError(
                "^ and $ inside of a pattern are not supported; write them at its ends"
            )
        start, end = "" if begins else f"{_ANY}*", "" if ends else f"{_ANY}*"
        alternatives.append(f"{start}(?:{body}){end}")
    return "|".join(alternatives)


class _Reader:
    """Reads a pattern from left to right; every literal but letters and digits is escaped."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at = pattern, 0

    def read(self) -> str:
        made = []
        while self._at < len(self._pattern):
            made.append(self._next())
        return "".join(made)

    def _fault(self, what: str) -> ValueError:
        return ValueError(f"{what} in the pattern {self._pattern!r:.80} is not supported")

    def _take(self) -> str:
        self._at += 1
        return self._pattern[self._at - 1 : self._at]

    def _next(self) -> str:
        quantifier = _QUANTIFIER.match(self._pattern, self._at)
        if quantifier is not None:
            self._at = quantifier.end()
            if self._pattern[self._at : self._at + 1] == "?":  # lazy: the same texts
                self._at += 1
            elif self._pattern[self._at : self._at + 1] == "+":
                raise self._fault("a possessive quantifier")
            return quantifier.group()
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escape()
        if character == ".":
            return f"[^{_LINE_END}]"
        if character in "{}]":
            return _escaped(character)
        return character if character in "^$|)" else _escaped(character)

    def _group(self) -> str:
        named = re.compile(r"\?(?::|P?<(?![=!])[^>]*>)").match(self._pattern, self._at)
        if named is not None:
            self._at = named.end()
        elif self._pattern[self._at : self._at + 1] == "?":
            raise self._fault(f"look-around or a flag ({self._pattern[self._at - 1 :]:.4}...)")
        return "(?:"

    def _escape(self) -> str:
        letter = self._take()
        if letter and letter in "dws":
            return f"[{_NARROW[letter]}]"
        if letter and letter in "DWS":
            return f"[^{_WIDE[letter.lower()]}]"
        if letter.isdigit() and letter != "0":
            raise self._fault("a back-reference")
        return self._literal(letter)

    def _literal(self, letter: str) -> str:
        """The character behind a backslash."""
        if letter in _CONTROL:
            return _CONTROL[letter]
        for first, digits in (("x", 2), ("u", 4)):
            if letter == first:
                code = self._pattern[self._at : self._at + digits]
                if not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", code):
                    raise self._fault(f"\\{first}")
                self._at += digits
                return rf"\x{{{code}}}"
        if letter.isalnum() or not letter:
            raise self._fault(f"\\{letter}")
        return _escaped(letter)

    def _class(self) -> str:
        negated = self._pattern[self._at : self._at + 1] == "^"
        self._at += negated
        parts: list[str] = []
        sets: set[str] = set()
        left = 0  # where a range may begin: behind a single character that ends none
        while (character := self._take()) != "]":
            if not character:
                raise self._fault("a class without an end")
            following = self._pattern[self._at : self._at + 1]
            if character == "-" and left == len(parts) > 0 and following not in ("]", ""):
                parts.append("-")
                continue
            if character == "\\" and following in [*"dwsDWS"]:
                sets.add(self._take())
                parts.append(f"\\{following}")
                continue
            if character != "\\":
                parts.append(_escaped(character))
            else:
                letter = self._take()
                parts.append(r"\x{8}" if letter == "b" else self._literal(letter))
            if parts[-2:-1] != ["-"]:
                left = len(parts)
        return self._set(negated, parts, sets)

    def _set(self, negated: bool, parts: list[str], sets: set[str]) -> str:
        if any({letter, letter.upper()} <= sets for letter in "dws"):
            if negated:
                raise self._fault("a class that nothing is in")
            return _ANY
        if outside := sets & set("DWS"):
            if not negated and len(parts) == 1:
                return f"[^{_WIDE[min(outside).lower()]}]"
            raise self._fault(f"\\{min(outside)} inside of a class")
        known = {f"\\{name}": inner for name, inner in (_WIDE if negated else _NARROW).items()}
        inner = "".join(known.get(part, part) for part in parts)
        if not inner:
            raise self._fault("an empty class")
        return f"[{'^' if negated else ''}{inner}]"


def _escaped(character: str) -> str:
    if character.isalnum() and character.isascii():
        return character
    return rf"\x{{{ord(character):x}}}"


def _python(pattern: str) -> str:
    return re.sub(r"\(\?<(?![=!])", "(?P<", pattern)


def _python_of_portable(pattern: str) -> str:
    """What `portable` made, for Python's own engine, whose `\\x{..}` and `\\p{..}` differ."""
    wide = {
        r"\p{Nd}": r"\d",
        r"\p{L}\p{N}_": r"\w",
        r"\x{85}\x{1c}-\x{1f}\x{feff}\p{Z}": r"\s\ufeff",
    }
    for ours, theirs in wide.items():
        pattern = pattern.replace(ours, theirs)
    pattern = re.sub(r"\\x\{([0-9a-fA-F]+)\}", lambda m: rf"\U{int(m[1], 16):08x}", pattern)
    return pattern.replace("$", r"\Z")  # another "$" is written \x{24}


def _alternatives(pattern: str) -> list[str]:
    """The parts between the bars that are in no group; classes hold no bare bar."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(pattern):
        character = pattern[at]
        if character == "\\":
            at += 1
        depth += (character == "(") - (character == ")")
        if character == "|" and depth == 0:
            parts.append(pattern[start:at])
            start = at + 1
        at += 1
    return [*parts, pattern[start:]]


def _outside_of_classes(pattern: str) -> str:
    return re.sub(r"\[[^\]]*\]|\\.", "", pattern)
