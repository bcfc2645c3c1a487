"""The process of the tests: runs them against an answer that runs in another process.

Runs inside of the sandbox, because the tests are untrusted too, but without code of the answer.
The function under test is a proxy: a call of it is a request, and the reply becomes a value built
here, of exact builtin types (`typed_json.py`). So an answer can only return values: it sees neither
tests nor expected values, and cannot change their comparison.

Requests: {"do": "call" | "get" | "iter" | "next", "of": name or handle, "arguments": [...],
"in_place": true to return changed arguments}. Replies: {"value" or "raised" or
"unplain": ..., "contents": the arguments as the call left them}. Before a reply the answer may ask
for {"call_back": function, "arguments": [...]}, a function among its arguments.
"""

import builtins
import contextlib
import json
import os
import sys
import types
from typing import Any, NoReturn

from sounding.sandbox.typed_json import Channel, MalformedMessage, NotPlain, Packer, Unpacker

MODULE = "__main__"


class CannotJudge(BaseException):
    """The answer cannot be judged further; no test may catch this and go on."""


class Caller:
    """The answer's process as the tests have it."""

    def __init__(self, channel: Channel, *, in_place: bool) -> None:
        self._channel, self._in_place = channel, in_place
        self._functions: list[Any] = []
        self.given: dict[str, type] = {}
        self.fault: str | None = None
        self.changed = False

    def loaded(self) -> None:
        """Wait until the program is loaded; raises what it raised."""
        self._value(self._receive(), [], [])

    def ask(self, what: str, of: str | int, *arguments: Any, named: Any = ()) -> Any:
        """Send a request; return its value, or raise the exception raised there.

        `named` are the keyword arguments.
        """
        packer = Packer(self.given, handle=self._handle)
        try:
            packed = packer.pack((arguments, tuple(named)))
            before = [packer.contents(one) for one in packer.objects] if self._in_place else []
            request = {"do": what, "of": of, "arguments": packed, "in_place": self._in_place}
            self._channel.send(request)
        except (NotPlain, RecursionError, ValueError) as error:
            raise self.spoilt(f"arguments that are not plain data: {error}") from None
        except OSError:
            raise self.spoilt("ended") from None
        reply = self._receive()
        while "call_back" in reply:
            self._call_back(reply)
            reply = self._receive()
        return self._value(reply, packer.objects if self._in_place else [], before)

    def _value(self, reply: Any, objects: list[Any], before: list[Any]) -> Any:
        if "unplain" in reply:
            raise self.spoilt("not plain data")
        raised = "raised" in reply
        try:
            # Both sides number objects in the order of writing.
            unpacker = Unpacker({}, objects, self._held)
            contents = reply["contents"]
            new = [
                unpacker.fill(self._empty(old), now)
                for old, now in zip(objects, contents, strict=True)
            ]
            value: Any = unpacker.unpack(reply["raised" if raised else "value"])
            error = self._exception(*value) if raised else None
        except (MalformedMessage, RecursionError, LookupError, TypeError, ValueError) as broken:
            raise self.spoilt(f"broken reply: {broken!r:.80}") from None
        for number, old in enumerate(objects):
            if json.dumps(contents[number]) != json.dumps(before[number]):
                self.changed = True
                _take_over(old, new[number])
        if error is not None:
            raise error
        return value

    def _empty(self, value: object) -> object:
        kind = type(value)
        return object.__new__(kind) if kind in self.given.values() else kind()

    def _receive(self) -> dict[str, Any]:
        try:
            reply = self._channel.receive()
        except EOFError:
            raise self.spoilt("ended") from None
        except MalformedMessage as error:
            raise self.spoilt(f"broken reply: {error}") from None
        if type(reply) is not dict:
            raise self.spoilt("broken reply")
        return reply

    def _call_back(self, request: dict[str, Any]) -> None:
        try:
            function = self._functions[request["call_back"]]
            given: Any = Unpacker({}, handle=self._held).unpack(request["arguments"])
            arguments, named = given[0], dict(given[1])
        except (MalformedMessage, LookupError, TypeError, ValueError) as error:
            raise self.spoilt(f"broken reply: {error!r:.80}") from None
        raised = False
        try:
            value = function(*arguments, **named)
        except Exception as error:
            raised, value = True, (_builtin_names(error), error.args)
        try:
            packed = Packer(self.given, handle=self._handle).pack(value)
            self._channel.send({"value": packed, "raised": raised})
        except (NotPlain, ValueError) as error:
            raise self.spoilt(f"arguments that are not plain data: {error}") from None
        except OSError:
            raise self.spoilt("ended") from None

    def _handle(self, value: object) -> Any:
        if type(value) is Remote:
            return ["handle", value._of]
        if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
            self._functions.append(value)
            return ["handle", -len(self._functions)]
        raise NotPlain(f"{type(value).__name__} cannot be given to an answer")

    def _held(self, number: int) -> object:
        return Remote(number, self) if number >= 0 else self._functions[-1 - number]

    def _exception(self, names: tuple[str, ...], arguments: tuple[Any, ...]) -> BaseException:
        for name in names:
            kind = self.given.get(name, builtins.__dict__.get(name))
            if isinstance(kind, type) and issubclass(kind, BaseException):
                error = kind.__new__(kind, *arguments)
                error.args = arguments
                return error
        raise TypeError("no exception")

    def spoilt(self, why: str) -> CannotJudge:
        """Nothing that the tests do from here on can make this a pass."""
        self.fault = self.fault or why
        return CannotJudge(why)


class Remote:
    """A proxy of an answer's object that is not plain data: it can be called, iterated, and its
    public attributes read, and no more, because that would let the answer affect the verdict."""

    __slots__ = ("_caller", "_of")

    def __init__(self, of: str | int, caller: Caller) -> None:
        self._of, self._caller = of, caller

    def __call__(self, /, *arguments: Any, **named: Any) -> Any:
        return self._caller.ask("call", self._of, *arguments, named=named.items())

    def __iter__(self) -> Any:
        return self._caller.ask("iter", self._of)

    def __next__(self) -> Any:
        return self._caller.ask("next", self._of)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._caller.ask("get", self._of, name)

    def _refuse(self, *others: object) -> NoReturn:
        raise self._caller.spoilt("not plain data")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __bool__ = __str__ = __repr__ = _refuse


def _take_over(old: Any, new: Any) -> None:
    """Give an object the contents of another of its kind."""
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
    elif hasattr(old, "extend"):
        old.clear()
        old.extend(new)
    else:
        old.__dict__.clear()
        old.__dict__.update(new.__dict__)


def _builtin_names(error: BaseException) -> tuple[str, ...]:
    return tuple(k.__name__ for k in type(error).__mro__ if hasattr(builtins, k.__name__))


def run_tests(orders: dict[str, Any], caller: Caller) -> str:
    """Run the tests; return the reason why they fail, or "" if they pass."""
    names = _reference(orders, caller)
    entry = orders["entry_point"]
    try:
        caller.loaded()
        for name in orders["answered"]:
            names.pop(name, None)
            with contextlib.suppress(NameError):  # the tests fail with it, if they use it
                names[name] = caller.ask("get", name)
        exec(compile(orders["test"], "test.py", "exec", dont_inherit=True), names)
        if orders["calls_check"]:
            names["check"](caller.ask("get", entry))
    except CannotJudge:
        pass
    except AssertionError:
        return caller.fault or "wrong answer"
    except BaseException as error:
        return caller.fault or type(error).__name__
    return caller.fault or ""


def _reference(orders: dict[str, Any], caller: Caller) -> dict[str, Any]:
    """The names of the problem with its own solution: tests may use helpers and classes of it."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = sys.modules["reference"] = module
    names = module.__dict__
    names |= {"__builtins__": builtins, "__name__": "reference"}
    try:
        exec(compile(orders["reference"], "reference.py", "exec", dont_inherit=True), names)
    except BaseException as error:
        caller.spoilt(f"the reference raises {type(error).__name__}")
    names["__name__"] = MODULE
    caller.given = {name: names[name] for name in orders["given"] if name in names}
    return names


def main(orders: dict[str, Any], file: int) -> None:
    """Run the tests of the orders and write the verdict, as JSON, to what was stdout."""
    verdict = os.dup(1)
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    caller = Caller(Channel(file), in_place=orders["in_place"])
    reason = run_tests(orders, caller)
    os.write(verdict, json.dumps({"reason": reason, "changed": caller.changed}).encode() + b"\n")
