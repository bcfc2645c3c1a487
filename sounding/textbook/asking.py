"""Question templates, several for each kind of task."""

from collections.abc import Sequence

from sounding.textbook.drawing import Draw

WRITE = (
    "Write a Python function.\n\n{told}\n\nIts head is `{head}`",
    "{told}\n\nWrite this as `{head}`",
    "Please write `{head}` in Python. {told}",
    "Implement `{name}`.\n\n{told}\n\nUse this head:\n\n{code}",
    "I need a function `{name}`. {told}\n\n{code}",
    "Complete this:\n\n{code}\n\n{told}",
    "{told}\nThe function begins with `{head}`",
    "How would you write this in Python?\n\n{code}\n\n{told}",
)
WRITE_OTHER = (
    "Write this in Python: `{name}`. {told}",
    "{told}\n\nWrite it in Python; it begins with `{head}`",
    "Implement this:\n\n{code}\n\n{told}",
    "I need this in Python. {told}\n\nIts head is `{head}`",
)
FILL = (
    "Fill in the part marked `{mark}`.\n\n{code}\n\n{told}",
    "{told}\n\nWhat belongs in place of `{mark}`?\n\n{code}",
    "This is not finished. Write the lines for `{mark}` and nothing else.\n\n{told}\n\n{code}",
    "Which code is missing at `{mark}`? {told}\n\n{code}",
    "Complete the gap `{mark}`:\n\n{code}\n\nWhat it should do: {told}",
)
MARKS = ("# TODO", "# ...", "# fill in", "# your code here")
TRACE = (
    "What does this program print?\n\n{code}",
    "{code}\n\nWhat is the output?",
    "Say what this prints:\n\n{code}",
    "Run this in your head and give the output.\n\n{code}",
    "What will be printed?\n\n{code}",
    "Give the exact output of this program:\n\n{code}",
)
REPAIR = (
    "This function has a fault in one line. Repair it.\n\n{code}\n\n{told}",
    "{told}\n\nThis does not do it. Mend it:\n\n{code}",
    "Find the bug and give the repaired code.\n\n{code}\n\nWhat it should do: {told}",
    "There is a mistake in this code:\n\n{code}\n\n{told}",
    "Why is this wrong? Give me a version that works.\n\n{told}\n\n{code}",
)
SYMPTOM = (
    "",
    "",
    "`{call}` gives {value}.",
    "It fails for `{call}`.",
    "`{call}` should be {right}.",
)
TOOLS = (
    "The tests in {tests} fail. Repair {file}.",
    "Something is wrong in {file}: its tests fail. Please find the line and mend it.",
    "Make the tests pass. The fault is in {file}; leave {tests} as it is.",
    "There is a bug in {file}. Fix it and run the tests in {tests}.",
    "Please debug {file}. {tests} must pass in the end.",
)
TEST = (
    "Write tests for this function.\n\n{code}",
    "{code}\n\nWrite a test function with assertions that a faulty version would fail.",
    "Test this: plain asserts in one function.\n\n{code}\n\n{told}",
    "Which assertions would find mistakes in a version of this function?\n\n{code}",
    "Give me a short test of `{name}`.\n\n{code}\n\n{told}",
)
EXPLAIN = (
    "What does line {number} do?\n\n{code}",
    "Explain the line `{line}` in this function.\n\n{code}",
    "{code}\n\nWhat is `{line}` for?",
    "What happens in `{line}` here?\n\n{code}",
)
MENDED = (
    "The fault was in `{wrong}`. It is now `{right}`, and the tests pass.",
    "Mended: `{wrong}` is now `{right}`. All tests pass.",
    "`{wrong}` was wrong; with `{right}` the tests pass.",
)


def asked(templates: Sequence[str], draw: Draw, **parts: str) -> str:
    """Fill in a randomly chosen template, without blank lines at either end."""
    text = draw.one(templates)
    # Parts are code and may contain braces, so they are inserted one by one, never formatted.
    pieces, rest = [], text
    while True:
        before, found, rest = rest.partition("{")
        pieces.append(before)
        if not found:
            break
        name, _, rest = rest.partition("}")
        pieces.append(parts[name])
    lines = "".join(pieces).split("\n")
    return "\n".join(lines).strip()
