"""From a cursor to a prompt, and from tokens to what is inserted."""

import dataclasses

import pytest

from sounding.completion.completer import Completer, FilledGap
from sounding.completion.context import relevant_context
from sounding.completion.gap import Gap
from sounding.completion.healing import Healing
from sounding.completion.prompt import CompletionSettings, Prompts
from sounding.engine.batch import Request
from sounding.engine.sampling import SamplingParams
from sounding.text.fim_format import FimFormat
from sounding.text.markup import BOS, FIM_BEGIN, FIM_END, FIM_HOLE
from tests.engine.scripted import Author, prefix_shown, small_tokenizer

GREEDY = SamplingParams()
SETTINGS = CompletionSettings(candidates=0, copying=False)
TOKENIZER = small_tokenizer()
FIM = FimFormat()


def settings_of(**changes: object) -> CompletionSettings:
    """The network's likeliest line alone."""
    return dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]


def complete(author: Author, gap: Gap, **how: object) -> list[FilledGap]:
    kind = how.pop("kind", gap.natural_kind())
    settings = how.pop("settings", SETTINGS)
    alternatives = how.pop("alternatives", 1)
    completer = Completer(TOKENIZER, FIM, author)
    plan = completer.plan(gap, kind, settings, **how)  # type: ignore[arg-type]
    return completer.complete(plan, GREEDY, alternatives=alternatives)  # type: ignore[arg-type]


def text_of(request: Request) -> str:
    return TOKENIZER.decode(request.prompt)


def test_the_prompt_is_the_one_training_shows() -> None:
    author = Author("def add(a, b):\n    ", "return a + b")
    complete(author, Gap(author.prefix, "\n\nprint(add(1, 2))\n"))
    ids = list(author.requests[0].prompt)
    begin, hole, end = map(TOKENIZER.id_of, (FIM_BEGIN, FIM_HOLE, FIM_END))
    prefix = TOKENIZER.encode(author.prefix, named=False)
    suffix = TOKENIZER.encode("\n\nprint(add(1, 2))\n", named=False)
    assert ids == [TOKENIZER.bos_id, begin, *prefix, hole, *suffix, end]


def test_for_models_that_learned_it_so_the_suffix_comes_first() -> None:
    tokenizer, suffix_first = TOKENIZER, FimFormat(suffix_first=True)
    begin, hole, end = map(tokenizer.id_of, (FIM_BEGIN, FIM_HOLE, FIM_END))
    above, suffix = "def add(a, b):\n", "\n\nprint(add(1, 2))\n"
    completer = Completer(tokenizer, suffix_first, Author("", ""))
    prompts = [
        completer.plan(Gap(above + typed, suffix), "line", SETTINGS)
        for typed in ("    x", "    return a", "    return a + b + c(")
    ]
    head = [tokenizer.bos_id, begin, hole, *tokenizer.encode(suffix, named=False), end]
    for fill in prompts:  # only what follows the suffix changes
        assert fill.prompt[: len(head)] == head
        assert not fill.truncated
        shown = tokenizer.decode(fill.prompt[len(head) :]) + fill.healed
        assert shown.startswith(above + "    ")
    author = Author(above + "    retu", "rn a + b")
    completer = Completer(tokenizer, suffix_first, author)
    [done] = completer.complete(
        completer.plan(Gap(author.prefix, suffix), "line", SETTINGS), GREEDY
    )
    assert done.text == "rn a + b"


def test_without_a_suffix_the_text_is_continued() -> None:
    author = Author("def add(a, b):\n", "    return a + b\n\n\nx")
    [done] = complete(author, Gap(author.prefix, "\n \n"))
    assert text_of(author.requests[0]).startswith(BOS + "def add(a, b")
    assert FIM_BEGIN not in text_of(author.requests[0])
    assert done.text == "    return a + b"
    assert not text_of(author.requests[0]).endswith("\n")  # healed: ":\n" may be one token


def test_inside_a_word_the_tokens_of_the_word_are_chosen_anew() -> None:
    author = Author("x = 1\nretu", "rn x")
    [done] = complete(author, Gap(author.prefix, "\n"), kind="line", settings=SETTINGS)
    assert prefix_shown(author.requests[0].prompt) in "x = 1\nret"
    assert done.text == "rn x"
    gap = Gap("def f(x):\n    retu", "\n\nf(1)\n")
    author = Author(gap.prefix, "rn x")
    [done] = complete(author, gap, kind="line")
    assert done.text == "rn x"
    assert prefix_shown(author.requests[0].prompt) != gap.prefix
    whole = Author(gap.prefix, "rn x")
    complete(whole, gap, kind="line", settings=settings_of(heal=False))
    assert prefix_shown(whole.requests[0].prompt) == gap.prefix


@pytest.mark.parametrize("prefix", ["naïve = 'é", "x = '漢", "# \U0001f600", "a<think>b", "é"])
def test_healing_keeps_every_letter(prefix: str) -> None:
    for suffix in ("", "\nx = 1\n"):
        [done] = complete(Author(prefix, "é1'"), Gap(prefix, suffix), kind="line", python=False)
        assert done.text == "é1'"


def test_names_of_special_tokens_are_text() -> None:
    gap = Gap(f"a = '{FIM_HOLE}'\nb = ", f"\nc = '{FIM_END}'\n")
    author = Author(gap.prefix, "1")
    complete(author, gap, kind="line")
    ids = author.requests[0].prompt
    assert [ids.count(TOKENIZER.id_of(name)) for name in (FIM_BEGIN, FIM_HOLE, FIM_END)] == [1] * 3


def test_long_sides_are_cut_at_lines() -> None:
    prefix = "".join(f"first_{number} = {number}\n" for number in range(2000))
    suffix = "\n" + "".join(f"last_{number} = {number}\n" for number in range(2000))
    settings = settings_of(context_tokens=300, max_tokens=20)
    author = Author(prefix, "x = 1")
    complete(author, Gap(prefix, suffix), settings=settings, kind="line")
    prompt = author.requests[0].prompt
    assert 250 < len(prompt) <= 280
    shown = prefix_shown(prompt)
    assert shown.startswith("first_")
    assert shown.endswith("first_1999 = 1999\n")
    after = text_of(author.requests[0]).partition(FIM_HOLE)[2].removesuffix(FIM_END)
    assert after.startswith("\nlast_0 = 0\n")
    assert after.endswith("\n")
    # What one side does not use the other may.
    author = Author("y = 1\n", "x = 1")
    complete(author, Gap("y = 1\n", suffix), settings=settings, kind="line")
    assert len(author.requests[0].prompt) > 250


def test_while_somebody_types_prompts_begin_alike() -> None:
    above = "".join(f"value_{number} = compute_{number}()\n" for number in range(150))
    typed = "".join(f"total_{number} = value_{number} + other_name\n" for number in range(6))
    below = "\nprint(total_0)\n"
    files = [
        (f"file_{n}.py", f"def compute_{n}():\n    pass\n\n\ndef compute_{n - 9}():\n    pass\n")
        for n in range(130, 150)
    ]
    settings = settings_of(context_tokens=600, max_tokens=40, typing=True)
    completer = Completer(TOKENIZER, FIM, Author("", ""))
    hole = TOKENIZER.id_of(FIM_HOLE)
    read_again, last = [], [TOKENIZER.bos_id]
    for end in range(len(typed)):
        prompt = completer.plan(
            Gap(above + typed[:end], below), "line", settings, files=files
        ).prompt
        shared = next(
            (at for at, (a, b) in enumerate(zip(prompt, last, strict=False)) if a != b), len(last)
        )
        read_again.append(prompt.index(hole) - shared)
        last = prompt
    assert len(last) > 400 and "# file_1" in TOKENIZER.decode(last)
    # The first one is new, and now and then the beginning moves on.
    assert sum(again > 40 for again in read_again) <= 8 < len(typed) / 20


def test_a_line_longer_than_the_context() -> None:
    prefix = "x = '" + "ab " * 3000
    author = Author(prefix, "'")
    complete(author, Gap(prefix, "\n" + "c" * 9000), settings=settings_of(context_tokens=200))
    assert 32 < len(author.requests[0].prompt) <= 200 - 128


def test_generation_stops_as_soon_as_the_answer_is_complete() -> None:
    author = Author("x = ", "1\n" + "y = 2\n" * 100)
    [done] = complete(author, Gap(author.prefix), kind="line")
    assert (done.text, done.valid) == ("1", True)
    assert done.tokens < 8


def test_an_unfinished_statement_is_left_out_when_the_tokens_run_out() -> None:
    author = Author("def f():\n", "    a = 1\n    b = [" + "'word', " * 100)
    [done] = complete(author, Gap(author.prefix), settings=settings_of(max_tokens=40))
    assert done.text == "    a = 1"


def test_alternatives_are_different_and_the_correct_ones_come_first() -> None:
    gap = Gap("x = ", "\ny = 2\n")
    author = Author(gap.prefix, "= 1", "1", "(", "1", "2")
    found = complete(author, gap, alternatives=5)
    assert [(done.text, done.valid) for done in found] == [
        ("1", True), ("2", True), ("= 1", False), ("(", False),
    ]  # fmt: skip
    params = [request.params for request in author.requests]
    assert [how.seed for how in params] == [0, 1, 2, 3, 4]
    assert params[0].temperature == 0
    assert all(how.temperature > 0 for how in params[1:])
    assert len({tuple(request.prompt) for request in author.requests}) == 1


def test_an_impossible_answer_is_tried_again() -> None:
    gap = Gap("x = ", "\ny = 2\n")
    author = Author(gap.prefix, "= 1", "= 2", "3", "4")
    assert complete(author, gap)[0].text == "3"
    assert len(author.requests) == 4
    elsewhere = Author("x = = 1\ny = ", "= 1")  # nothing could be correct there
    complete(elsewhere, Gap(elsewhere.prefix, "\n"))
    other = Author(gap.prefix, "= 1")
    complete(other, gap, python=False)
    assert len(elsewhere.requests) == len(other.requests) == 1


def test_many_gaps_at_once() -> None:
    gaps = [Gap("x = ", "\n"), Gap("def f():\n    x = ", "\n    return x\n")]

    def model(requests: list[Request]):  # type: ignore[no-untyped-def]
        for index in (1, 0):  # any order
            for _, over in Author(gaps[index].prefix, f"{index}\n")([requests[index]]):
                yield index, over

    completer = Completer(TOKENIZER, FIM, model)  # type: ignore[arg-type]
    plans = [completer.plan(gap, "line", SETTINGS) for gap in gaps]
    filled = completer.run(plans, [GREEDY] * 2)
    assert [(number, found[0].text) for number, found in filled] == [(0, "0"), (1, "1")]


def test_gaps_left_incorrect_are_tried_again() -> None:
    gap = Gap("x = ", "\ny = 2\n")

    def filled(*scripts: str, python: bool = True) -> tuple[list[tuple[int, str]], Author]:
        author = Author(gap.prefix, *scripts)
        completer = Completer(TOKENIZER, FIM, author)
        plan = completer.plan(gap, "line", SETTINGS, python=python)
        found = completer.run([plan], [GREEDY])
        return [(number, one.text) for number, (one, *_) in found], author

    found, author = filled("= 1", "= 2", "3", "4")
    assert found == [(0, "3")] and len(author.requests) == 4
    assert len({request.params.seed for request in author.requests[1:]}) == 3
    found, author = filled("= 1")  # nothing better comes
    assert found == [(0, "= 1")] and len(author.requests) == 4
    for author_says, python in (("= 1", False), ("5", True)):
        found, author = filled(author_says, python=python)
        assert found == [(0, author_says)] and len(author.requests) == 1


def test_writing_shows_text_as_soon_as_it_is_certain() -> None:
    author = Author("if x:", "\n    a = 1\nelse:\n    b = 2\n\n\nc = 3\n")
    pieces = list(Completer(TOKENIZER, FIM, author).write("if x:", SETTINGS, GREEDY, until="block"))
    assert "".join(pieces) == "\n    a = 1"
    author = Author("", "if x:\n    a = 1\nelse:\n    b = 2\n\n\nc = 3\n")
    pieces = list(Completer(TOKENIZER, FIM, author).write("", SETTINGS, GREEDY, until="block"))
    assert "".join(pieces) == "if x:\n    a = 1\nelse:\n    b = 2"
    assert len([piece for piece in pieces if piece]) > 5
    author = Author("a", "b \n\n")
    pieces = list(Completer(TOKENIZER, FIM, author).write("a", SETTINGS, GREEDY, until=None))
    assert "".join(pieces) == "b \n\n"


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="leaves fewer than 16 tokens"):
        CompletionSettings(context_tokens=130)
    with pytest.raises(ValueError, match="max_tokens = 0"):
        CompletionSettings(max_tokens=0)
    with pytest.raises(ValueError, match=r"suffix_share = 1\.0"):
        CompletionSettings(suffix_share=1.0)


def test_other_files_are_chosen_by_the_names_they_share() -> None:
    filler = "\n".join(f"unrelated_{number} = {number}" for number in range(48))
    files = [
        ("far.py", filler),
        ("near.py", filler + "\ndef parse_duration(text):\n    return 1\n"),
    ]

    def context(budget: int) -> str:
        return relevant_context(
            files, "x = parse_duration(", ")\n", budget_tokens=budget, count=len
        )

    assert context(200) == "# near.py\ndef parse_duration(text):\n    return 1\n\n"
    assert context(10) == ""
    author = Author("x = parse_duration(", "text")
    complete(author, Gap(author.prefix, ")\n"), files=files)
    assert prefix_shown(author.requests[0].prompt).startswith("# near.py\ndef parse_duration")


def test_of_many_files_no_more_is_looked_at_than_is_quick() -> None:
    """Once for each piece a text was tokenized that was as long as the longest line."""
    counted: list[int] = []

    def count(text: str) -> int:
        counted.append(len(text))
        return len(text)

    needle = "def parse_duration(text):\n    return 1\n"
    files = [("near.py", needle), ("long.py", "parse_duration " * 500_000)]
    files += [(f"{n}.py", f"parse_duration({n})\n" * 24) for n in range(500)]
    found = relevant_context(files, "parse_duration(", "", budget_tokens=200, count=count)
    assert "def parse_duration" in found
    assert len(counted) <= 64 and max(counted) < 500_000


def test_a_line_of_any_length_is_healed_near_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it was encoded with its offsets, which nothing else could run beside."""
    prompts = Prompts(TOKENIZER, FimFormat())
    long = "x = [" + "alpha, beta, " * 20_000 + "gam"
    settings = settings_of(context_tokens=300, max_tokens=100)
    healed: list[str] = []
    heal = prompts.healer.heal

    def recorded(text: str) -> Healing:
        healed.append(text)
        return heal(text)

    monkeypatch.setattr(prompts.healer, "heal", recorded)
    ids, healing = prompts.make(Gap(long), settings)
    assert healing is not None and healing.rest
    text = TOKENIZER.decode(ids[1:]) + healing.rest.decode()
    assert long.endswith(text) and len(text) > 100
    assert max(map(len, healed)) < 2100
