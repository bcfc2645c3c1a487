"""Build the prompt for a gap in a text.

The prompt has the form of training: BOS, then prefix and suffix around the FIM tokens, each
encoded separately; without a suffix, just the text. For models trained that way, the prefix comes
after the suffix, as the beginning of a middle without a prefix (SPM of Bavarian et al., 2022). The
answer then directly continues the prefix, and a keystroke only extends the prompt. Names of special
tokens in a user's file are encoded as ordinary characters. Other files come before the prefix as
plain text, because the loader trains on single documents and never uses the tokens that separate
the files of a repository.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from sounding.completion.context import File, relevant_context, settled
from sounding.completion.gap import Gap
from sounding.completion.healing import Healer, Healing
from sounding.text.fim_format import FimFormat, FimTokens
from sounding.text.tokenizer import Tokenizer, TooManyTokens

_SPECIAL_TOKENS = 4  # BOS and three FIM tokens
BYTES_PER_TOKEN = 16  # more than a window can need; avoids encoding a long file as a whole
_HEALED_CHARACTERS = 1024  # of a long line; the rest is encoded separately
CANDIDATES, TYPING_CANDIDATES = 8, 4  # each takes time, which is short during typing
_SCORED_TOKENS = 24  # tokens scored after a candidate
_STEPS = 8  # the start of a long prefix moves in this many steps per prompt length


@dataclass(frozen=True, kw_only=True)
class CompletionSettings:
    """Settings of completions. Raises ValueError if the budgets leave no room for text."""

    max_tokens: int = 128
    """Token limit of the answer."""
    context_tokens: int = 1024
    """Token limit of prompt and answer together: about the model's training length."""
    suffix_share: float = 0.25
    """Share of the suffix in the prompt if both sides are long."""
    files_share: float = 0.25
    """Largest share of the prompt for pieces of other files."""
    heal: bool = True
    """Inside a word, let the model choose its tokens again (token healing)."""
    copying: bool = True
    """Let copies of other lines of the file compete with the network's lines, for kind "line"."""
    candidates: int = CANDIDATES
    """Lines sampled in addition to the likeliest one, for kind "line" at temperature 0; with 0 the
    network writes only its likeliest line."""
    typing: bool = False
    """The user is typing: choose pieces of other files by the lines above the cursor's, so that
    prompts share a prefix from one keystroke to the next."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens = {self.max_tokens} must be at least 1")
        if self.prompt_tokens < 16:
            raise ValueError(
                f"context_tokens = {self.context_tokens} with max_tokens = {self.max_tokens} "
                "leaves fewer than 16 tokens of text; give more context or ask for fewer"
            )
        if self.candidates < 0:
            raise ValueError(f"candidates = {self.candidates} must be at least 0")
        for name in ("suffix_share", "files_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be from 0 to below 1")

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens left for text in the prompt."""
        return self.context_tokens - self.max_tokens - _SPECIAL_TOKENS


class Prompts:
    """Builds prompts with a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, fim_format: FimFormat) -> None:
        """Raises ValueError for a tokenizer without the FIM tokens."""
        self._tokenizer, self._format = tokenizer, fim_format
        self._fim = FimTokens.of(tokenizer)
        self.healer = Healer(tokenizer)

    def make(
        self, gap: Gap, settings: CompletionSettings, context: str = ""
    ) -> tuple[list[int], Healing | None]:
        """Token ids, and the healing of the word at the cursor if it needs healing.

        `context` goes before the prefix; see `context`.
        """
        infilling = bool(gap.suffix.strip())
        suffix_first = self._format.suffix_first
        cut = infilling and not suffix_first
        healing = self._heal(gap, inside_words_only=cut) if settings.heal else None
        kept, last = gap.prefix, []
        if healing is not None:
            # Healing needs only the last line; the text before it is encoded separately.
            kept, last = kept[: _healed_from(kept)], healing.ids
        head = self._encode(context) if context else []
        prefix = self._encode(_end_of(kept, settings.prompt_tokens))
        most = settings.prompt_tokens // 2  # of the healed line's tokens, which are always shown
        prefix, last = prefix + last[:-most], last[-most:]
        room = max(0, settings.prompt_tokens - len(head) - len(last))
        suffix = self._encode(gap.suffix[: room * BYTES_PER_TOKEN]) if infilling else []
        step = settings.prompt_tokens // _STEPS
        # The start of the prompt must not change with every token of the prefix.
        taken = -(-len(prefix) // step) * step if suffix_first else len(prefix)
        suffix = self._first_lines(suffix, max(int(room * settings.suffix_share), room - taken))
        text = [*head, *self._last_lines(prefix, room - len(suffix), step), *last]
        if not infilling:
            return [self._fim.bos, *text], healing
        parts = self._format.arrange(self._fim, text, suffix)
        return list(chain.from_iterable(parts)), healing

    def scored(
        self, gap: Gap, texts: Sequence[str], settings: CompletionSettings, context: str = ""
    ) -> list[tuple[list[int], int]]:
        """Prompts with each text placed in the gap, in the order of the file, followed by the start
        of the suffix. Each comes with the index of its first token after the common beginning.

        A network models plain text far better than gaps, and such a prompt also shows whether the
        suffix fits.
        """
        ids, healing = self.make(Gap(gap.prefix), settings, context)
        rest = healing.rest.decode() if healing is not None else ""
        after = self._encode(gap.suffix[: _SCORED_TOKENS * BYTES_PER_TOKEN])[:_SCORED_TOKENS]
        prompts = []
        for text in texts:
            ending = [] if after else self._encode("\n")
            prompts.append([*ids, *self._encode(rest + text), *after, *ending])
        return [(prompt, len(ids)) for prompt in prompts]

    def context(self, gap: Gap, files: Sequence[File], settings: CompletionSettings) -> str:
        """Choose text of other files that is relevant to the gap."""
        if not files:
            return ""
        budget = int(settings.prompt_tokens * settings.files_share)
        before = settled(gap.prefix) if settings.typing else gap.prefix
        count = partial(self._count_up_to, budget)
        return relevant_context(files, before, gap.suffix, budget_tokens=budget, count=count)

    def count(self, gap: Gap, most_tokens: int | None = None) -> int:
        """Tokens of a prompt with all the text around the cursor.

        Raises TooManyTokens as soon as the number certainly exceeds `most_tokens`.
        """
        prefix, suffix = (
            self._tokenizer.count(text, named=False, most_tokens=most_tokens)
            for text in (gap.prefix, gap.suffix)
        )
        return prefix + suffix + _SPECIAL_TOKENS

    def count_text_bytes(self, ids: Sequence[int]) -> int:
        """Bytes of text in a prompt, without its special tokens."""
        return self._tokenizer.count_bytes(token for token in ids if token not in self._fim)

    def _heal(self, gap: Gap, *, inside_words_only: bool) -> Healing | None:
        """Heal the last non-blank line.

        Training cuts middles at any place and encodes them separately, so a gap after white space
        or a bracket needs no healing. Inside a word, healing lets the rest of the word be one token
        again. Plain continuations contain no cuts in training.
        """
        text = gap.prefix
        if not text or (inside_words_only and not (text[-1].isalnum() or text[-1] == "_")):
            return None
        line = text[_healed_from(text) :]
        if any(name in line for name in self._tokenizer.named):
            return None  # it would be parsed as a special token
        healing = self.healer.heal(line)
        try:
            healing.rest.decode()
        except UnicodeDecodeError:  # starts inside a character
            return None
        return healing

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, named=False)

    def _count_up_to(self, most_tokens: int, text: str) -> int:
        """Number of tokens of a text, counted only until it exceeds the limit."""
        try:
            return self._tokenizer.count(text, named=False, most_tokens=most_tokens)
        except TooManyTokens as error:
            return error.num_tokens

    def _last_lines(self, ids: list[int], budget: int, step: int) -> list[int]:
        """Return the last tokens, from a line's start if possible.

        The omitted part grows in steps: while the user types, prompts share a prefix, which hits
        the cache.
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
        """Return the first tokens, up to a line's end if possible."""
        if len(ids) <= budget:
            return ids
        for at in range(budget, 0, -1):
            if self._tokenizer.bytes_of(ids[at - 1]).endswith(b"\n"):
                return ids[:at]
        return ids[:budget]


def _last_line(text: str) -> int:
    """Start of the last non-blank line."""
    return text.rfind("\n", 0, len(text.rstrip())) + 1


def _healed_from(text: str) -> int:
    """Start of the healed piece of the last line: near its end, in steps."""
    begin = _last_line(text)
    beyond = max(0, len(text) - begin - _HEALED_CHARACTERS)
    return begin + beyond // _HEALED_CHARACTERS * _HEALED_CHARACTERS


def _end_of(text: str, num_tokens: int) -> str:
    """Return the end of a long text, from a line's start, with at least `num_tokens` tokens; its
    start moves in steps as the text grows."""
    room = num_tokens * BYTES_PER_TOKEN
    step = room // 4
    start = (len(text) - room) // step * step
    return text if start <= 0 else text[text.find("\n", start) + 1 :]
