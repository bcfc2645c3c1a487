"""Completing code: what is generated for a gap, and what of it is inserted."""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from sounding.completion.context import File
from sounding.completion.copying import Candidate, Copies
from sounding.completion.endings import (
    Gap,
    Kind,
    ending_for,
    fits,
    longest_valid,
    may_parse,
    parses,
    trim,
)
from sounding.completion.healing import Healing
from sounding.completion.middle import Middle
from sounding.completion.opening import Opening, opens_block
from sounding.completion.prompt import BYTES_PER_TOKEN, CompletionSettings, Prompts
from sounding.engine.batch import Generate, Request
from sounding.engine.sampling import SamplingParams
from sounding.text.tokenizer import Tokenizer

_NEAR_CHARACTERS = 1 << 16  # on each side of the cursor
_RETRIES = 3  # samples drawn when the likeliest answer cannot be correct
_RETRY = SamplingParams(temperature=0.6, top_p=0.95)


class FilledGap(NamedTuple):
    """Text to insert at the cursor."""

    text: str
    tokens: int
    """Generated, including those that were cut off."""
    valid: bool
    """Whether it makes the whole Python source correct, or at the end of the source, a beginning
    that can be. False where the source is no Python."""


class _Attempt(NamedTuple):
    """A `Candidate` of `complete`, cut to what can be correct, with the tokens it took."""

    text: str
    weight: float
    written: bool
    tokens: int


class Fill(NamedTuple):
    """A completion for an engine that is driven by someone else."""

    prompt: list[int]
    answer: Middle
    """For the engine to feed, in whatever thread it has."""
    reader: Middle
    """The same, to be fed with the tokens that come back, and to be read."""
    healed: str
    """The end of the prefix, which the answer writes again before it goes on."""
    gap: Gap
    """What of the text around the cursor was looked at."""
    truncated: bool
    """Whether the prompt leaves out some of the text around the cursor."""
    blank: bool
    """Whether the prompt shows no text at all, so that there is nothing to complete."""


class Completer:
    """Completes code with a tokenizer and something that generates."""

    def __init__(self, tokenizer: Tokenizer, generate: Generate) -> None:
        """Raises ValueError for a tokenizer without the FIM tokens."""
        self._tokenizer, self._generate = tokenizer, generate
        self._prompts = Prompts(tokenizer)

    def using(self, generate: Generate) -> "Completer":
        """The same over something else that generates; the tables are shared."""
        other = copy.copy(self)
        other._generate = generate
        return other

    def fill(
        self,
        gaps: Sequence[Gap],
        kind: Kind | None,
        settings: CompletionSettings,
        params: Sequence[SamplingParams],
        *,
        python: bool = False,
    ) -> Iterator[tuple[int, str]]:
        """Complete many gaps, one way each; yields their number and text as they are done.

        `kind` None goes on to the end of the text. In `python`, a few more answers are tried where
        the network's leaves the source incorrect, and the likeliest that does not is taken. What
        `complete` does except for other files and cutting lines off: this is what is measured.
        """
        wrong: dict[int, list[Candidate]] = {}
        gaps = [_near(gap, settings) for gap in gaps]
        for index, ranked in self._answers(gaps, kind, settings, params, python=python):
            likely, rest = _up_to_own(ranked)
            right = (c.text for c in likely if not python or _valid(c.text, gaps[index]))
            text = next(right, None)
            if text is None:
                wrong[index] = [likely[-1], *rest]
            else:
                yield index, text
        if not wrong:
            return
        alone = dataclasses.replace(settings, copying=False)
        more = [(index, other) for index in wrong for other in _sampled(params[index], _RETRIES)]
        again = [gaps[index] for index, _ in more]
        how = [other for _, other in more]
        for number, ranked in self._answers(again, kind, alone, how, python=True):
            wrong[more[number][0]] += ranked
        for index, (own, *others) in wrong.items():
            others.sort(key=lambda candidate: -candidate.weight)
            right = (c.text for c in others if _valid(c.text, gaps[index]))
            yield index, next(right, own.text)

    def _answers(
        self,
        gaps: Sequence[Gap],
        kind: Kind | None,
        settings: CompletionSettings,
        params: Sequence[SamplingParams],
        *,
        python: bool,
    ) -> Iterator[tuple[int, list[Candidate]]]:
        middles = []
        for gap in gaps:
            ids, healing = self._prompts.make(gap, settings)
            copies = _copies(gap, kind, settings)
            middle = self._middle(healing, kind, gap, settings, copies=copies, python=python)
            middles.append((ids, middle))
        requests = [
            Request(prompt=ids, answer=middle, params=how, max_tokens=settings.max_tokens)
            for (ids, middle), how in zip(middles, params, strict=True)
        ]
        for index, over in self._generate(requests):
            if over:
                middle = middles[index][1]
                yield index, _trimmed(middle, gaps[index], cut_short=middle.cut_short)

    def complete(
        self,
        gap: Gap,
        kind: Kind,
        settings: CompletionSettings,
        params: SamplingParams,
        *,
        alternatives: int = 1,
        files: Sequence[File] = (),
        python: bool = True,
    ) -> list[FilledGap]:
        """Up to `alternatives` different ways to fill one gap, the most promising first.

        The first is made as `params` say; the others are sampled, each with its own seed. Of those
        in `python`, lines after which the source cannot be correct are cut off, and answers that
        keep it correct come first. Where none of those asked for can be correct, a few more are
        tried. In a blank file without other files there is nothing to complete.
        """
        gap = _near(gap, settings)
        context = self._prompts.context(gap, files, settings)
        if _blank(gap, context):
            return []
        ids, healing = self._prompts.make(gap, settings, context)
        how = [params, *_sampled(params, alternatives - 1)]
        copies = _copies(gap, kind, settings)
        first, *others = self._attempts(gap, kind, settings, ids, healing, how, copies, python)
        likely, rest = _up_to_own(first)
        found = [*likely, *(one for attempt in others for one in attempt)]
        correct = python and may_parse(gap.prefix)
        if correct and not any(fits(one.text, gap) for one in found):
            more = _sampled(params, alternatives - 1 + _RETRIES)[alternatives - 1 :]
            others = self._attempts(gap, kind, settings, ids, healing, more, None, python)
            rest += [one for attempt in others for one in attempt]
            found += sorted(rest, key=lambda one: -one.weight)
        done = [FilledGap(one.text, one.tokens, python and _valid(one.text, gap)) for one in found]
        if python:
            done.sort(key=lambda one: _rank(one, gap))  # stable: otherwise in order of seeds
        return _distinct(done)[:alternatives]

    def write(
        self, text: str, settings: CompletionSettings, params: SamplingParams, *, until: Kind | None
    ) -> Iterator[str]:
        """Continue a text, yielding pieces as they become certain; `until` None is its end.

        White space is held back until something follows it in the same block.
        """
        gap = _near(Gap(text), settings)
        ids, healing = self._prompts.make(gap, settings)
        middle = self._middle(healing, until, gap, settings)
        limit = settings.max_tokens
        shown = 0
        for _, over in self._generate(
            [Request(prompt=ids, answer=middle, params=params, max_tokens=limit)]
        ):
            certain = middle.finish()[0].text if over else middle.certain
            if until and over:
                certain = trim(certain, gap)
            yield certain[shown:]
            shown = max(shown, len(certain))

    def begin(
        self,
        gap: Gap,
        kind: Kind | None,
        settings: CompletionSettings,
        *,
        files: Sequence[File] = (),
        stop: Sequence[str] = (),
    ) -> Fill:
        """A gap's prompt and what is to be fed; `kind` None goes on to the end of the text.

        `stop` are strings before which the text ends.
        """
        num_bytes = len(gap.prefix.encode())
        if gap.suffix.strip():
            num_bytes += len(gap.suffix.encode())
        gap = _near(gap, settings)
        context = self._prompts.context(gap, files, settings)
        ids, healing = self._prompts.make(gap, settings, context)
        rest = healing.rest if healing is not None else b""
        copies = _copies(gap, kind, settings)
        answer, reader = (
            self._middle(
                healing and self._again(healing), kind, gap, settings, copies=copies, stop=stop
            )
            for _ in range(2)
        )
        whole = len(context.encode()) + num_bytes - len(rest)
        shown = self._prompts.count_text_bytes(ids)
        blank = _blank(gap, context)
        return Fill(ids, answer, reader, rest.decode(), gap, shown < whole, blank)

    def count(self, gap: Gap, most_tokens: int | None = None) -> int:
        """Tokens of a prompt with all the text around the cursor.

        Raises TooManyTokens as soon as there are certainly more than `most_tokens`.
        """
        return self._prompts.count(gap, most_tokens)

    def _again(self, healing: Healing) -> Healing:
        """A healing remembers how far it is: each attempt has its own."""
        return Healing(self._prompts.healer, healing.ids, healing.rest)

    def _middle(
        self,
        healing: Healing | None,
        kind: Kind | None,
        gap: Gap,
        settings: CompletionSettings,
        *,
        copies: Copies | None = None,
        python: bool = False,
        stop: Sequence[str] = (),
    ) -> Middle:
        ending = ending_for(kind, gap) if kind is not None else None
        opening = Opening(self._prompts.healer) if python and opens_block(gap) else None
        return Middle(
            *(self._tokenizer, healing, ending, settings.max_tokens),
            copies=copies,
            opening=opening,
            stop=stop,
        )

    def _attempts(
        self,
        gap: Gap,
        kind: Kind,
        settings: CompletionSettings,
        ids: list[int],
        healing: Healing | None,
        how: Iterable[SamplingParams],
        copies: Copies | None,
        python: bool,
    ) -> list[list[_Attempt]]:
        """What each way of sampling brings, the likeliest first. Copies compete with the first
        only; with the others they would be the same again."""
        middles: list[Middle] = []
        requests = []
        for params in how:
            begun = healing and self._again(healing)
            own = None if middles else copies
            middle = self._middle(begun, kind, gap, settings, copies=own, python=python)
            middles.append(middle)
            requests.append(
                Request(prompt=ids, answer=middle, params=params, max_tokens=settings.max_tokens)
            )
        ended = {index for index, over in self._generate(requests) if over}
        found = []
        for index, middle in enumerate(middles):
            # What generates may stop early, where somebody waits for whatever there is.
            ranked = _trimmed(middle, gap, cut_short=middle.cut_short or index not in ended)
            found.append(
                [
                    # Copies are single lines, of which nothing is cut off.
                    _Attempt(
                        longest_valid(one.text, gap) if python and one.written else one.text,
                        *(one.weight, one.written, middle.count),
                    )
                    for one in ranked
                ]
            )
        return found


def _near(gap: Gap, settings: CompletionSettings) -> Gap:
    """What of a text is looked at: more than the prompt can show, and no more than is quick."""
    return gap.near(max(_NEAR_CHARACTERS, settings.prompt_tokens * BYTES_PER_TOKEN))


def _trimmed(middle: Middle, gap: Gap, *, cut_short: bool) -> list[Candidate]:
    """What a finished middle offers, as it would be inserted; what is blank then comes last."""
    found = middle.finish()
    found = [one._replace(text=trim(one.text, gap, cut_short=cut_short)) for one in found]
    return sorted(found, key=lambda one: not one.text.strip())


_One = TypeVar("_One", Candidate, _Attempt)


def _up_to_own(ranked: Sequence[_One]) -> tuple[list[_One], list[_One]]:
    """What is at least as likely as the network's own line, which comes last; and the rest."""
    own = next(number for number, one in enumerate(ranked) if one.written)
    return list(ranked[: own + 1]), list(ranked[own + 1 :])


def _blank(gap: Gap, context: str) -> bool:
    return not (context + gap.prefix + gap.suffix).strip()


def _copies(gap: Gap, kind: Kind | None, settings: CompletionSettings) -> Copies | None:
    """What competes with the network: where a whole line is wanted, from the cursor to its end."""
    competing = settings.copying and kind == "line" and not gap.rest.strip()
    return Copies(gap.prefix, gap.suffix) if competing else None


def _sampled(params: SamplingParams, count: int) -> list[SamplingParams]:
    """`count` ways to sample like `params`, warm enough to differ, each with its own seed."""
    how = params if params.temperature else _RETRY
    return [
        dataclasses.replace(how, seed=(params.seed + 1 + number) % 2**63) for number in range(count)
    ]


def _valid(text: str, gap: Gap) -> bool:
    return parses(gap.prefix + text + gap.suffix) if gap.suffix.strip() else fits(text, gap)


def _rank(done: FilledGap, gap: Gap) -> tuple[bool, bool, bool]:
    return not done.text.strip(), not done.valid, not fits(done.text, gap)


def _distinct(found: Iterable[FilledGap]) -> list[FilledGap]:
    seen: dict[str, FilledGap] = {}
    for done in found:
        seen.setdefault(done.text.strip(), done)
    return list(seen.values())
