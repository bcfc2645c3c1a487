"""Token healing: makes a continuation independent of a token cut at the prompt's end.

The last tokens of such a prompt are removed as far as a continuation could change them. The model
then generates their bytes again: it may sample any token that is a prefix of the remaining bytes,
or that the remaining bytes are a prefix of. Named tokens are neither removed nor sampled.
"""

import unicodedata
from bisect import bisect_left

from sounding.text.tokenizer import BYTE_OF, Tokenizer

_CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


class Healer:
    """The tokens of a vocabulary by their bytes. Built once per tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._named = set(tokenizer.named.values())
        table = enumerate(tokenizer.token_bytes)
        self._sorted = sorted((text, i) for i, text in table if text and i not in self._named)
        self._ids = dict(self._sorted)
        self._longest = max(map(len, self._ids))

    def heal(self, text: str) -> "Healing":
        """The tokens of a prompt that every continuation keeps, and the bytes after them."""
        encoding = self.tokenizer.core.encode(text, add_special_tokens=False)
        ids, words, offsets = encoding.ids, encoding.word_ids, encoding.offsets
        first, num_words, tail = len(ids), 0, ""
        # The last word may still grow, and white space at the end be split into words anew.
        while first and ids[first - 1] not in self._named and not tail.strip():
            start = first - 1
            while start and words[start - 1] == words[start]:
                start -= 1
            longer = text[offsets[start][0] :]
            if num_words and longer.strip():
                break
            first, num_words, tail = start, num_words + 1, longer
        raw, kept = tail.encode(), []
        # Control and unassigned characters are in none of the split's classes: their words too
        # may be split anew.
        if num_words == 1 and not any(unicodedata.category(c)[0] == "C" for c in tail):
            kept = self._stable(ids[first:], raw)
        rest = raw[self.tokenizer.count_bytes(kept) :]
        return Healing(self, [*ids[:first], *kept], rest)

    def allowed(self, rest: bytes) -> list[int]:
        """The ids whose bytes start with `rest`, or are a prefix of it."""
        shorter = (self._ids.get(rest[:length]) for length in range(1, len(rest)))
        found = [token for token in shorter if token is not None]
        at = bisect_left(self._sorted, (rest, -1))
        while at < len(self._sorted) and self._sorted[at][0].startswith(rest):
            found.append(self._sorted[at][1])
            at += 1
        return found

    def _stable(self, ids: list[int], word: bytes) -> list[int]:
        """The leading ids of an unfinished word that do not depend on its continuation.

        Up to any token boundary, BPE splits a word as it splits the part before the boundary alone.
        So consider each place where a token that extends beyond the word could begin, and keep the
        ids on which all agree.
        """
        kept = ids
        for start in range(max(0, len(word) - self._longest), len(word)):
            at = bisect_left(self._sorted, (word[start:] + b"\0", -1))
            if at == len(self._sorted) or not self._sorted[at][0].startswith(word[start:]):
                continue
            mapped = "".join(_CHARACTER_OF[byte] for byte in word[:start])
            other = [t.id for t in self.tokenizer.core.model.tokenize(mapped)] if mapped else []
            agree = 0
            while agree < min(len(kept), len(other)) and kept[agree] == other[agree]:
                agree += 1
            kept = kept[:agree]
        return kept


class Healing:
    """A prompt's tokens that stay, `ids`, and the bytes to be sampled again, `rest`."""

    def __init__(self, healer: Healer, ids: list[int], rest: bytes) -> None:
        self._healer = healer
        self.ids, self.rest = ids, rest

    def allowed(self) -> list[int] | None:
        """The ids that may be sampled next; None permits any, once the prompt is complete."""
        return self._healer.allowed(self.rest) if self.rest else None

    def advance(self, token: int) -> None:
        """Process a sampled id. Raises ValueError if it is not allowed."""
        sampled = self._healer.tokenizer.bytes_of(token)
        if not (sampled.startswith(self.rest) or (sampled and self.rest.startswith(sampled))):
            raise ValueError(f"token {token} ({sampled!r}) does not continue {self.rest!r}")
        self.rest = self.rest[len(sampled) :]
