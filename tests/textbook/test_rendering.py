"""Documents of exercises: deterministic, parsable, in many shapes, and as correct as before."""

import ast
from collections.abc import Sequence
from dataclasses import replace

import pytest

from sounding.textbook.drawing import Draw
from sounding.textbook.exercises import Exercise
from sounding.textbook.programs import import_lines, split_program, words
from sounding.textbook.rendering import Rendered, render
from sounding.textbook.running import failures
from sounding.textbook.whole_files import joined
from tests.textbook.conftest import unsafe

Exercises = dict[str, Exercise]


DOCTEST = "import doctest, sys; assert not doctest.testmod(sys.modules[__name__]).failed"


def of(exercise: Exercise, variants: int) -> list[Rendered]:
    return list(render([exercise], variants, 0))


def broken(documents: Sequence[Rendered]) -> list[str]:
    """What documents that can be run as they are do wrong."""
    found = []
    for document in documents:
        if "\n# test_" in document.text:  # two files in one text
            continue
        for exercise in document.exercises:
            if exercise.shape != "tests":
                imports = split_program(exercise.solutions[0]).imports
                # Tests may use a module that only an annotation needed.
                needed = import_lines(imports, words(" ".join(c.text for c in exercise.cases)))
                needed = [line for line in needed if "__future__" not in line]
                program = "\n".join([document.text, *needed, document.proof, DOCTEST, ""])
                found += [f"{document.path}: {f}" for f in failures(exercise, program, unsafe)]
    return found


def test_the_seed_decides(exercises: Exercises) -> None:
    texts = [
        [(d.path, d.text) for d in render(list(exercises.values()), 3, seed)] for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_every_exercise_comes_as_often_as_asked(exercises: Exercises) -> None:
    documents = list(render(list(exercises.values()), 6, 0))
    for exercise in exercises.values():
        assert sum(exercise in document.exercises for document in documents) == 6
    assert len({document.path for document in documents}) == len(documents)
    assert any(len(document.exercises) > 1 for document in documents)
    for document in documents:
        ast.parse(document.text)
        assert document.text.endswith("\n") and not document.text.startswith("\n")
        assert not any(line != line.rstrip() for line in document.text.splitlines())


def test_documents_still_pass_the_tests(exercises: Exercises) -> None:
    documents = list(render(list(exercises.values()), 12, 5))
    assert broken(Draw("drawn").some(documents, 12)) == []


@pytest.mark.parametrize(
    "part",
    [
        '    """Return how far the tide rose between each level and the one gap steps later.',
        "# Return how far the tide rose between each level and the one gap steps later.\n",
        "    >>> tide_ranges([1, 4, 2], 2)\n    [1]\n",
        "    assert tide_ranges([5]) == []\n",
        "def tide_ranges(levels: list[int], gap: int = 1) -> list[int]:\n",
        "def tide_ranges(levels, gap=1):\n",
        "    @staticmethod\n    def tide_ranges(levels",
        "    def tide_ranges(self, levels",
        "\nassert tide_ranges([1, 4, 2]) == [3, -2]\n",
        "def test_tide_ranges():\n    assert tide_ranges(",
        "    with pytest.raises(ValueError):\n        tide_ranges([1, 2], 0)\n",
        "        with self.assertRaises(ValueError):\n            tide_ranges([1, 2], 0)\n",
        'if __name__ == "__main__":\n    print(tide_ranges(',
        "# tides.py\n",
        "raise ValueError('gap must be at least 1')",
        "from itertools import islice\n",
        "    for idx in range(gap, len(levels)):\n",
    ],
)
def test_shapes_of_a_function(exercises: Exercises, part: str) -> None:
    texts = [document.text for document in of(exercises["tide_ranges"], 300)]
    share = sum(part in text for text in texts) / len(texts)
    assert 0.003 < share < 0.8


def test_parts_of_a_file_are_apart() -> None:
    body, main = "def f():\n    return N", 'if __name__ == "__main__":\n    f()'
    assert joined(["import a", "N = 1", "", body, main]) == (
        f"import a\n\nN = 1\n\n\n{body}\n\n\n{main}\n"
    )


def test_imports_that_nothing_uses_are_left_out(exercises: Exercises) -> None:
    for document in of(exercises["tide_ranges"], 60):
        assert ("import islice" in document.text) == ("islice(levels" in document.text)
        assert ("import pytest" in document.text) == ("pytest." in document.text)


def test_shapes_of_a_script(exercises: Exercises) -> None:
    texts = [document.text for document in of(exercises["sum_columns_script"], 80)]
    assert any(text.startswith("#!/usr/bin/env python3\n") for text in texts)
    assert any(text.startswith('"""Print the sum of each line of numbers."""\n') for text in texts)
    session = "    $ printf '1 2\\n3\\n' | python sum_columns_script.py"
    assert any(session in text for text in texts)


def test_shapes_of_tests(exercises: Exercises) -> None:
    texts = [document.text for document in of(exercises["test_buoy"], 80)]
    alone = [text for text in texts if "def floats" not in text]
    two = [text for text in texts if text.startswith("# buoy.py\ndef floats")]
    one = [text for text in texts if "import floats" not in text]
    assert alone and two and one and len(alone) + len(two) + len(one) == len(texts)
    assert all("from buoy import floats\n" in text for text in [*alone, *two])
    assert all("import pytest\n" in text for text in texts)
    for text in one:
        exec(text.replace("import pytest", "import sounding.textbook.small_pytest as pytest"), {})


def test_exercises_that_cannot_share_a_file_get_files_of_their_own(exercises: Exercises) -> None:
    one = exercises["tide_ranges"]
    other = replace(one, name="other")  # defines the same function
    documents = list(render([one, other], 40, 0))
    assert all(len(document.exercises) == 1 for document in documents)
    assert len(documents) == 80


def test_draws_are_those_of_their_seed() -> None:
    draw = Draw("a")
    first = [draw.below(10) for _ in range(4)], draw.shuffled("abcdef"), draw.some("abcdef", 3)
    assert first == ([2, 0, 5, 6], list("bdefca"), ["a", "b", "d"])
    assert sorted(draw.shuffled(range(20))) == list(range(20))
    assert draw.some("ab", 5) == ["a", "b"]
    assert {Draw(str(n)).weighted([("x", 0.5), ("y", 0.5), ("z", 0.0)]) for n in range(40)} == {
        "x",
        "y",
    }
