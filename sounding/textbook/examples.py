"""Write an exercise's tests as people do: assertions, test functions, doctests, a main part."""

import ast
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sounding.textbook.drawing import Draw
from sounding.textbook.exercises import Case, Exercise
from sounding.textbook.programs import requoted

MAX_DOC_CHARACTERS = 88
# Characters of a case, so that its line stays below 100.
_LONGEST = {
    "asserts": 90,
    "function": 86,
    "parametrize": 90,
    "unittest": 72,
    "main": 80,
    "prints": 80,
}


@dataclass(frozen=True)
class Below:
    """Lines that use a program, the imports they need, and code that checks them."""

    lines: tuple[str, ...]
    imports: tuple[tuple[str, str, str], ...] = ()
    proof: str = ""
    """Code that calls the functions and classes that the lines only define."""


def assertions(case: Case) -> list[str]:
    """A case as statements; empty if its value is not exact or the case raises."""
    if case.expected is None:
        return []
    exact = comparison(case)
    return [*case.before, f"assert {exact}"] if exact else []


def comparison(case: Case) -> str:
    """The condition that a case states; "" if its value contains floats that may be inexact."""
    assert case.expected is not None
    value = ast.literal_eval(case.expected)
    code = case.code
    try:
        plain = not isinstance(
            ast.parse(code, mode="eval").body,
            ast.Compare | ast.BoolOp | ast.IfExp | ast.Lambda | ast.UnaryOp,
        )
    except SyntaxError:
        return ""
    if isinstance(value, float) and plain and value == value and abs(value) < 1e12:
        return f"abs({code} - {expected_text(case)}) < 1e-9" if value else f"abs({code}) < 1e-9"
    if _has_float(value):
        return ""
    if value is True and plain:
        return code
    if value is False and plain:
        return f"not {code}"
    if value is None and plain:
        return f"{code} is None"
    return f"{code} == {expected_text(case)}" if plain else f"({code}) == {expected_text(case)}"


def expected_text(case: Case) -> str:
    """The expected literal as a programmer writes it, in double quotes if possible."""
    assert case.expected is not None
    return double_quoted(case.expected)


def double_quoted(code: str) -> str:
    """Code with each '...' of `ast.unparse` turned into "...", where the content allows it."""
    return requoted(code, '"')


def _has_float(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_float, [*value, *value.values()]))
    if isinstance(value, list | tuple | set):
        return any(map(_has_float, value))
    return isinstance(value, float | complex)


def doctest_lines(case: Case, program: str) -> list[str]:
    """A case as an interpreter session; empty if its output is not deterministic."""
    if case.expected is None:
        return []
    value = ast.literal_eval(case.expected)
    many = isinstance(value, set | dict) and len(value) > 1
    if value is None or many or _has_float(value):
        return []
    silent = _silent_names(program)
    if not all(_is_silent(statement, silent) for statement in case.before):
        return []
    lines = [*(f">>> {double_quoted(line)}" for line in case.before)]
    lines += [f">>> {double_quoted(case.code)}", repr(value)]
    return lines if max(map(len, lines)) <= MAX_DOC_CHARACTERS and "\\" not in lines[-1] else []


def _is_silent(statement: str, silent: frozenset[str]) -> bool:
    """True if an interpreter prints nothing after this statement."""
    node = ast.parse(statement).body[0]
    if not isinstance(node, ast.Expr):
        return True
    if not isinstance(node.value, ast.Call):
        return False
    called = node.value.func
    if isinstance(called, ast.Attribute):
        return called.attr in silent
    return isinstance(called, ast.Name) and called.id in silent


@functools.lru_cache(4096)
def _silent_names(program: str) -> frozenset[str]:
    """Names of functions that return None: the program's, and methods of lists, sets and dicts."""
    names = set("append extend insert remove sort reverse clear add discard update".split())
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            spoken = isinstance(node, ast.AsyncFunctionDef) or bool(node.decorator_list)
            for inner in ast.walk(node):
                spoken |= isinstance(inner, ast.Yield | ast.YieldFrom)
                spoken |= isinstance(inner, ast.Return) and inner.value is not None
            (names.discard if spoken else names.add)(node.name)
    return frozenset(names)


def short_examples(cases: Sequence[Case], style: str, program: str) -> list[str]:
    """Cases of a program as lines for a docstring: "==", "->", "assert" or ">>>".

    Leaves out cases that are too long or would end the docstring.
    """
    lines: list[str] = []
    for case in cases:
        if style == ">>>":
            session = doctest_lines(case, program)
            lines += session if '"""' not in "".join(session) else []
            continue
        if case.before or case.expected is None:
            continue
        left, right = double_quoted(case.code), expected_text(case)
        equals = "is" if right in ("None", "True", "False") else "=="
        text = {
            "==": f"{left} {equals} {right}",
            "->": f"{left} -> {right}",
            "assert": f"assert {left} {equals} {right}",
        }[style]
        if len(text) <= MAX_DOC_CHARACTERS and '"""' not in text:
            lines.append(text)
    return lines


# --------------------------------------------------------------------------------------------------
# Code below a program


def below(exercise: Exercise, draw: Draw, style: str) -> Below | None:
    """Code that calls the exercise's program, in a style; None if no case fits it.

    Styles: "asserts", "function", "parametrize", "unittest", "main", "prints".
    """
    cases = [case for case in exercise.cases if len(case.text) <= _LONGEST[style]]
    exact = [case for case in cases if assertions(case)]
    raising = [case for case in cases if case.raises]
    chosen = draw.some(exact, 2 + draw.below(4))
    if not chosen:
        return None
    if style == "asserts":
        return Below(tuple(double_quoted(line) for case in chosen for line in assertions(case)))
    if style == "function":
        return _functions(_test_name(exercise), chosen, raising)
    if style == "parametrize":
        return _parametrized(exercise, chosen)
    if style == "unittest":
        return _unittest(_test_name(exercise), chosen, raising)
    return _main(chosen, prints=style == "prints")


def _test_name(exercise: Exercise) -> str:
    """The entry point in snake case: HarbourGauge becomes harbour_gauge."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", exercise.entry_point).lower()


def _functions(name: str, chosen: Sequence[Case], raising: Sequence[Case]) -> Below:
    names = [f"test_{name}"]
    lines = [f"def test_{name}():"]
    lines += [f"    {double_quoted(line)}" for case in chosen for line in assertions(case)]
    lines += ["", ""]
    imports: tuple[tuple[str, str, str], ...] = ()
    if raising:
        imports = (("pytest", "", ""),)
        names.append(f"test_{name}_raises")
        lines += [f"def test_{name}_raises():"]
        for case in raising[:2]:
            lines += [f"    {double_quoted(line)}" for line in case.before]
            lines += [f"    with pytest.raises({case.raises}):"]
            lines += [f"        {double_quoted(case.code)}"]
        lines += ["", ""]
    return Below(tuple(lines[:-2]), imports, "\n".join(f"{test}()" for test in names))


def _parametrized(exercise: Exercise, chosen: Sequence[Case]) -> Below | None:
    """Rows of arguments and values, for cases that call the function directly by name."""
    rows = []
    for case in chosen:
        call = ast.parse(case.code, mode="eval").body
        plain = (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Name)
            and call.func.id == exercise.entry_point
            and not (call.keywords or case.before)
            and not any(isinstance(argument, ast.Starred) for argument in call.args)
        )
        assert case.expected is not None
        if not plain or _has_float(ast.literal_eval(case.expected)):
            continue
        assert isinstance(call, ast.Call)
        rows.append(([double_quoted(ast.unparse(a)) for a in call.args], expected_text(case)))
    names = _argument_names(exercise)
    rows = [row for row in rows if len(row[0]) == len(rows[0][0])]
    if len(rows) < 2 or not 1 <= len(rows[0][0]) <= len(names):
        return None
    names, name = names[: len(rows[0][0])], _test_name(exercise)
    lines = ["@pytest.mark.parametrize(", f'    "{", ".join([*names, "expected"])}",', "    ["]
    lines += [f"        ({', '.join([*values, value])})," for values, value in rows]
    lines += ["    ],", ")", f"def test_{name}({', '.join([*names, 'expected'])}):"]
    lines += [f"    assert {exercise.entry_point}({', '.join(names)}) == expected"]
    proof = f"for row in test_{name}.cases:\n    test_{name}(**row)"
    return Below(tuple(lines), (("pytest", "", ""),), proof)


def _argument_names(exercise: Exercise) -> list[str]:
    node = ast.parse(exercise.signature + " ...").body[0]
    if not isinstance(node, ast.FunctionDef):
        return []
    return [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg != "expected"]


def _unittest(name: str, chosen: Sequence[Case], raising: Sequence[Case]) -> Below:
    title = "".join(part.capitalize() for part in name.split("_"))
    lines = [f"class {title}Test(unittest.TestCase):", "    def test_values(self):"]
    for case in chosen:
        lines += [f"        {double_quoted(line)}" for line in case.before]
        lines.append(f"        {_unittest_line(case)}")
    for case in raising[:1]:
        lines += ["", "    def test_errors(self):"]
        lines += [f"        {double_quoted(line)}" for line in case.before]
        lines += [f"        with self.assertRaises({case.raises}):"]
        lines += [f"            {double_quoted(case.code)}"]
    proof = f"{title}Test('test_values').debug()"
    if raising:
        proof += f"\n{title}Test('test_errors').debug()"
    lines += ["", "", 'if __name__ == "__main__":', "    unittest.main()"]
    return Below(tuple(lines), (("unittest", "", ""),), proof)


def _unittest_line(case: Case) -> str:
    assert case.expected is not None
    value, code = ast.literal_eval(case.expected), double_quoted(case.code)
    if value is True:
        return f"self.assertTrue({code})"
    if value is False:
        return f"self.assertFalse({code})"
    if value is None:
        return f"self.assertIsNone({code})"
    if isinstance(value, float):
        return f"self.assertAlmostEqual({code}, {expected_text(case)})"
    return f"self.assertEqual({code}, {expected_text(case)})"


def _main(chosen: Sequence[Case], *, prints: bool) -> Below:
    shown: list[str] = []
    for case in chosen[:3]:
        shown += [double_quoted(line) for line in case.before]
        value = expected_text(case)
        told = f"  # {value}" if len(value) < 40 and not value.startswith('"') else ""
        shown.append(f"print({double_quoted(case.code)}){told}")
    if prints:
        return Below(tuple(['if __name__ == "__main__":', *(f"    {line}" for line in shown)]))
    head = ["def main() -> None:", *(f"    {line}" for line in shown), "", ""]
    return Below(tuple([*head, 'if __name__ == "__main__":', "    main()"]), (), "main()")
