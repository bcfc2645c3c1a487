"""Random JSON schemas of tool arguments, and random answers that a grammar admits."""

import random
from functools import cache, lru_cache
from typing import Any

import llguidance
import numpy as np

from sounding.text.grammar import constraint_tokenizer, matcher
from sounding.text.markup import PARAMETER_CLOSE
from sounding.text.tokenizer import Tokenizer, train

PATTERNS = ("^[a-c]{1,3}$", "^x", r"^\d{2}-\w$", "a|b", "^(?:on|off)$", r"^[^\s]{2,4}$", ".z")
FORMATS = ("path", "uuid4", "colour", "int32")
KEYS = ("a", "b", "name", "a b", "kind")
SCALARS: tuple[Any, ...] = ("x", "small", "", "é\n", 0, 1, -7, 2.5, True, False, None)


class Drawing:
    """Draws a schema from a seed: small, with references, combinations and recursion."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._definitions: list[str] = [f"D{i}" for i in range(self._random.randint(0, 3))]
        self._referable = 0  # from here on; earlier ones only from within a container
        self._containers = 0

    def parameters(self) -> dict[str, Any]:
        definitions = {}
        for number, name in enumerate(self._definitions, 1):
            self._referable = number
            definitions[name] = self.schema(1)
        self._referable = 0
        root = self._object(3)
        if self._chance(0.3):
            parts = [self._object(2) for _ in range(self._random.randint(1, 3))]
            root = {self._random.choice(["anyOf", "oneOf", "allOf"]): parts}
            if self._chance(0.3):
                root = {**self._object(1), **root}
        elif self._definitions and self._chance(0.1):
            definitions["D0"] = self._object(2)
            root = {"$ref": "#/$defs/D0"}
        if "type" not in root and self._chance(0.7):
            root["type"] = "object"
        return {"$defs": definitions, **root} if definitions else root

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def schema(self, depth: int) -> Any:
        makers = [self._enum, self._const, self._string, self._number, self._plain, self._formatted]
        if self._names():
            makers += [self._reference] * 2
        if depth > 0:
            makers += [
                lambda: self._object(depth - 1),
                lambda: self._array(depth - 1),
                lambda: self._combined(depth - 1),
                lambda: self._tuple(depth - 1),
            ] * 2
        return self._random.choice(makers)()

    def _some(self, values: Any, most: int = 3) -> list[Any]:
        count = min(self._random.randint(1, most), len(values))
        return self._random.sample(list(values), count)

    def _enum(self) -> Any:
        made: dict[str, Any] = {"enum": self._some(SCALARS, 4)}
        if self._chance(0.3):
            made["type"] = self._types()
        return made

    def _const(self) -> Any:
        return {"const": self._random.choice([*SCALARS, {"a": 1}, [1, "x"]])}

    def _types(self) -> Any:
        names = ["string", "integer", "number", "boolean", "null", "array", "object"]
        return self._random.choice(names) if self._chance(0.5) else self._some(names)

    def _plain(self) -> Any:
        if self._chance(0.1):
            return self._random.choice([True, False, {}])
        return {"type": self._types(), "description": "d"}

    def _string(self) -> Any:
        made: dict[str, Any] = {"type": "string"}
        if self._chance(0.5):
            made["pattern"] = self._random.choice(PATTERNS)
        if self._chance(0.4):
            made["maxLength"] = self._random.randint(1, 5)
        if self._chance(0.3):
            made["minLength"] = self._random.randint(0, 3)
        return made

    def _formatted(self) -> Any:
        return {"type": "string", "format": self._random.choice(FORMATS), "maxLength": 4}

    def _number(self) -> Any:
        made: dict[str, Any] = {"type": self._random.choice(["integer", "number"])}
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if self._chance(0.3):
                made[name] = self._random.randint(-9, 99)
        if self._chance(0.2) and made["type"] == "integer":
            made["multipleOf"] = self._random.choice([2, 5])
        return made

    def _names(self) -> list[str]:
        return self._definitions[0 if self._containers else self._referable :]

    def _inner(self, depth: int) -> Any:
        self._containers += 1
        made = self.schema(depth)
        self._containers -= 1
        return made

    def _reference(self) -> Any:
        name = self._random.choice(self._names())
        made: dict[str, Any] = {"$ref": f"#/$defs/{name}"}
        if self._chance(0.2):
            made["description"] = "d"
        elif self._chance(0.2):
            made.update(self._string())
        return made

    def _array(self, depth: int) -> Any:
        made: dict[str, Any] = {"type": "array", "items": self._inner(depth), "maxItems": 3}
        if self._chance(0.4):
            made["minItems"] = self._random.randint(0, 2)
        if self._chance(0.1):
            made["uniqueItems"] = True
        return made

    def _tuple(self, depth: int) -> Any:
        parts = [self._inner(depth) for _ in range(self._random.randint(1, 2))]
        made: dict[str, Any] = {"type": "array", "prefixItems": parts}
        if self._chance(0.6):
            made["items"] = self._random.choice([False, self._inner(0)])
        made["maxItems"] = 3
        return made

    def _object(self, depth: int) -> dict[str, Any]:
        keys = self._some(KEYS)
        made: dict[str, Any] = {
            "type": "object",
            "properties": {key: self._inner(depth) for key in keys},
        }
        if self._chance(0.7):
            made["required"] = self._some([*keys, "z"] if self._chance(0.05) else keys)
        if self._chance(0.6):
            made["additionalProperties"] = self._random.choice([False, False, True, self._inner(0)])
        self._rarely(made, depth)
        return made

    def _rarely(self, made: dict[str, Any], depth: int) -> None:
        drawn: dict[str, Any] = {
            "patternProperties": {self._random.choice(PATTERNS): self.schema(0)},
            "propertyNames": {"pattern": self._random.choice(PATTERNS)},
            "dependentRequired": {self._random.choice(KEYS): self._some(KEYS, 2)},
            "minProperties": self._random.randint(1, 3),
            "maxProperties": self._random.randint(1, 3),
            "unevaluatedProperties": False,
            "not": self.schema(0),
            "if": self.schema(0),
            "x-order": 3,
        }
        for name, value in drawn.items():
            if self._chance(0.02):
                made[name] = value
        if self._chance(0.05):
            made["properties"]["b"] = {"$ref": "#/properties/a"}
        if self._chance(0.05):
            made.update(self._combined(max(depth - 1, 0)))

    def _combined(self, depth: int) -> dict[str, Any]:
        name = self._random.choice(["anyOf", "oneOf", "allOf", "anyOf"])
        parts = [self.schema(depth) for _ in range(self._random.randint(1, 3))]
        return {name: parts}


def drawn_parameters(seed: int) -> dict[str, Any]:
    return Drawing(seed).parameters()


@cache
def small_vocabulary() -> tuple[Tokenizer, llguidance.LLTokenizer]:
    text = 'tool_calls invoke name parameter string="true" string="false" small {"a": 1, "b": [2]}'
    tokenizer = train([text], 350)
    return tokenizer, constraint_tokenizer(tokenizer)


@lru_cache(maxsize=2)
def _matcher(grammar: str) -> llguidance.LLMatcher:
    return matcher(small_vocabulary()[1], grammar)


def answer(grammar: str, seed: int, most_tokens: int) -> tuple[str, bool]:
    """A random text that a grammar admits, and whether it came to its end.

    Every token that is allowed is as likely as another, but where the value may be closed, it is
    closed one time in four: at random alone a tag of several tokens would never be written.
    """
    tokenizer, _ = small_vocabulary()
    rng = np.random.default_rng(seed)
    follows = _matcher(grammar)
    follows.reset()
    closings = [tokenizer.encode(text) for text in (f"<{PARAMETER_CLOSE}>\n", '"', "}", "]")]
    tokens: list[int] = []
    while len(tokens) < most_tokens and not follows.is_stopped():
        closing = closings[rng.integers(len(closings))]
        if rng.random() < 0.5 and follows.validate_tokens(closing) == len(closing):
            chosen = closing
        else:
            bits = np.frombuffer(follows.compute_bitmask(), dtype=np.uint8)
            allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
            if follows.is_error() or not len(allowed):
                raise AssertionError(f"no token may follow {tokenizer.decode(tokens)!r}")
            chosen = [int(rng.choice(allowed))]
        assert follows.try_consume_tokens(chosen) == len(chosen)
        tokens += chosen
    ended = bool(follows.is_stopped())
    if tokens[-1:] == [tokenizer.eos_id]:
        tokens.pop()
    return tokenizer.decode(tokens), ended
