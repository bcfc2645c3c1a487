"""The answer's process: loads the program and serves the requests of the tests.

Runs inside of the sandbox, in one process with untrusted code, so nothing in here is secret and its
replies are treated as plain values. `test_process.py` describes requests and replies.
"""

import builtins
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

from sounding.sandbox.typed_json import Channel, MalformedMessage, NotPlain, Packer, Unpacker

MODULE = "__main__"
_INSIDES = (
    types.GeneratorType,
    types.CoroutineType,
    types.AsyncGeneratorType,
    types.FrameType,
    types.CodeType,
    types.TracebackType,
    types.ModuleType,
)
_OWN_FRAMES = 10  # the program has as many levels of recursion as if it ran alone


class Answerer:
    """The loaded program, and what of it the tests hold by a number."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._held: list[Any] = []
        self._given: dict[str, type] = {}
        self._names: dict[str, Any] = {}

    def load(self, program: str, given: list[str]) -> None:
        """Run the program as the main module, and reply with the outcome.

        `given` are the classes whose instances may come as arguments.
        """
        module = types.ModuleType(MODULE)
        module.__dict__["__builtins__"] = builtins
        sys.modules[MODULE] = module
        self._names = module.__dict__

        def run() -> None:
            exec(compile(program, "program.py", "exec", dont_inherit=True), self._names)

        loaded = self._outcome(run, [])
        found = {name: self._names.get(name) for name in given}
        self._given = {name: kind for name, kind in found.items() if isinstance(kind, type)}
        self._channel.send(loaded)

    def serve(self) -> None:
        """Answer requests until there are no more."""
        while True:
            try:
                request = self._channel.receive()
            except EOFError:
                return
            self._reply(request)

    def _reply(self, request: dict[str, Any]) -> None:
        unpacker = Unpacker(self._given, handle=self._pointed)
        given: Any = unpacker.unpack(request["arguments"])
        what, of = request["do"], request["of"]
        arguments, named = given

        def act() -> Any:
            target = self._names_value(of) if type(of) is str else self._held[of]
            if what == "call":
                return target(*arguments, **dict(named))
            if what == "get":
                return _attribute(target, *arguments) if arguments else target
            return iter(target) if what == "iter" else next(target)

        reply = self._outcome(act, unpacker.objects if request["in_place"] else [])
        try:
            self._channel.send(reply)
        except (ValueError, MemoryError):
            self._channel.send({"unplain": "too long"})

    def _names_value(self, path: str) -> Any:
        first, _, rest = path.partition(".")
        if any(part.startswith("__") for part in path.split(".")):
            raise NameError(f"name {path!r} is not for tests")
        try:
            value = self._names[first]
        except KeyError:
            raise NameError(f"name {first!r} is not defined") from None
        return operator.attrgetter(rest)(value) if rest else value

    def _outcome(self, act: Callable[[], Any], known: list[object]) -> dict[str, Any]:
        """Return the outcome: a value or an exception, and the arguments as they are now."""
        try:
            value = act()
        except BaseException as error:
            return self._packed("raised", _described(error), known)
        return self._packed("value", value, known)

    def _packed(self, name: str, value: object, known: list[object]) -> dict[str, Any]:
        packer = Packer({}, known, self._held_as)
        try:
            contents = [packer.contents(one) for one in known]
            return {"contents": contents, name: packer.pack(value)}
        except (Exception, RecursionError) as error:
            return {"unplain": f"{type(value).__name__}: {type(error).__name__}"[:200]}

    def _held_as(self, value: object) -> list[Any]:
        if isinstance(value, TestsOwn):
            return ["handle", -1 - value.number]
        self._held.append(value)
        return ["handle", len(self._held) - 1]

    def _pointed(self, number: int) -> object:
        """The object of a handle: ours from 0 up, a function of the tests below 0."""
        return self._held[number] if number >= 0 else TestsOwn(-1 - number, self)

    def call_back(self, number: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Let the tests call a function of theirs that was passed as an argument."""
        packer = Packer({}, handle=self._held_as)
        packed = packer.pack((arguments, tuple(named.items())))
        self._channel.send({"call_back": number, "arguments": packed})
        while "do" in (message := self._channel.receive()):
            self._reply(message)
        value = Unpacker(self._given, handle=self._pointed).unpack(message["value"])
        if message["raised"]:
            raise _built(value)
        return value


def _attribute(target: object, name: str) -> Any:
    """A public attribute. Raises AttributeError for what lies behind one.

    Tests that a model writes may send any request: they must not get at the code of what they test,
    by which a right program could be told from a wrong one without calling it.
    """
    if name.startswith("_") or isinstance(target, _INSIDES):
        raise AttributeError(name)
    return getattr(target, name)


class TestsOwn:
    """A function that stays with the tests."""

    def __init__(self, number: int, answerer: Answerer) -> None:
        self.number, self._answerer = number, answerer

    def __call__(self, /, *arguments: Any, **named: Any) -> Any:
        return self._answerer.call_back(self.number, arguments, named)


def _described(error: BaseException) -> tuple[tuple[str, ...], Any]:
    """The names of an exception's classes, and its arguments if they are plain, else its text."""
    names = tuple(kind.__name__ for kind in type(error).__mro__)
    try:
        Packer({}).pack(error.args)
    except Exception:
        return names, (str(error),)
    return names, error.args


def _built(described: Any) -> BaseException:
    names, arguments = described
    kind = next(k for name in names if isinstance(k := getattr(builtins, name, None), type))
    return kind(*arguments)


def main(orders: dict[str, Any], file: int) -> None:
    """Load the program of the orders and serve."""
    sys.setrecursionlimit(sys.getrecursionlimit() + _OWN_FRAMES)
    answerer = Answerer(Channel(file))
    try:
        answerer.load(orders["program"], orders["given"])
        answerer.serve()
    except (OSError, MalformedMessage, NotPlain):
        return  # the tests have ended, or the program has spoilt its own channel
