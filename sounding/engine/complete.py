"""Completing code: from a cursor to a prompt, and from what is generated to what is inserted.

The prompt is the one training shows: BOS, then prefix and suffix around the FIM tokens, each
encoded by itself; without a suffix simply the text. For models that learned it so, the prefix
stands behind the suffix, as the beginning of a middle without a prefix (SPM of Bavarian et al.,
2022): what is written then follows what it continues, and a keystroke only adds to the prompt.
Names of special tokens in a user's file are ordinary characters there. Other files go before the
prefix as plain text, because the loader trains on single documents and never shows the tokens that
separate the files of a repository.
"""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from sounding.engine.batch import Generate, Request
from sounding.engine.context import File, relevant_context, settled
from sounding.engine.copying import Candidate, Copies
from sounding.engine.endings import (
    Gap,
    Kind,
    ending_for,
    fits,
    longest_valid,
    may_parse,
    parses,
    trim,
)
from sounding.engine.middle import Middle
from sounding.engine.opening import Opening, opens_block
from sounding.engine.sampling import SamplingParams
from sounding.text.healing import Healer, Healing
from sounding.text.markup import FIM_BEGIN, FIM_END, FIM_HOLE
from sounding.text.tokenizer import Tokenizer

_SPECIAL_TOKENS = 4  # BOS and the three of FIM
_BYTES_PER_TOKEN = 16  # more than a window can need; spares encoding a long file as a whole
_STEPS = 8  # in which the beginning of a long prefix moves on
_RETRIES = 3  # samples drawn when the likeliest answer cannot be correct
_RETRY = SamplingParams(temperature=0.6, top_p=0.95)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How completions are made. Raises ValueError for budgets that leave no room."""

    max_tokens: int = 128
    """Of the answer."""
    context_tokens: int = 1024
    """Of prompt and answer together: about what the model saw in training."""
    suffix_share: float = 0.25
    """Of the prompt, where both sides are long."""
    files_share: float = 0.25
    """Of the prompt, at most, for pieces of other files."""
    heal: bool = True
    """Inside a word, let the model choose its tokens anew."""
    copying: bool = True
    """Let the other lines of the file compete with the network's, where a line is wanted."""
    typing: bool = False
    """Somebody types: choose pieces of other files by the lines above the cursor's own, so that
    prompts begin alike from one keystroke to the next."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens = {self.max_tokens} must be at least 1")
        if self.prompt_tokens < 16:
            raise ValueError(
                f"context_tokens = {self.context_tokens} with max_tokens = {self.max_tokens} "
                "leaves fewer than 16 tokens of text; give more context or ask for fewer"
            )
        for name in ("suffix_share", "files_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be from 0 to below 1")

    @property
    def prompt_tokens(self) -> int:
        """What is left for text in the prompt."""
        return self.context_tokens - self.max_tokens - _SPECIAL_TOKENS


class Completion(NamedTuple):
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
    truncated: bool
    """Whether the prompt leaves out some of the text around the cursor."""


class Completer:
    """Completes code with a tokenizer and something that generates."""

    def __init__(self, tokenizer: Tokenizer, generate: Generate) -> None:
        """Raises ValueError for a tokenizer without the FIM tokens."""
        self._tokenizer, self._generate = tokenizer, generate
        self._bos = tokenizer.bos_id
        names = (FIM_BEGIN, FIM_HOLE, FIM_END)
        self._begin, self._hole, self._end = map(tokenizer.id_of, names)
        self._healer = Healer(tokenizer)

    def using(self, generate: Generate) -> "Completer":
        """The same over something else that generates; the tables are shared."""
        other = copy.copy(self)
        other._generate = generate
        return other

    def fill(
        self,
        gaps: Sequence[Gap],
        kind: Kind | None,
        settings: Settings,
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
        settings: Settings,
        params: Sequence[SamplingParams],
        *,
        python: bool,
    ) -> Iterator[tuple[int, list[Candidate]]]:
        middles = []
        for gap in gaps:
            ids, healing = self._prompt(gap, settings, "")
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
        settings: Settings,
        params: SamplingParams,
        *,
        alternatives: int = 1,
        files: Sequence[File] = (),
        python: bool = True,
    ) -> list[Completion]:
        """Up to `alternatives` different ways to fill one gap, the most promising first.

        The first is made as `params` say; the others are sampled, each with its own seed. Of those
        in `python`, lines after which the source cannot be correct are cut off, and answers that
        keep it correct come first. Where none of those asked for can be correct, a few more are
        tried.
        """
        context = self._context(gap, files, settings)
        ids, healing = self._prompt(gap, settings, context)
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
        done = [Completion(one.text, one.tokens, python and _valid(one.text, gap)) for one in found]
        if python:
            done.sort(key=lambda one: _rank(one, gap))  # stable: otherwise in order of seeds
        return _distinct(done)[:alternatives]

    def write(
        self, text: str, settings: Settings, params: SamplingParams, *, until: Kind | None
    ) -> Iterator[str]:
        """Continue a text, yielding pieces as they become certain; `until` None is its end.

        White space is held back until something follows it in the same block.
        """
        gap = Gap(text)
        ids, healing = self._prompt(gap, settings, "")
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
        self, gap: Gap, kind: Kind | None, settings: Settings, *, files: Sequence[File] = ()
    ) -> Fill:
        """A gap's prompt and what is to be fed; `kind` None goes on to the end of the text."""
        context = self._context(gap, files, settings)
        ids, healing = self._prompt(gap, settings, context)
        rest = healing.rest if healing is not None else b""
        copies = _copies(gap, kind, settings)
        answer, reader = (
            self._middle(healing and self._again(healing), kind, gap, settings, copies=copies)
            for _ in range(2)
        )
        special = (self._bos, self._begin, self._hole, self._end)
        shown = self._tokenizer.count_bytes(token for token in ids if token not in special)
        around = gap.suffix if gap.suffix.strip() else ""
        whole = len((context + gap.prefix + around).encode()) - len(rest)
        return Fill(ids, answer, reader, rest.decode(), shown < whole)

    def count(self, gap: Gap) -> int:
        """Tokens of a prompt with all the text around the cursor."""
        return self._count(gap.prefix) + self._count(gap.suffix) + _SPECIAL_TOKENS

    def _context(self, gap: Gap, files: Sequence[File], settings: Settings) -> str:
        if not files:
            return ""
        budget = int(settings.prompt_tokens * settings.files_share)
        before = settled(gap.prefix) if settings.typing else gap.prefix
        return relevant_context(files, before, gap.suffix, budget_tokens=budget, count=self._count)

    def _again(self, healing: Healing) -> Healing:
        """A healing remembers how far it is: each attempt has its own."""
        return Healing(self._healer, healing.ids, healing.rest)

    def _middle(
        self,
        healing: Healing | None,
        kind: Kind | None,
        gap: Gap,
        settings: Settings,
        *,
        copies: Copies | None = None,
        python: bool = False,
    ) -> Middle:
        ending = ending_for(kind, gap) if kind is not None else None
        opening = Opening(self._healer) if python and opens_block(gap) else None
        return Middle(
            *(self._tokenizer, healing, ending, settings.max_tokens), copies=copies, opening=opening
        )

    def _attempts(
        self,
        gap: Gap,
        kind: Kind,
        settings: Settings,
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

    # ----------------------------------------------------------------------------------------------
    # Prompts

    def _prompt(
        self, gap: Gap, settings: Settings, context: str
    ) -> tuple[list[int], Healing | None]:
        """Token ids, and the healing of the word at the cursor if it is to be healed."""
        infilling = bool(gap.suffix.strip())
        suffix_first = self._tokenizer.suffix_first
        cut = infilling and not suffix_first
        healing = self._heal(gap, inside_words_only=cut) if settings.heal else None
        kept, last = gap.prefix, []
        if healing is not None:
            # Healing looks at the last line; the others are encoded apart.
            kept, last = kept[: _last_line(kept)], healing.ids[-settings.prompt_tokens // 2 :]
        head = self._encode(context) if context else []
        room = max(0, settings.prompt_tokens - len(head) - len(last))
        prefix = self._encode(_end_of(kept, settings.prompt_tokens))
        suffix = self._encode(gap.suffix[: room * _BYTES_PER_TOKEN]) if infilling else []
        step = settings.prompt_tokens // _STEPS
        # What comes first must not change with every token of the prefix.
        taken = -(-len(prefix) // step) * step if suffix_first else len(prefix)
        suffix = self._first_lines(suffix, max(int(room * settings.suffix_share), room - taken))
        text = [*head, *self._last_lines(prefix, room - len(suffix), step), *last]
        if not infilling:
            return [self._bos, *text], healing
        if suffix_first:
            return [self._bos, self._begin, self._hole, *suffix, self._end, *text], healing
        return [self._bos, self._begin, *text, self._hole, *suffix, self._end], healing

    def _heal(self, gap: Gap, *, inside_words_only: bool) -> Healing | None:
        """Heal the last line that is not blank.

        Training cuts a middle out anywhere and encodes it by itself, so that a hole after white
        space or a bracket needs no healing; inside a word it is what makes the rest of the word
        one token again. A plain continuation has seen no cuts at all.
        """
        text = gap.prefix
        if not text or (inside_words_only and not (text[-1].isalnum() or text[-1] == "_")):
            return None
        line = text[_last_line(text) :]
        if any(name in line for name in self._tokenizer.named):
            return None  # it would be read as structure
        healing = self._healer.heal(line)
        try:
            healing.rest.decode()
        except UnicodeDecodeError:  # begins inside of a character
            return None
        return healing

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, named=False)

    def _count(self, text: str) -> int:
        return self._tokenizer.count(text, named=False)

    def _last_lines(self, ids: list[int], budget: int, step: int) -> list[int]:
        """The last tokens, from the begin of a line on where there is one.

        What is left out grows in steps: while somebody types, prompts begin alike, and what was
        read for one serves the next.
        """
        if len(ids) <= budget:
            return ids
        start = len(ids) - budget
        start = min(-(-start // step) * step, len(ids))
        for at in range(start, len(ids)):
            if self._tokenizer.bytes_of(ids[at - 1]).endswith(b"\n"):
                return ids[at:]
        return ids[start:]

    def _first_lines(self, ids: list[int], budget: int) -> list[int]:
        """The first tokens, up to the end of a line where there is one."""
        if len(ids) <= budget:
            return ids
        for at in range(budget, 0, -1):
            if self._tokenizer.bytes_of(ids[at - 1]).endswith(b"\n"):
                return ids[:at]
        return ids[:budget]


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

    """What is at least as likely as the network's own line, which comes last; and the rest."""


def _copies(gap: Gap, kind: Kind | None, settings: Settings) -> Copies | None:
    """What competes with the network: where a whole line is wanted, from the cursor to its end."""
    competing = settings.copying and kind == "line" and not gap.rest.strip()
    return Copies(gap.prefix, gap.suffix) if competing else None


def _last_line(text: str) -> int:
    """Where the last line begins that is not blank."""
    return text.rfind("\n", 0, len(text.rstrip())) + 1


def _end_of(text: str, num_tokens: int) -> str:
    """The end of a long text, from a line on, with at least as many tokens as asked for; it begins
    at the same place for a while when the text grows."""
    room = num_tokens * _BYTES_PER_TOKEN
    step = room // 4
    start = (len(text) - room) // step * step
    return text if start <= 0 else text[text.find("\n", start) + 1 :]


def _sampled(params: SamplingParams, count: int) -> list[SamplingParams]:
    """`count` ways to sample like `params`, warm enough to differ, each with its own seed."""
    how = params if params.temperature else _RETRY
    return [
        dataclasses.replace(how, seed=(params.seed + 1 + number) % 2**63) for number in range(count)
    ]


def _valid(text: str, gap: Gap) -> bool:
    return parses(gap.prefix + text + gap.suffix) if gap.suffix.strip() else fits(text, gap)


def _rank(done: Completion, gap: Gap) -> tuple[bool, bool, bool]:
    return not done.text.strip(), not done.valid, not fits(done.text, gap)


def _distinct(found: Iterable[Completion]) -> list[Completion]:
    seen: dict[str, Completion] = {}
    for done in found:
        seen.setdefault(done.text.strip(), done)
    return list(seen.values())
