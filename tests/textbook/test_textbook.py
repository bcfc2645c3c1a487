"""The textbook of this repository keeps its own rules."""

from pathlib import Path

import pytest

from sounding.textbook.checking import repeated
from sounding.textbook.drawing import Draw
from sounding.textbook.exercises import Exercise
from sounding.textbook.reading import read_textbook
from sounding.textbook.rendering import render
from sounding.textbook.running import all_failures
from tests.textbook.conftest import unsafe
from tests.textbook.test_rendering import broken

TEXTBOOK = Path(__file__).parents[2] / "textbook"
DRAWN = 0.05


@pytest.fixture(scope="module")
def written() -> list[Exercise]:
    return [exercise for topic in read_textbook(TEXTBOOK) for exercise in topic.exercises]


def faults(exercises: list[Exercise]) -> list[str]:
    run = all_failures(exercises, unsafe, workers=2)
    return [f"{exercise.name}: {line}" for exercise, failed in run for line in failed]


def test_no_exercise_repeats_another(written: list[Exercise]) -> None:
    assert list(repeated(written)) == []


def test_drawn_solutions_pass_their_tests(written: list[Exercise]) -> None:
    chosen = Draw("textbook").some(written, max(5, int(len(written) * DRAWN)))
    assert faults(chosen) == []


def test_drawn_documents_pass_the_tests(written: list[Exercise]) -> None:
    documents = list(render(written, 1, 3))
    assert broken(Draw("documents").some(documents, 8)) == []


@pytest.mark.long
def test_all_solutions_pass_their_tests(written: list[Exercise]) -> None:
    assert faults(written) == []


@pytest.mark.long
def test_all_documents_of_two_variants_pass_the_tests(written: list[Exercise]) -> None:
    assert broken(list(render(written, 2, 0))) == []
