"""Mutants of a program differ from it in one line, and by what a person could get wrong."""

import ast

import pytest

from sounding.textbook.mutations import mutants

PROGRAM = '''def best(rows: list[int], limit: int = 3) -> int:
    """Rows from 1 to limit."""
    found = 0
    for index, row in enumerate(rows):
        if row < limit and not index == 2:
            found += max(row, 1) // 2
        elif "a" in str(row):
            break
    return sorted(rows)[found - 1] if found else min(rows[1:limit])
'''


def test_each_mutant_is_python_and_differs_in_the_one_line_it_names() -> None:
    lines = PROGRAM.split("\n")
    found = mutants(PROGRAM)
    assert len({mutant.text for mutant in found}) == len(found) > 20
    for mutant in found:
        changed = mutant.text.split("\n")
        differ = [
            n for n, pair in enumerate(zip(lines, changed, strict=True), 1) if len({*pair}) > 1
        ]
        assert differ == [mutant.line]
        assert lines[mutant.line - 1].strip() == mutant.right
        assert changed[mutant.line - 1].strip() == mutant.wrong
        assert ast.dump(ast.parse(mutant.text)) != ast.dump(ast.parse(PROGRAM))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("comparison", "if row <= limit and not index == 2:"),
        ("condition", "if row < limit or not index == 2:"),
        ("condition", "if row < limit and index == 2:"),
        ("dropped condition", "if row < limit:"),
        ("operator", "found -= max(row, 1) // 2"),
        ("call", "found += min(row, 1) // 2"),
        ("off by one", "found += max(row, 1) // 3"),
        ("comparison", 'elif "a" not in str(row):'),
        ("jump", "continue"),
        ("dropped branch", "return sorted(rows)[found - 1]"),
        ("dropped call", "return rows[found - 1] if found else min(rows[1:limit])"),
        ("variable", "for index, row in enumerate(limit):"),
        ("off by one", "return sorted(rows)[found - 1] if found else min(rows[1:limit + 1])"),
    ],
)
def test_lines_are_made_wrong_in_many_ways(kind: str, wrong: str) -> None:
    assert (kind, wrong) in {(mutant.kind, mutant.wrong) for mutant in mutants(PROGRAM)}


def test_heads_docstrings_texts_and_raised_errors_stay_as_they_are() -> None:
    program = (
        "def f(x: int = 1) -> int:\n"
        '    """Not 1 but 2."""\n'
        "    if not x:\n"
        '        raise ValueError(f"{x + 1} and 1 + 2")\n'
        '    return f"{x + 1}"\n'
    )
    assert {mutant.line for mutant in mutants(program)} == {3}


def test_text_that_is_not_ascii_moves_no_edit() -> None:
    program = 'def f(x):\n    return "é" * 2 + x[1:] if "ü" in x else x < 3\n'
    assert 'return "é" * 2 + x[1:] if "ü" in x else x <= 3' in {m.wrong for m in mutants(program)}
