"""Explain a line of a program in a sentence, with its effects in a traced run."""

import ast
from dataclasses import dataclass

from sounding.textbook.drawing import Draw
from sounding.textbook.tracing import Traced

_CHANGES = {
    ast.Add: "adds `{1}` to `{0}`",
    ast.Sub: "subtracts `{1}` from `{0}`",
    ast.Mult: "multiplies `{0}` by `{1}`",
    ast.FloorDiv: "divides `{0}` by `{1}` and rounds down",
    ast.Mod: "replaces `{0}` by its remainder after division by `{1}`",
}
_METHODS = {"append": "appends `{1}` to `{0}`", "add": "adds `{1}` to the set `{0}`"}
_MOST_NOTE = 70


@dataclass(frozen=True)
class Explained:
    """A line and its explanation."""

    number: int
    line: str
    text: str


def explained(traced: Traced, draw: Draw) -> Explained | None:
    """Explain one of the lines that ran; None if no line can be explained."""
    lines = traced.program.split("\n")
    ran = {number for number, _ in traced.runs}
    found = []
    for node in ast.walk(ast.parse(traced.program)):
        if isinstance(node, ast.stmt) and node.lineno in ran:
            said = _said(node)
            if said and lines.count(lines[node.lineno - 1]) == 1:
                found.append((node.lineno, said))
    if not found:
        return None
    number, said = draw.one(found)
    call = lines[-2] if not lines[-1] else lines[-1]
    facts = _facts([note for at, note in traced.runs if at == number])
    text = f"It {said}. For `{call}` {facts}."
    return Explained(number, lines[number - 1].strip(), text)


def _said(node: ast.stmt) -> str:
    if isinstance(node, ast.AugAssign) and type(node.op) in _CHANGES:
        return _filled(_CHANGES[type(node.op)], ast.unparse(node.target), ast.unparse(node.value))
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        return f"sets `{ast.unparse(node.targets[0])}` to `{ast.unparse(node.value)}`"
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return f"sets `{ast.unparse(node.target)}` to `{ast.unparse(node.value)}`"
    if isinstance(node, ast.For):
        target, over = ast.unparse(node.target), ast.unparse(node.iter)
        return f"goes over `{over}`, one `{target}` after the other"
    if isinstance(node, ast.While):
        return f"repeats the lines below as long as `{ast.unparse(node.test)}`"
    if isinstance(node, ast.If):
        return f"runs the lines below only if `{ast.unparse(node.test)}`"
    if isinstance(node, ast.Return) and node.value is not None:
        return f"ends the function with the value `{ast.unparse(node.value)}`"
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and len(call.args) == 1:
        pattern = _METHODS.get(call.func.attr)
        if pattern:
            return _filled(pattern, ast.unparse(call.func.value), ast.unparse(call.args[0]))
    return ""


def _filled(pattern: str, first: str, second: str) -> str:
    before, _, rest = pattern.partition("{")
    parts = [before]
    while rest:
        parts.append(first if rest[0] == "0" else second)
        before, _, rest = rest[2:].partition("{")
        parts.append(before)
    return "".join(parts)


def _facts(notes: list[str]) -> str:
    """State how often a line ran and with which results."""
    times = "once" if len(notes) == 1 else f"{len(notes)} times"
    told = [note for note in notes if note and len(note) <= _MOST_NOTE and note != "done"]
    if not told:
        return f"it runs {times}"
    if set(told) <= {"True", "False"}:
        yes = told.count("True")
        if len(told) == 1:
            return f"it is checked once and is {told[0].lower()}"
        return f"it is checked {len(told)} times and is true {yes} of them"
    if len(told) == 1 or told[0] == told[-1]:
        return f"it runs {times}: `{told[-1]}`"
    return f"it runs {times}: first `{told[0]}`, at last `{told[-1]}`"
