"""Render scripts, and modules with their test files."""

import re
from collections.abc import Sequence

from sounding.textbook.drawing import Draw
from sounding.textbook.exercises import Exercise, ScriptCase
from sounding.textbook.programs import definition, import_lines, split_program, words
from sounding.textbook.telling import WIDTH, module_docstring, request, wrapped


def joined(parts: Sequence[str]) -> str:
    """Join parts of a file by two blank lines; by one between imports and constants."""
    whole = ""
    for part in parts:
        part = part.strip("\n")
        if part.strip():
            code = part.startswith(("def ", "class ", "async ", "@", "#"))
            begun = re.search(r"^(def|class|async|@|#)", whole, re.MULTILINE)
            whole += ("\n\n\n" if code or begun else "\n\n") + part
    return whole.lstrip("\n") + "\n"


def script_file(exercise: Exercise, text: str, draw: Draw) -> str:
    """A script with its description at the top, perhaps with an example run."""
    description = request(exercise, draw)
    file = exercise.name + ".py"
    example = _run_lines(exercise.script_cases[0], file) if draw.chance(0.4) else []
    lines = [*wrapped(description, WIDTH), *([""] * bool(example)), *example]
    raw = "r" if any("\\" in line for line in lines) else ""
    if draw.chance(0.5) and not lines[-1].endswith('"') and '"""' not in "\n".join(lines):
        one = len(lines) == 1
        top = [f'{raw}"""{lines[0]}' + ('"""' if one else "")]
        top += [] if one else [*lines[1:], '"""']
    else:
        top = [f"# {line}".rstrip() for line in lines]
    if draw.chance(0.25):
        top.insert(0, "#!/usr/bin/env python3")
    body = "\n".join([*top, *([] if top[-1].startswith("#") and draw.chance(0.5) else [""])])
    return f"{body}\n{text}"


def _run_lines(case: ScriptCase, file: str) -> list[str]:
    """An example run in a shell; empty if it needs files or is long."""
    if case.files or case.exit or not case.stdout or any(" " in a or not a for a in case.args):
        return []
    if len(case.stdin) > 60 or case.stdout.count("\n") > 6 or '"""' in case.stdout:
        return []
    if any(c in case.stdin for c in "'\\%\t"):
        return []
    given = f"printf '{case.stdin}' | ".replace("\n", "\\n") if case.stdin else ""
    command = " ".join(["$", f"{given}python {file}", *case.args])
    return [f"    {line}".rstrip() for line in [command, *case.stdout.rstrip("\n").split("\n")]]


def test_file(exercise: Exercise, draw: Draw) -> str:
    """Tests alone, or below their subject, as a second file or in the same one."""
    subject = split_program(exercise.subject)
    tests = split_program(draw.one(exercise.solutions))
    module = _subject_name(exercise)
    description = request(exercise, draw)
    lines = [f"# {line}" for line in wrapped(description, WIDTH - 2)]
    if draw.chance(0.4) and not description.endswith('"') and "\\" not in description:
        lines = module_docstring(description)
    others = [entry for entry in tests.imports if entry[0] != "subject"]
    whole = any(entry[0] == "subject" and not entry[1] for entry in tests.imports)
    how = draw.weighted([("two files", 0.5), ("tests", 0.25), ("one file", 0.25)])
    apart = not tests.bound & subject.used and not {e[1] or e[0] for e in others} & subject.bound
    renamed = any(entry[2] for entry in tests.imports if entry[0] == "subject")
    if how == "one file" and apart and not whole and not renamed:
        text = f"{subject.body}\n{tests.body}"
        imports = import_lines([*subject.imports, *others], words(text))
        comment = "" if lines[0].startswith('"') else "\n".join(lines) + "\n"
        parts = ["\n".join(imports), subject.body, comment + tests.body]
        return joined(parts)
    names = [(module, *entry[1:]) for entry in tests.imports if entry[0] == "subject"]
    head = [*lines, *([""] * lines[0].startswith('"')), *import_lines(others, words(tests.body))]
    head += ([""] if others else []) + import_lines(names, words(tests.body) | {module})
    body = tests.body.replace("subject.", f"{module}.") if whole else tests.body
    file = joined(["\n".join(head), body])
    if how == "tests":
        return file
    return f"# {module}.py\n{exercise.subject}\n\n# test_{module}.py\n{file}"


def _subject_name(exercise: Exercise) -> str:
    name = exercise.name.removeprefix("test_").removeprefix("tests_of_").removesuffix("_tests")
    return name if definition(exercise.subject, name) is None else f"{name}_module"
