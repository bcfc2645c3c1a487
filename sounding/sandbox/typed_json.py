"""Values that cross between the process of an answer and the process of its tests, as JSON.

Runs inside of the sandbox: `jail.py` loads this text into a bare interpreter, so it needs the
standard library only. Received values are built from exact builtin types only, so no
method of an answer ever runs in the tests' process. These are sent by value:

- None, bool, int, float, complex, str, bytes, range, builtin functions and types by their names;
- list, tuple, dict, set, frozenset, bytearray, deque, also nested, shared or in a cycle;
- Decimal, Fraction, and date, time, datetime and timedelta without a time zone;
- instances of classes that the problem itself defines, attribute by attribute, on their way to the
  answer.

An instance of a subclass of these (a Counter, a named tuple, an IntEnum) is sent as the builtin
that it extends. Everything else stays in its process and is sent as a handle.
"""

import builtins
import importlib
import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Packed = Any  # what json can write: None, bool, int, str, or a list that begins with a tag

LONGEST_MESSAGE = 32 * 2**20
_LONGEST_INT = 2**63  # longer ones are written in hexadecimal, which has no limit of digits

_DATE = ("year", "month", "day")
_TIME = ("hour", "minute", "second", "microsecond")
_LIBRARY: dict[str, tuple[str, ...]] = {
    "decimal.Decimal": (),
    "fractions.Fraction": ("numerator", "denominator"),
    "datetime.date": _DATE,
    "datetime.time": _TIME,
    "datetime.datetime": _DATE + _TIME,
    "datetime.timedelta": ("days", "seconds", "microseconds"),
}
_MUTABLE: dict[str, type] = {kind.__name__: kind for kind in (list, dict, set, bytearray, deque)}
_FIXED: dict[str, type] = {"tuple": tuple, "frozenset": frozenset}
# From the least special to the most: what a subclass crosses as.
_EXTENDED: tuple[type, ...] = (int, float, complex, str, bytes, bytearray, tuple, frozenset, set)
_EXTENDED += (list, dict, deque)


class NotPlain(Exception):
    """A value that cannot cross."""


class MalformedMessage(Exception):
    """A message of another form than ours: the other side does not keep to the rules."""


class Packer:
    """Turns values into messages; numbers mutable objects, so that messages can refer to them."""

    def __init__(
        self,
        classes: Mapping[str, type],
        known: Sequence[object] = (),
        handle: Callable[[object], Packed] | None = None,
    ) -> None:
        """`known` are objects that the other side has, by number; `handle` packs the rest."""
        self._classes, self._handle = classes, handle
        self.objects: list[object] = list(known)  # also keeps them alive, so that ids stay theirs
        self._numbers = {id(value): number for number, value in enumerate(self.objects)}

    def pack(self, value: object) -> Packed:
        """A value as a message. Raises NotPlain where it cannot cross."""
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            assert isinstance(value, int)
            return value if -_LONGEST_INT < value < _LONGEST_INT else ["int", hex(value)]
        if (number := self._numbers.get(id(value))) is not None:
            return ["seen", number]
        if kind in _MUTABLE.values() or self._given(kind):
            self._numbers[id(value)] = len(self.objects)
            self.objects.append(value)
            header = [kind.__name__] if kind in _MUTABLE.values() else ["given", kind.__name__]
            return [*header, self.contents(value)]
        return self._fixed(kind, value)

    def contents(self, value: Any) -> Packed:
        """The contents of a mutable object."""
        kind = type(value)
        if kind is dict:
            return [[self.pack(key), self.pack(one)] for key, one in value.items()]
        if kind is bytearray:
            return value.hex()
        if kind in _MUTABLE.values():
            items = [self.pack(one) for one in value]
            return sorted(items, key=json.dumps) if kind is set else items
        return [[str(name), self.pack(one)] for name, one in value.__dict__.items()]

    def _fixed(self, kind: type, value: Any) -> Packed:
        if kind is float:
            return ["float", value.hex()]
        if kind is complex:
            return ["complex", value.real.hex(), value.imag.hex()]
        if kind is bytes:
            return ["bytes", value.hex()]
        if kind is range:
            return ["range", *map(self.pack, (value.start, value.stop, value.step))]
        if kind is tuple or kind is frozenset:
            items = [self.pack(one) for one in value]
            return [kind.__name__, items if kind is tuple else sorted(items, key=json.dumps)]
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in _LIBRARY and getattr(value, "tzinfo", None) is None:
            parts = [getattr(value, part) for part in _LIBRARY[name]] or [str(value)]
            return ["library", name, *map(self.pack, parts)]
        named = getattr(value, "__name__", None)
        if isinstance(named, str) and builtins.__dict__.get(named) is value:
            return ["builtin", named]
        for base in _EXTENDED:
            if isinstance(value, base) and kind is not base:
                return self.pack(_as_builtin(base, value))
        if self._handle is None:
            raise NotPlain(f"{name} is not plain data")
        return self._handle(value)

    def _given(self, kind: type) -> bool:
        """True if the problem defines this class, and its instances have only attributes."""
        return self._classes.get(kind.__name__) is kind and all(
            base is object or (base.__module__ == kind.__module__ and "__slots__" not in vars(base))
            for base in kind.__mro__
        )


def _as_builtin(base: type, value: Any) -> object:
    """The value without its subclass; overridden methods are not called."""
    if base is dict:
        return dict(dict.items(value))
    plain: Any = base
    if base in (int, float, complex, str, bytes):
        return plain(getattr(base, f"__{base.__name__}__")(value))
    return plain(plain.__iter__(value))


class Unpacker:
    """Turns messages into values of exact types; refuses any other form."""

    def __init__(
        self,
        classes: Mapping[str, type],
        known: Sequence[object] = (),
        handle: Callable[[int], object] | None = None,
    ) -> None:
        self._classes, self._handle = classes, handle
        self.objects: list[object] = list(known)

    def unpack(self, packed: Packed) -> object:
        """The value of a message. Raises MalformedMessage."""
        if packed is None or type(packed) in (bool, int, str):
            return packed
        if type(packed) is not list or len(packed) < 2 or type(packed[0]) is not str:
            raise MalformedMessage(f"{packed!r:.60} is no value")
        tag, *parts = packed
        try:
            return self._value(tag, parts)
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise MalformedMessage(f"{packed!r:.60} is no value: {error}") from None

    def _value(self, tag: str, parts: list[Packed]) -> object:
        first = parts[0]
        if tag in _MUTABLE:
            return self.fill(self._new(_MUTABLE[tag]()), first)
        if tag in _FIXED:
            return _FIXED[tag](map(self.unpack, _list(first)))
        if tag == "given":
            kind = self._classes[first]
            return self.fill(self._new(object.__new__(kind)), parts[1])
        if tag == "seen":
            return self.objects[_integer(first, least=0)]
        if tag == "handle" and self._handle is not None:
            return self._handle(_integer(first))
        if tag == "library":
            if first not in _LIBRARY:
                raise LookupError(first)
            module, _, name = first.partition(".")
            return getattr(importlib.import_module(module), name)(*map(self.unpack, parts[1:]))
        return _scalar(tag, parts)

    def fill(self, target: Any, contents: Packed) -> object:
        """Replace the contents of a mutable object by those of the message."""
        kind = type(target)
        if kind is bytearray:
            target[:] = bytes.fromhex(contents)
            return target
        _list(contents)
        if kind is dict:
            items = [(self.unpack(key), self.unpack(one)) for key, one in contents]
            target.clear()
            target.update(items)
        elif kind is list:
            target[:] = [self.unpack(one) for one in contents]
        elif kind in (set, deque):
            found = [self.unpack(one) for one in contents]
            target.clear()
            (target.update if kind is set else target.extend)(found)
        else:
            attributes = {str(name): self.unpack(one) for name, one in contents}
            target.__dict__.clear()
            target.__dict__.update(attributes)
        return target

    def _new(self, value: object) -> object:
        self.objects.append(value)
        return value


def _scalar(tag: str, parts: list[Packed]) -> object:
    first = parts[0]
    if tag == "int":
        return int(first, 16)
    if tag == "float":
        return float.fromhex(first)
    if tag == "complex":
        return complex(float.fromhex(first), float.fromhex(parts[1]))
    if tag == "bytes":
        return bytes.fromhex(first)
    if tag == "range":
        return range(*(part if type(part) is int else int(part[1], 16) for part in parts))
    if tag == "builtin" and first.isidentifier():
        return builtins.__dict__[first]
    raise ValueError(f"no value is called {tag!r:.20}")


def _list(value: Packed) -> list[Packed]:
    if type(value) is not list:
        raise TypeError(f"{value!r:.40} is no list")
    return value


def _integer(value: Packed, least: int = -_LONGEST_INT) -> int:
    if type(value) is not int or value < least:
        raise TypeError(f"{value!r:.40} is no number of an object")
    return value


class Channel:
    """Messages over a socket, a line of JSON each."""

    def __init__(self, file: int) -> None:
        self._file, self._rest = file, bytearray()

    def send(self, message: object) -> None:
        """Send a message. Raises OSError if the reader is gone, ValueError if it is too long."""
        data = json.dumps(message).encode() + b"\n"
        if len(data) > LONGEST_MESSAGE:
            raise ValueError(f"a message of {len(data):,} bytes is too long")
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def receive(self) -> Any:
        """The next message. Raises EOFError at the end, MalformedMessage for invalid ones."""
        searched = 0
        while (end := self._rest.find(b"\n", searched)) < 0:
            searched = len(self._rest)
            if searched > LONGEST_MESSAGE:
                raise MalformedMessage("a message without an end")
            try:
                piece = os.read(self._file, 1 << 18)
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise EOFError
            self._rest += piece
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MalformedMessage(f"no JSON: {error}") from None
