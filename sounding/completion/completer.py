"""Code completion: generate text for a gap and trim it to the insertion."""

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
from sounding.text.fim_format import FimFormat
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
    """True if the whole Python source parses with it, or at the end of the source, a beginning
    that can be. False where the source is no Python."""


class _Attempt(NamedTuple):
    """A `Candidate` of `complete`, cut to what can be correct, with the tokens it took."""

    text: str
    weight: float
    written: bool
    tokens: int


class Fill(NamedTuple):
    """A completion whose engine the caller drives."""

    prompt: list[int]
    answer: Middle
    """The answer that the engine feeds, from any thread."""
    reader: Middle
    """The decoder of the generated tokens, fed and read by the caller."""
    healed: str
    """The healed end of the prefix, which the answer repeats before new text."""
    gap: Gap
    """The part of the text around the cursor that was used."""
    truncated: bool
    """True if the prompt omits some of the text around the cursor."""
    blank: bool
    """True if the prompt has no text, so that there is nothing to complete."""


class Completer:
    """Completes code with a tokenizer and something that generates."""

    def __init__(self, tokenizer: Tokenizer, fim_format: FimFormat, generate: Generate) -> None:
        """`fim_format` is the order that the model has learned.

        Raises ValueError for a tokenizer without the FIM tokens.
        """
        self._tokenizer, self._generate = tokenizer, generate
        self._prompts = Prompts(tokenizer, fim_format)

    def using(self, generate: Generate) -> "Completer":
        """Return a completer with another generator; tables are shared."""
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
        """Complete many gaps, one answer each; yields (number, text) as each ends.

        `kind` None completes to the end of the text. In `python`, if the network's answer leaves
        the source incorrect, a few more are tried and the likeliest correct one is taken. Equal to
        `complete` except for other files and cutting lines off; evaluation measures this.
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
        retries = [other for _, other in more]
        for number, ranked in self._answers(again, kind, alone, retries, python=True):
            wrong[more[number][0]] += ranked
        for index, (first, *others) in wrong.items():
            others.sort(key=lambda candidate: -candidate.weight)
            right = (c.text for c in others if _valid(c.text, gaps[index]))
            yield index, next(right, first.text)

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
            Request(prompt=ids, answer=middle, params=sampling, max_tokens=settings.max_tokens)
            for (ids, middle), sampling in zip(middles, params, strict=True)
        ]
        for index, finished in self._generate(requests):
            if finished:
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
        """Return up to `alternatives` different completions of one gap, the best first.

        The first is sampled with `params`; the others are sampled, each with its own seed. Of those
        in `python`, lines after which the source cannot be correct are cut off, and answers that
        keep it correct come first. If none of them can be correct, a few more are
        tried. In a blank file without other files there is nothing to complete.
        """
        gap = _near(gap, settings)
        context = self._prompts.context(gap, files, settings)
        if _blank(gap, context):
            return []
        ids, healing = self._prompts.make(gap, settings, context)
        samplings = [params, *_sampled(params, alternatives - 1)]
        copies = _copies(gap, kind, settings)
        first, *others = self._attempts(
            gap, kind, settings, ids, healing, samplings, copies, python
        )
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
        """Continue a text, yielding pieces as they become final; `until` None is its end.

        White space is held back until something follows it in the same block.
        """
        gap = _near(Gap(text), settings)
        ids, healing = self._prompts.make(gap, settings)
        middle = self._middle(healing, until, gap, settings)
        limit = settings.max_tokens
        shown = 0
        for _, finished in self._generate(
            [Request(prompt=ids, answer=middle, params=params, max_tokens=limit)]
        ):
            certain = middle.finish()[0].text if finished else middle.certain
            if until and finished:
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
        """Build a gap's prompt and decoder; `kind` None completes to the end of the text.

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
        samplings: Iterable[SamplingParams],
        copies: Copies | None,
        python: bool,
    ) -> list[list[_Attempt]]:
        """Return the result of each sampling, the likeliest first. Copies compete with the first
        only; beside the others they would repeat."""
        middles: list[Middle] = []
        requests = []
        for params in samplings:
            healed = healing and self._again(healing)
            competing = None if middles else copies
            middle = self._middle(healed, kind, gap, settings, copies=competing, python=python)
            middles.append(middle)
            requests.append(
                Request(prompt=ids, answer=middle, params=params, max_tokens=settings.max_tokens)
            )
        ended = {index for index, finished in self._generate(requests) if finished}
        found = []
        for index, middle in enumerate(middles):
            # The generator may stop early, such as at a deadline while the user is typing.
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
    """Cut a gap to more text than the prompt can show, bounded for speed."""
    return gap.near(max(_NEAR_CHARACTERS, settings.prompt_tokens * BYTES_PER_TOKEN))


def _trimmed(middle: Middle, gap: Gap, *, cut_short: bool) -> list[Candidate]:
    """Rank finished middles as inserted, blank ones last."""
    found = middle.finish()
    found = [one._replace(text=trim(one.text, gap, cut_short=cut_short)) for one in found]
    return sorted(found, key=lambda one: not one.text.strip())


_One = TypeVar("_One", Candidate, _Attempt)


def _up_to_own(ranked: Sequence[_One]) -> tuple[list[_One], list[_One]]:
    """Split candidates into those at least as likely as the network's line (last), and the rest."""
    network = next(number for number, one in enumerate(ranked) if one.written)
    return list(ranked[: network + 1]), list(ranked[network + 1 :])


def _blank(gap: Gap, context: str) -> bool:
    return not (context + gap.prefix + gap.suffix).strip()


def _copies(gap: Gap, kind: Kind | None, settings: CompletionSettings) -> Copies | None:
    """Return the copies that compete with the network, if a whole line is to be completed."""
    competing = settings.copying and kind == "line" and not gap.rest.strip()
    return Copies(gap.prefix, gap.suffix) if competing else None


def _sampled(params: SamplingParams, count: int) -> list[SamplingParams]:
    """`count` ways to sample like `params`, warm enough to differ, each with its own seed."""
    base = params if params.temperature else _RETRY
    return [
        dataclasses.replace(base, seed=(params.seed + 1 + number) % 2**63)
        for number in range(count)
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
