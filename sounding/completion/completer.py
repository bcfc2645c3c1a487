"""Code completion: plan a gap's prompt, generate candidates, choose the text to insert.

`Completer.plan` prepares a gap and `Completer.run` completes prepared gaps. A server that generates
a plan's likeliest answer itself passes it to `Completer.settle`. `Completer.write` streams.
"""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sounding.completion.candidates import Start, line_starts, more_starts, sampled
from sounding.completion.context import File
from sounding.completion.copying import copies
from sounding.completion.gap import Gap, Kind, indentation
from sounding.completion.healing import Healing
from sounding.completion.middle import Middle
from sounding.completion.opening import Opening, opens_block
from sounding.completion.prompt import BYTES_PER_TOKEN, CompletionSettings, Prompts
from sounding.completion.python_source import PythonSource
from sounding.completion.python_syntax import longest_valid
from sounding.completion.ranking import Candidate, confidence, features, ranked
from sounding.completion.stopping import ending_for
from sounding.completion.trimming import trim
from sounding.engine.batch import Generate, Request
from sounding.engine.sampling import SamplingParams
from sounding.text.fim_format import FimFormat
from sounding.text.tokenizer import Tokenizer

_NEAR_CHARACTERS = 1 << 16  # on each side of the cursor
_RETRIES = 8  # more lines to sample if none so far can be right
_BLOCK_RETRIES = 3  # the same for blocks, which are longer
_GROUP = 16  # gaps completed together
_COPIES = 6  # other lines of the file used as candidates


class FilledGap(NamedTuple):
    """Text to insert at the cursor."""

    text: str
    tokens: int
    """Generated tokens, including those cut off."""
    valid: bool
    """True if the whole Python source parses with it; at the end of the source, if the source can
    begin like this. False if the source is not Python."""
    confidence: float = 0.0
    """Estimated probability that this is exactly right; see `ranking.confidence`."""
    evidence: tuple[float, ...] = ()
    """Features behind the estimate; see `ranking.features`."""


class CompletionPlan(NamedTuple):
    """A gap, prepared for completion."""

    gap: Gap
    """The text around the cursor, as much as is used."""
    kind: Kind | None
    """None completes to the end of the text."""
    settings: CompletionSettings
    prompt: list[int]
    healing: Healing | None
    context: str
    """Text of other files in the prompt."""
    source: PythonSource | None
    """None if the text is not treated as Python."""
    truncated: bool
    """True if the prompt omits some of the text around the cursor."""

    @property
    def healed(self) -> str:
        """The healed end of the prefix, which the answer repeats before new text."""
        return "" if self.healing is None else self.healing.rest.decode()

    @property
    def blank(self) -> bool:
        """True if there is no text at all, and so nothing to complete."""
        return not (self.context + self.gap.prefix + self.gap.suffix).strip()

    @property
    def competes(self) -> bool:
        """True if other lines compete with the likeliest one at temperature 0."""
        return self.whole_line and bool(self.settings.candidates or self.settings.copying)

    @property
    def whole_line(self) -> bool:
        """True if the rest of a line is missing, to its end."""
        return self.kind == "line" and (self.gap.takes_newline or not self.gap.rest.strip())


class _Attempt(NamedTuple):
    """A candidate under generation."""

    plan: CompletionPlan
    start: str
    """Text placed before the generated text."""
    middle: Middle
    request: Request
    likeliest: bool


class Completer:
    """Completes code with a tokenizer and a generator."""

    def __init__(self, tokenizer: Tokenizer, fim_format: FimFormat, generate: Generate) -> None:
        """`fim_format` is the order of prefix and suffix that the model has learned.

        Raises ValueError for a tokenizer without the FIM tokens.
        """
        self._tokenizer, self._generate = tokenizer, generate
        self._prompts = Prompts(tokenizer, fim_format)

    def using(self, generate: Generate) -> "Completer":
        """Return a completer with another generator that shares this one's tables."""
        other = copy.copy(self)
        other._generate = generate
        return other

    def plan(
        self,
        gap: Gap,
        kind: Kind | None,
        settings: CompletionSettings,
        *,
        files: Sequence[File] = (),
        python: bool = True,
    ) -> CompletionPlan:
        """Prepare a gap; `python` permits treating the text as Python if its syntax agrees."""
        num_bytes = len(gap.prefix.encode())
        if gap.suffix.strip():
            num_bytes += len(gap.suffix.encode())
        gap = gap.near(max(_NEAR_CHARACTERS, settings.prompt_tokens * BYTES_PER_TOKEN))
        source = PythonSource(gap) if python and kind is not None else None
        context = self._prompts.context(gap, files, settings)
        ids, healing = self._prompts.make(gap, settings, context)
        rest = healing.rest if healing is not None else b""
        whole = len(context.encode()) + num_bytes - len(rest)
        truncated = self._prompts.count_text_bytes(ids) < whole
        return CompletionPlan(gap, kind, settings, ids, healing, context, source, truncated)

    def decoder(self, plan: CompletionPlan, *, stop: Sequence[str] = ()) -> Middle:
        """A new decoder for the plan's likeliest answer, which ends before any string in `stop`."""
        return self._decoder(plan, plan.gap, plan.healing, self._must_open(plan), stop)

    def run(
        self,
        plans: Sequence[CompletionPlan],
        params: Sequence[SamplingParams],
        *,
        alternatives: int = 1,
    ) -> Iterator[tuple[int, list[FilledGap]]]:
        """Complete plans; yields (number, up to `alternatives` different texts, best first).

        The first candidate of each plan is sampled with its `params`. Other lines compete with the
        likeliest one: see `candidates`. In Python, a candidate that cannot be correct is used only
        if there is no other, and final lines that make the source incorrect are cut off. A blank
        file without other files has no completion.
        """
        numbers = [number for number, plan in enumerate(plans) if not plan.blank]
        yield from ((number, []) for number, plan in enumerate(plans) if plan.blank)
        for low in range(0, len(numbers), _GROUP):
            group = numbers[low : low + _GROUP]
            attempts = [
                attempt
                for number in group
                for attempt in self._attempts(plans[number], params[number], alternatives)
            ]
            found = self._candidates(attempts)
            yield from zip(
                group,
                self._choose(
                    [(plans[number], params[number], found[id(plans[number])]) for number in group],
                    alternatives,
                ),
                strict=True,
            )

    def complete(
        self, plan: CompletionPlan, params: SamplingParams, *, alternatives: int = 1
    ) -> list[FilledGap]:
        """The texts of one plan; see `run`."""
        return next(self.run([plan], [params], alternatives=alternatives))[1]

    def settle(
        self, plan: CompletionPlan, params: SamplingParams, first: Middle, *, cut: bool
    ) -> FilledGap:
        """Choose the text of a plan whose first answer was generated already; `cut` is True if a
        limit cut it off."""
        others = self._attempts(plan, params, 1)[1:]
        found = [self._candidate(plan, "", first, cut=cut or first.cut_short, likeliest=True)]
        found += self._candidates(others)[id(plan)] if others else []
        return self._choose([(plan, params, found)], 1)[0][0]

    def write(
        self, text: str, settings: CompletionSettings, params: SamplingParams, *, until: Kind | None
    ) -> Iterator[str]:
        """Continue a text and yield pieces as they become final; `until` None has no ending rule.

        White space is withheld until something follows it in the same block.
        """
        plan = self.plan(Gap(text), until, settings, python=False)
        middle = self.decoder(plan)
        shown = 0
        for _, finished in self._generate([_request(plan.prompt, middle, params, settings)]):
            certain = middle.finish() if finished else middle.certain
            if until and finished:
                certain = trim(certain, plan.gap)
            yield certain[shown:]
            shown = max(shown, len(certain))

    def count(self, gap: Gap, most_tokens: int | None = None) -> int:
        """Tokens of a prompt with all the text around the cursor.

        Raises TooManyTokens as soon as the number certainly exceeds `most_tokens`.
        """
        return self._prompts.count(gap, most_tokens)

    # ----------------------------------------------------------------------------------------------
    # Candidates

    def _attempts(
        self, plan: CompletionPlan, params: SamplingParams, alternatives: int
    ) -> list[_Attempt]:
        """Attempts for the network, the likeliest text first."""
        starts = [Start("", self._must_open(plan), params)]
        if plan.competes and not params.temperature:
            starts = line_starts(plan.gap, plan.source, params, plan.settings.candidates)
        more = sampled(params, alternatives - 1)
        starts += [Start("", self._must_open(plan), one) for one in more]
        return [
            self._attempt(plan, start, likeliest=number == 0) for number, start in enumerate(starts)
        ]

    def _again(
        self, plan: CompletionPlan, source: PythonSource, params: SamplingParams
    ) -> list[Start]:
        """Further attempts, for when no text so far can be right."""
        if plan.competes and not params.temperature:
            kept = plan.settings.candidates
            return more_starts(plan.gap, source, params, kept, _RETRIES)
        opens = self._must_open(plan)
        return [Start("", opens, one) for one in sampled(params, _BLOCK_RETRIES)]

    def _attempt(self, plan: CompletionPlan, start: Start, *, likeliest: bool = False) -> _Attempt:
        gap, ids, healing = plan.gap, plan.prompt, plan.healing
        if start.text:
            gap = _with(gap, start.text)
            ids, healing = self._prompts.make(gap, plan.settings, plan.context)
        middle = self._decoder(plan, gap, healing, start.opens)
        request = _request(ids, middle, start.params, plan.settings)
        return _Attempt(plan, start.text, middle, request, likeliest)

    def _candidates(self, attempts: Sequence[_Attempt]) -> dict[int, list[Candidate]]:
        """Run attempts and return candidates by the id of their plan."""
        requests = [attempt.request for attempt in attempts]
        ended = {index for index, finished in self._generate(requests) if finished}
        found: dict[int, list[Candidate]] = {id(attempt.plan): [] for attempt in attempts}
        for index, (plan, start, middle, _, likeliest) in enumerate(attempts):
            # The generator may stop early, for example at a deadline while the user types.
            cut = middle.cut_short or index not in ended
            if cut and plan.whole_line and not likeliest:
                continue  # an unfinished line does not count
            one = self._candidate(plan, start, middle, cut=cut, likeliest=likeliest)
            found[id(plan)].append(one)
        return found

    def _candidate(
        self, plan: CompletionPlan, start: str, middle: Middle, *, cut: bool, likeliest: bool
    ) -> Candidate:
        gap = _with(plan.gap, start) if start else plan.gap
        text = start + trim(middle.finish(), gap, cut_short=cut)
        source = plan.source
        if source is not None and source.begun and plan.kind == "block":
            text = longest_valid(text, plan.gap)
        if plan.whole_line and source is not None:
            text = _tidied(text, plan.gap, source)
        if plan.gap.takes_newline and text.strip():
            text = text.rstrip("\n") + "\n"
        return Candidate(text, middle.count, written=1, likeliest=likeliest, logprob=middle.logprob)

    def _choose(
        self,
        groups: Sequence[tuple[CompletionPlan, SamplingParams, list[Candidate]]],
        alternatives: int,
    ) -> list[list[FilledGap]]:
        """Judge and score candidates; returns the texts of each plan, best first."""
        pools = [_pool(plan, params, found) for plan, params, found in groups]
        retried = []
        for (plan, params, _), pool in zip(groups, pools, strict=True):
            if plan.source is not None and plan.source.begun and not any(map(_may_be_right, pool)):
                starts = self._again(plan, plan.source, params)
                retried += [self._attempt(plan, start) for start in starts]
        if retried:
            again = self._candidates(retried)
            for (plan, _, _), pool in zip(groups, pools, strict=True):
                _join(plan, pool, again.get(id(plan), []))
        self._score([(group[0], pool) for group, pool in zip(groups, pools, strict=True)])
        return [
            _filled(group[0], pool)[:alternatives]
            for group, pool in zip(groups, pools, strict=True)
        ]

    def _score(self, groups: Iterable[tuple[CompletionPlan, list[Candidate]]]) -> None:
        """Score competing lines, each with the text that follows it: all of them, or none if the
        generator stops early."""
        requests: list[Request] = []
        owners: list[list[tuple[Candidate, _Scored, int]]] = []
        for plan, pool in groups:
            running = [one for one in pool if one.text.strip() and not one.judged.fault]
            if not plan.competes or len(running) < 2:
                continue
            texts = [one.text.rstrip("\n") for one in running]
            gap = _whole_line(plan.gap)
            scored = self._prompts.scored(gap, texts, plan.settings, plan.context)
            answers = [_Scored() for _ in running]
            requests += [
                Request(
                    prompt=prompt,
                    answer=answer,
                    params=SamplingParams(),
                    max_tokens=0,
                    scored_from=first,
                )
                for (prompt, first), answer in zip(scored, answers, strict=True)
            ]
            counts = [len(prompt) - first for prompt, first in scored]
            owners.append(list(zip(running, answers, counts, strict=True)))
        if requests:
            for _ in self._generate(requests):
                pass
        for owned in owners:
            if all(answer.count == count for _, answer, count in owned):
                for one, answer, count in owned:
                    one.score, one.num_tokens = answer.logprob, count

    def _decoder(
        self,
        plan: CompletionPlan,
        gap: Gap,
        healing: Healing | None,
        opens: bool,
        stop: Sequence[str] = (),
    ) -> Middle:
        """A decoder for a gap. Each has its own healing, which keeps its progress."""
        again = healing and Healing(self._prompts.healer, healing.ids, healing.rest)
        ending = ending_for(plan.kind, gap) if plan.kind is not None else None
        opening = Opening(self._prompts.healer) if opens else None
        limit = plan.settings.max_tokens
        return Middle(self._tokenizer, again, ending, limit, opening=opening, stop=stop)

    def _must_open(self, plan: CompletionPlan) -> bool:
        return plan.source is not None and opens_block(plan.gap)


class _Scored:
    """Sums up the log probabilities of given tokens."""

    def __init__(self) -> None:
        self.logprob, self.count = 0.0, 0

    def allowed(self) -> None:
        return None

    def push(self, token: int, logprob: float) -> bool:
        self.logprob += logprob
        self.count += 1
        return True


def _request(
    ids: list[int], middle: Middle, params: SamplingParams, settings: CompletionSettings
) -> Request:
    return Request(prompt=ids, answer=middle, params=params, max_tokens=settings.max_tokens)


def _with(gap: Gap, start: str) -> Gap:
    """The gap after `start` is inserted into it."""
    gap = _whole_line(gap)
    return dataclasses.replace(gap, prefix=gap.prefix + start)


def _tidied(text: str, gap: Gap, source: PythonSource) -> str:
    """The line without extra indentation, where the typed one is possible, and with its colon."""
    if gap.line and source.level(gap.line) is not None:
        text = text.lstrip(" \t")
    code = text.strip()
    level = source.level(gap.line + text[: indentation(text)])
    if level is None or not level.opens or not code or code.endswith(":") or "#" in code:
        return text
    return text.rstrip() + ":"


def _may_be_right(one: Candidate) -> bool:
    return not one.judged.fault and not one.judged.missing


def _whole_line(gap: Gap) -> Gap:
    """The gap on a line of its own if a line is inserted before another one."""
    return Gap(gap.prefix, "\n" + gap.suffix) if gap.takes_newline else gap


def _pool(plan: CompletionPlan, params: SamplingParams, found: list[Candidate]) -> list[Candidate]:
    """Distinct candidates, judged, together with the copies that compete with them."""
    pool: list[Candidate] = []
    _join(plan, pool, found)
    if plan.settings.copying and plan.whole_line and not params.temperature:
        gap = _whole_line(plan.gap)
        levels = [] if plan.source is None else plan.source.levels
        white = levels[0].white[len(gap.line) :] if levels else ""
        end = "\n" if plan.gap.takes_newline else ""
        lines = copies(gap.prefix, gap.suffix, _COPIES)
        _join(plan, pool, [Candidate(white + text + end, copied=True) for text in lines])
    return pool


def _join(plan: CompletionPlan, pool: list[Candidate], more: Iterable[Candidate]) -> None:
    """Add candidates to the pool; equal texts are merged."""
    known = {one.text: one for one in pool}
    for one in more:
        if one.text in known:
            same = known[one.text]
            same.written += one.written
            same.copied |= one.copied
            same.logprob = max(same.logprob, one.logprob)
            continue
        if plan.source is not None and plan.source.begun and one.text.strip():
            one.judged = plan.source.judge(one.text)
        known[one.text] = one
        pool.append(one)


def _filled(plan: CompletionPlan, pool: list[Candidate]) -> list[FilledGap]:
    """The candidates as texts, best first."""
    ordered = ranked(pool)
    seen: dict[str, FilledGap] = {}
    for number, one in enumerate(ordered):
        valid = plan.source is not None and plan.source.valid(one.text)
        evidence = features(one, ordered[:number] + ordered[number + 1 :])
        sure = confidence(one, evidence)
        seen.setdefault(one.text.strip(), FilledGap(one.text, one.tokens, valid, sure, evidence))
    return list(seen.values())
