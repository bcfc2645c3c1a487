"""Which candidate is taken, and how sure the choice is."""

import dataclasses

import pytest

from sounding.completion.completer import Completer, FilledGap
from sounding.completion.gap import Gap
from sounding.completion.prompt import CompletionSettings, Prompts
from sounding.completion.python_source import Judged
from sounding.completion.ranking import Candidate, confidence, features, ranked
from sounding.engine.batch import Request
from sounding.engine.sampling import SamplingParams
from sounding.text.fim_format import FimFormat
from tests.engine.scripted import Author, prefix_shown, small_tokenizer

TOKENIZER = small_tokenizer()
FIM = FimFormat()
GAP = Gap("def area(radius):\n    ", "\n    return result\n")


def test_the_order_of_candidates() -> None:
    best = [
        Candidate("b", score=-9.0, logprob=-1.0),
        Candidate("unread", score=-8.0, judged=Judged("", unread=2)),
        Candidate("misses", score=-1.0, judged=Judged("", missing=1)),
        Candidate("fault", score=0.0, judged=Judged("name")),
        Candidate("", score=0.0),
    ]
    assert ranked(best[::-1]) == best


def test_confidence_is_a_probability_and_grows_with_the_evidence() -> None:
    sure = Candidate("x = 1", written=9, likeliest=True, logprob=-0.1, score=-2.0, num_tokens=4)
    unsure = dataclasses.replace(sure, written=1, likeliest=False, logprob=-9.0, score=-30.0)
    rival = Candidate("y = 1", written=1, score=-12.0)
    values = [confidence(one, features(one, [rival])) for one in (sure, unsure)]
    assert 1 > values[0] > values[1] > 0
    wrong = dataclasses.replace(sure, judged=Judged("syntax"))
    assert confidence(wrong, features(wrong, [])) == 0
    assert confidence(Candidate(" "), features(Candidate(" "), [])) == 0


class Scorer(Author):
    """Writes its scripts in turn; of prompts to score it finds likely those that hold a text."""

    def __init__(self, prefix: str, likely: str, *scripts: str) -> None:
        super().__init__(prefix, *scripts)
        self.likely = likely
        self.scored: list[Request] = []

    def __call__(self, requests):  # type: ignore[no-untyped-def]
        for index, request in enumerate(requests):
            if request.scored_from is None:
                self.prefix = prefix_shown(request.prompt)  # without healing all of it is
                yield from ((index, over) for _, over in super().__call__([request]))
                continue
            self.scored.append(request)
            value = -0.1 if self.likely in TOKENIZER.decode(request.prompt) else -5.0
            for token in request.prompt[request.scored_from :]:
                request.answer.push(token, value)
            yield index, True


def fill(author: Author, gap: Gap = GAP, candidates: int = 3) -> FilledGap:
    settings = CompletionSettings(candidates=candidates, copying=False, heal=False)
    completer = Completer(TOKENIZER, FIM, author)
    plan = completer.plan(gap, "line", settings)
    return completer.complete(plan, SamplingParams())[0]


def test_the_line_that_fits_what_follows_is_taken() -> None:
    author = Scorer(GAP.prefix, "radius * 2", "result = 1", "result = radius * 2", "result = 3")
    assert fill(author).text == "result = radius * 2"
    assert len(author.scored) > 1
    for request in author.scored:
        text = TOKENIZER.decode(request.prompt)
        assert text.endswith("\n    return result\n") and "result = " in text
        assert request.max_tokens == 0


def test_a_name_that_is_missing_begins_lines_of_their_own() -> None:
    author = Scorer(GAP.prefix, "radius + 2", "pass", "radius + 2", "pass")
    assert fill(author).text == "result = radius + 2"


def test_what_cannot_be_right_is_not_scored() -> None:
    author = Scorer(GAP.prefix, "", "total", "total", *["result = radius"] * 3)
    assert fill(author).text == "result = radius"
    assert not author.scored  # one is left, whatever its probability


def test_the_indentation_is_a_part_of_the_answer() -> None:
    prefix = "def area(radius):\n    if radius:\n        radius += 1\n"
    gap = Gap(prefix, "\n    return radius\n")
    author = Scorer(prefix, "\n    radius *= 2\n", "    radius *= 2", "radius *= 2")
    assert fill(author, gap).text == "    radius *= 2"
    author = Scorer(prefix, "\n        radius *= 2\n", "    radius *= 2", "radius *= 2")
    assert fill(author, gap).text == "        radius *= 2"
    whole = Gap(prefix, "    return radius\n")  # before a line that stands there
    author = Scorer(prefix, "\n    radius *= 2\n", "    radius *= 2", "radius *= 2")
    assert fill(author, whole).text == "    radius *= 2\n"


def test_a_copy_competes_with_what_the_network_writes() -> None:
    prefix = "def f(path):\n    with open(path) as file:\n        text = file.read()\n\n\n"
    prefix += "def g(path):\n    with open(path) as file:\n        "
    author = Scorer(prefix, "text = file.read()\n    return", "text = path")
    completer = Completer(TOKENIZER, FIM, author)
    gap = Gap(prefix, "\n    return text\n")
    for copying, text in ((True, "text = file.read()"), (False, "text = path")):
        settings = CompletionSettings(candidates=1, copying=copying, heal=False)
        found = completer.complete(completer.plan(gap, "line", settings), SamplingParams())
        assert found[0].text == text


def test_at_a_temperature_the_sample_is_the_answer() -> None:
    author = Scorer(GAP.prefix, "", "result = 1", "result = 2")
    completer = Completer(TOKENIZER, FIM, author)
    plan = completer.plan(GAP, "line", CompletionSettings(heal=False))
    found = completer.complete(plan, SamplingParams(temperature=0.5))
    assert [one.text for one in found] == ["result = 1"] and len(author.requests) == 1


@pytest.mark.parametrize("suffix", ["\n    return result\n", ""])
def test_scored_prompts_begin_alike_and_end_with_what_follows(suffix: str) -> None:
    gap = Gap("def area(radius):\n    ", suffix)
    prompts = Prompts(TOKENIZER, FIM)
    scored = prompts.scored(gap, ["result = 1", "x = 2"], CompletionSettings())
    (one, first), (other, second) = scored
    assert first == second and one[:first] == other[:first]
    for ids, text in ((one, "result = 1"), (other, "x = 2")):
        assert TOKENIZER.decode(ids[1:]) == gap.prefix + text + (suffix or "\n")


def test_where_time_is_up_the_likeliest_line_is_taken() -> None:
    """A line without its end is none."""
    author = Scorer(GAP.prefix, "= radius", "result = 1", "result = 3", "result = radius")

    def hurried(requests):  # type: ignore[no-untyped-def]
        if requests[0].scored_from is not None:  # scores the last alone
            yield from ((len(requests) - 1, over) for _, over in author(requests[-1:]))
            return
        yield from ((0, over) for _, over in author(requests[:1]))
        list(author(requests[1:3]))  # written, but not to their end

    settings = CompletionSettings(candidates=3, copying=False, heal=False)
    completer = Completer(TOKENIZER, FIM, hurried)
    found = completer.complete(completer.plan(GAP, "line", settings), SamplingParams())
    assert [one.text for one in found] == ["result = 1"]
