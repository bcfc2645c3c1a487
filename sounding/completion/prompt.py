"""Build the prompt for a gap in a text.

The prompt is the one training shows: BOS, then prefix and suffix around the FIM tokens, each
encoded by itself; without a suffix simply the text. For models that learned it so, the prefix
follows the suffix, as the beginning of a middle without a prefix (SPM of Bavarian et al.,
2022): the answer directly continues the prefix, and a keystroke only extends the prompt.
Names of special tokens in a user's file are ordinary characters there. Other files go before the
prefix as plain text, because the loader trains on single documents and never shows the tokens that
separate the files of a repository.
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

_SPECIAL_TOKENS = 4  # BOS and the three of FIM
BYTES_PER_TOKEN = 16  # more than a window can need; spares encoding a long file as a whole
_HEALED_CHARACTERS = 1024  # of a long line; the rest is encoded apart
CANDIDATES, TYPING_CANDIDATES = 8, 4  # each takes time, of which a typist gives little
_SCORED_TOKENS = 24  # behind a candidate
_STEPS = 8  # step in which the start of a long prefix moves


@dataclass(frozen=True, kw_only=True)
class CompletionSettings:
    """Settings of completions. Raises ValueError for budgets that leave no room."""

    max_tokens: int = 128
    """Limit of the answer."""
    context_tokens: int = 1024
    """Limit of prompt and answer together: about the model's length in training."""
    suffix_share: float = 0.25
    """The suffix's share of the prompt, if both sides are long."""
    files_share: float = 0.25
    """Largest share of the prompt for pieces of other files."""
    heal: bool = True
    """Inside a word, let the model choose its tokens anew."""
    copying: bool = True
    """Let the other lines of the file compete with the network's, where a line is wanted."""
    candidates: int = CANDIDATES
    """Lines sampled beside the likeliest one, where a line is wanted at temperature 0; with 0 the
    network writes its likeliest alone."""
    typing: bool = False
    """The user is typing: choose pieces of other files by the lines above the cursor's own, so
    that prompts share a prefix from one keystroke to the next."""

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
        """Tokens left for text in the prompt."""
        return self.context_tokens - self.max_tokens - _SPECIAL_TOKENS


class Prompts:
    """Makes prompts with a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, fim_format: FimFormat) -> None:
        """Raises ValueError for a tokenizer without the FIM tokens."""
        self._tokenizer, self._format = tokenizer, fim_format
        self._fim = FimTokens.of(tokenizer)
        self.healer = Healer(tokenizer)

    def make(
        self, gap: Gap, settings: CompletionSettings, context: str = ""
    ) -> tuple[list[int], Healing | None]:
        """Token ids, and the healing of the word at the cursor if it is to be healed.

        `context` goes before the prefix; see `context`.
        """
        infilling = bool(gap.suffix.strip())
        suffix_first = self._format.suffix_first
        cut = infilling and not suffix_first
        healing = self._heal(gap, inside_words_only=cut) if settings.heal else None
        kept, last = gap.prefix, []
        if healing is not None:
            # Healing looks at the last line; what is before it is encoded apart.
            kept, last = kept[: _healed_from(kept)], healing.ids
        head = self._encode(context) if context else []
        prefix = self._encode(_end_of(kept, settings.prompt_tokens))
        most = settings.prompt_tokens // 2  # of what is always shown
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
        """Prompts in which texts stand in the gap, in the order of the file, with the beginning of
        what follows; each with the place of its first token that differs or follows.

        A network has learned plain text far better than gaps, and here it sees if what follows
        fits. All begin alike.
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

        Raises TooManyTokens as soon as there are certainly more than `most_tokens`.
        """
        prefix, suffix = (
            self._tokenizer.count(text, named=False, most_tokens=most_tokens)
            for text in (gap.prefix, gap.suffix)
        )
        return prefix + suffix + _SPECIAL_TOKENS

    def count_text_bytes(self, ids: Sequence[int]) -> int:
        """Bytes of text in a prompt, without the tokens that structure it."""
        return self._tokenizer.count_bytes(token for token in ids if token not in self._fim)

    def _heal(self, gap: Gap, *, inside_words_only: bool) -> Healing | None:
        """Heal the last line that is not blank.

        Training cuts a middle out anywhere and encodes it by itself, so that a hole after white
        space or a bracket needs no healing; inside a word it is what makes the rest of the word
        one token again. A plain continuation has seen no cuts at all.
        """
        text = gap.prefix
        if not text or (inside_words_only and not (text[-1].isalnum() or text[-1] == "_")):
            return None
        line = text[_healed_from(text) :]
        if any(name in line for name in self._tokenizer.named):
            return None  # it would be read as structure
        healing = self.healer.heal(line)
        try:
            healing.rest.decode()
        except UnicodeDecodeError:  # begins inside of a character
            return None
        return healing

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, named=False)

    def _count_up_to(self, most_tokens: int, text: str) -> int:
        """Number of tokens of a text, counted only until the limit is exceeded."""
        try:
            return self._tokenizer.count(text, named=False, most_tokens=most_tokens)
        except TooManyTokens as error:
            return error.num_tokens

    def _last_lines(self, ids: list[int], budget: int, step: int) -> list[int]:
        """Return the last tokens, from the start of a line if there is one.

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
        """The first tokens, up to the end of a line where there is one."""
        if len(ids) <= budget:
            return ids
        for at in range(budget, 0, -1):
            if self._tokenizer.bytes_of(ids[at - 1]).endswith(b"\n"):
                return ids[:at]
        return ids[:budget]


def _last_line(text: str) -> int:
    """Start of the last line that is not blank."""
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
