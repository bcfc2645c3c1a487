"""A few files that a model reads, edits and tests by tools; none of them is on a disk of ours.

Tools answer in text, mistakes too: a model must be able to read what it did wrong. Tests run in the
sandbox, on the files as they are; what they print is for the model and decides nothing.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sounding.sandbox.run import Outcome
from sounding.tasks.checks import FilesCheck
from sounding.text.markup import FIRST_TOKENS, NAMED_TOKENS

RunProgram = Callable[[str], Outcome]

TOOLS: list[Mapping[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string"} for key in keys},
                "required": list(keys),
            },
        },
    }
    for name, description, keys in (
        ("read_file", "Read a file.", ("path",)),
        ("edit", "Replace a text that comes once in a file.", ("path", "old", "new")),
        ("run_tests", "Run the tests.", ()),
    )
]
_MOST_CHARACTERS = 4000  # of a file, so that edits cannot grow one without bound
_MOST_SHOWN = 1500
_MARK = "\x00tests "
_SCHEMAS = {
    tool["function"]["name"]: list(tool["function"]["parameters"]["properties"]) for tool in TOOLS
}


class Workspace:
    """The files of one attempt."""

    def __init__(self, check: FilesCheck, run: RunProgram | None = None) -> None:
        """`run` runs a program in the sandbox; without it tests are not run, which is enough to
        repeat the edits of an attempt."""
        self.files = dict(check.files)
        self._editable, self._run = check.editable, run

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """Their schemas, in the form of OpenAI."""
        return TOOLS

    def call(self, name: str, arguments: str) -> str:
        """The result of a call, or what was wrong with it; never raises for what a model wrote.

        It is a text that a prompt can hold: names of special tokens are written apart, so that what
        a file says cannot open or end a turn.
        """
        text = self._call(name, arguments).encode("utf-8", "replace").decode()
        for token in (*FIRST_TOKENS, *NAMED_TOKENS):
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _call(self, name: str, arguments: str) -> str:
        known = _SCHEMAS.get(name)
        if known is None:
            return f"error: there is no tool {name}; there are {', '.join(_SCHEMAS)}"
        try:
            given = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return "error: the arguments are no JSON"
        if not isinstance(given, dict) or sorted(given) != sorted(known):
            return f"error: {name} takes {', '.join(known) or 'no arguments'}"
        if not all(isinstance(value, str) for value in given.values()):
            return f"error: the arguments of {name} are strings"
        if name == "read_file":
            return self.read_file(given["path"])
        return self.edit(**given) if name == "edit" else self.run_tests()

    def read_file(self, path: str) -> str:
        """The text of a file."""
        if path not in self.files:
            return f"error: there is no file {path}; there are {', '.join(self.files)}"
        return _shown(self.files[path].rstrip("\n"))

    def edit(self, path: str, old: str, new: str) -> str:
        """Replace a text that comes exactly once."""
        if path not in self.files:
            return f"error: there is no file {path}; there are {', '.join(self.files)}"
        if path != self._editable:
            return f"error: {path} is protected; only {self._editable} may be edited"
        text = self.files[path]
        count = text.count(old) if old else 0
        if count != 1:
            how = "is not in" if not count else f"comes {count} times in"
            return f"error: the old text {how} {path}; it must come once"
        if old == new:
            return "error: old and new are the same"
        changed = text.replace(old, new)
        if len(changed) > _MOST_CHARACTERS:
            return f"error: {path} would be longer than {_MOST_CHARACTERS} characters"
        self.files[path] = changed
        return f"edited {path}"

    def run_tests(self) -> str:
        """Run all test files, and say what the first failures are."""
        if self._run is None:
            return ""
        orders = json.dumps({"files": self.files})
        program = f"{_source('test_runner.py')}\n\nmain({orders!r}, {_MARK!r})\n"
        try:
            outcome = self._run(program)
        except ValueError:  # half a surrogate pair
            return "error: a file has characters that cannot be written"
        _, found, text = outcome.stdout.rpartition(_MARK)
        if not found:
            return f"the tests did not end: {outcome.ended}"
        return _shown(text)


def replayed(check: FilesCheck, messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The files after the calls of a conversation, made again on a fresh copy.

    A grade thus needs nothing but what was said, and nothing that ran can have touched a file.
    """
    workspace = Workspace(check)
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call["function"]
            if function["name"] == "edit":
                workspace.call("edit", function["arguments"])
    return workspace.files


def _shown(text: str) -> str:
    if len(text) <= _MOST_SHOWN:
        return text
    half = _MOST_SHOWN // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n... {left_out} characters ...\n{text[-half:]}"


@functools.cache
def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
