"""The tokenizer: byte-level BPE in the published `tokenizer.json` layout.

Loads the published file or one of ours, trains ours with the same split and the same named
tokens, decodes a stream without ever returning half a character. The BPE itself is the `tokenizers`
library's. Source: docs/prompt.md 1.
"""

import bisect
import codecs
import difflib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from sounding.files import write_file
from sounding.text.markup import (
    BOS,
    END_OF_QUERY,
    EOS,
    FIRST_TOKENS,
    IN_ANSWERS,
    NAMED_TOKENS,
    PAD,
)
from sounding.text.tokenizer_file import read_core

# Each match is split off, in this order: digits by threes, CJK runs, then everything else.
_DIGITS = r"\p{N}{1,3}"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
).replace('\\"', '"')
SPLIT_RULES = (_DIGITS, _CJK, _WORDS)

# Required tokens: the first tokens, every byte, the named tokens.
SMALLEST_VOCABULARY = len(FIRST_TOKENS) + 256 + len(NAMED_TOKENS)


# Ids of a model without a token are fewer: more is no rounding up, but another vocabulary.
MOST_PADDING = 1024
_PAGE_CHARACTERS = 1 << 18  # of a text that may be too long, encoded at once


class TooManyTokens(ValueError):
    """A text exceeds the limit of tokens. `num_tokens` is their number if `exact`, else a lower
    bound of it."""

    def __init__(self, num_tokens: int, most_tokens: int, *, exact: bool = True) -> None:
        about = "" if exact else "at least "
        super().__init__(
            f"the text has {about}{num_tokens} tokens where {most_tokens} are allowed; shorten it"
        )
        self.num_tokens, self.exact = num_tokens, exact


class BytePairs(NamedTuple):
    """The tables of a byte-level BPE vocabulary, whose bytes are written as letters."""

    vocabulary: dict[str, int]
    merges: list[str]
    """Two tokens with a space between them, the first merge first."""
    split_rules: tuple[str, ...]
    """Patterns that text is split by before BPE, in order."""


class Tokenizer:
    """A vocabulary of `num_tokens` ids; named tokens such as <｜User｜> are found in the text."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        self.core = core
        self.num_tokens = max(core.get_vocab(with_added_tokens=True).values()) + 1
        self.named = {token.content: i for i, token in core.get_added_tokens_decoder().items()}

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], vocab_size: int | None = None) -> "Tokenizer":
        """Load a tokenizer.json, or the one in a checkpoint's folder.

        `vocab_size` is that of its model, if there is one. Raises ValueError for a file of another
        kind or another model, OSError for one that cannot be read.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "tokenizer.json"
        try:
            return cls.from_json(file.read_text(encoding="utf-8-sig"), vocab_size)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    @classmethod
    def from_json(cls, text: str, vocab_size: int | None = None) -> "Tokenizer":
        """Load the text of a tokenizer.json. Raises ValueError as `read_core` does, and for a
        vocabulary that leaves more ids of the model unused than a table is padded by."""
        core = read_core(text, vocab_size)
        made = cls(core)
        if vocab_size is not None and vocab_size - made.num_tokens >= MOST_PADDING:
            raise ValueError(
                f"it has {made.num_tokens:,} tokens and the model {vocab_size:,}: they do not "
                "belong together; put the model's own tokenizer.json beside its weights"
            )
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, whole or not at all."""
        write_file(Path(path), self.core.to_str(pretty=True).encode())

    def byte_pairs(self) -> "BytePairs":
        """The tables of the vocabulary, for writers of other formats."""
        layout = json.loads(self.core.to_str())
        split = layout["pre_tokenizer"].get("pretokenizers", [])
        rules = [part["pattern"].get("Regex", "") for part in split if part["type"] == "Split"]
        merges = [
            pair if isinstance(pair, str) else " ".join(pair) for pair in layout["model"]["merges"]
        ]
        return BytePairs(layout["model"]["vocab"], merges, tuple(rules))

    def id_of(self, name: str) -> int:
        """The id of a named token. Raises ValueError with the nearest name if there is none."""
        if name in self.named:
            return self.named[name]
        near = difflib.get_close_matches(name, self.named, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"this vocabulary has no token named {name!r}{hint}")

    @property
    def bos_id(self) -> int:
        return self.id_of(BOS)

    @property
    def eos_id(self) -> int:
        return self.id_of(EOS)

    @property
    def pad_id(self) -> int:
        return self.id_of(PAD)

    def encode(self, text: str, *, named: bool = True, most_tokens: int | None = None) -> list[int]:
        """Encode a text. Nothing is added: a prompt contains its own BOS.

        With `named=False` the names of special tokens in the text are ordinary characters, as
        documents and untrusted text require. Raises TooManyTokens for a text of more
        than `most_tokens`, as soon as that is certain.
        """
        ids: list[int] = self._encoding(text, named, most_tokens).ids
        return ids

    def encode_parts(self, parts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Encode the text that parts make together, and say in which part every token begins.

        Parts encoded one by one could give other tokens where two of them meet.
        """
        text = _checked("".join(parts))
        encoding = self.core.encode(text, add_special_tokens=False)
        ends = list(itertools.accumulate(map(len, parts)))
        owners = [bisect.bisect_right(ends, begin) for begin, _ in encoding.offsets]
        return encoding.ids, owners

    def encode_many(self, texts: Sequence[str], *, named: bool = True) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        texts = [_checked(text) for text in texts]
        encoded = self._core(named).encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def count(self, text: str, *, named: bool = True, most_tokens: int | None = None) -> int:
        """Number of tokens of a text; raises TooManyTokens as `encode` does."""
        return len(self._encoding(text, named, most_tokens))

    def count_bytes(self, ids: Iterable[int]) -> int:
        """Number of UTF-8 bytes of the ids' text, without decoding them."""
        lengths = self._lengths
        return sum(lengths[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no character become U+FFFD.

        Raises ValueError for an id outside of the vocabulary.
        """
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one id, which may be only a part of a character."""
        if not 0 <= token < self.num_tokens:
            raise ValueError(f"{token} is no token; ids go from 0 to {self.num_tokens - 1}")
        return self.token_bytes[token]

    def stream(self) -> "TextStream":
        """A decoder for ids that come one by one."""
        return TextStream(self)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every id; b"" for an id without a token."""
        table = [b""] * self.num_tokens
        for token, i in self.core.get_vocab(with_added_tokens=False).items():
            table[i] = bytes(BYTE_OF[character] for character in token if character in BYTE_OF)
        for name, i in self.named.items():
            table[i] = name.encode()
        return table

    @cached_property
    def longest_token_bytes(self) -> int:
        """Bytes of the longest token."""
        return max(self._lengths)

    @cached_property
    def structural(self) -> frozenset[int]:
        """Ids that structure a prompt or have no token, which are never part of an answer."""
        special = {i for i, token in self.core.get_added_tokens_decoder().items() if token.special}
        known = {self.named[name] for name in (*FIRST_TOKENS, *NAMED_TOKENS) if name in self.named}
        return frozenset(special | known) - {self.named.get(name) for name in IN_ANSWERS}

    @cached_property
    def _lengths(self) -> list[int]:
        return [len(token) for token in self.token_bytes]

    @cached_property
    def _nameless(self) -> tokenizers.Tokenizer:
        layout = json.loads(self.core.to_str())
        layout["added_tokens"] = []
        return tokenizers.Tokenizer.from_str(json.dumps(layout))

    def _core(self, named: bool) -> tokenizers.Tokenizer:
        return self.core if named else self._nameless

    def _encoding(self, text: str, named: bool, most_tokens: int | None) -> tokenizers.Encoding:
        # The library holds the GIL while it encodes one text, and lets it go for a batch: a server
        # would answer nobody for as long as a long prompt takes. The fast batch leaves offsets out.
        core = self._core(named)
        text = _checked(text)
        if most_tokens is not None:
            self._refuse_early(core, text, most_tokens)
        encoding = core.encode_batch_fast([text], add_special_tokens=False)[0]
        if most_tokens is not None and len(encoding) > most_tokens:
            raise TooManyTokens(len(encoding), most_tokens)
        return encoding

    def _refuse_early(self, core: tokenizers.Tokenizer, text: str, most_tokens: int) -> None:
        """Raise TooManyTokens for a text that cannot have so few, without encoding all of it: an
        encoding takes a hundred times the memory of its text."""
        num_bytes = len(text.encode())
        if num_bytes > most_tokens * self.longest_token_bytes:
            raise TooManyTokens(-(-num_bytes // self.longest_token_bytes), most_tokens, exact=False)
        if num_bytes <= max(most_tokens, _PAGE_CHARACTERS):
            return
        count = 0
        for start in range(0, len(text), _PAGE_CHARACTERS):
            page = text[start : start + _PAGE_CHARACTERS]
            # A cut adds a token or two to those of the whole; a tenth is far more than that.
            count += len(core.encode_batch_fast([page], add_special_tokens=False)[0]) * 9 // 10
            if count > most_tokens:
                raise TooManyTokens(count, most_tokens, exact=False)


class TextStream:
    """Decodes ids as they come: text only once it is whole characters.

    A byte that cannot become a character any more is U+FFFD; one that still can is waited for.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that one more id completes, often ""."""
        return self._decoder.decode(self._tokenizer.bytes_of(token))

    def finish(self) -> str:
        """Return the rest at the end of the ids: "", or U+FFFD for an incomplete character."""
        return self._decoder.decode(b"", final=True)


def train(texts: Iterable[str], num_tokens: int, *, progress: bool = False) -> Tokenizer:
    """Train a byte-level BPE of exactly `num_tokens` ids, laid out like the published one.

    BOS, EOS and PAD are 0, 1, 2, then bytes and merges, then the other named tokens. `progress`
    shows a bar on stderr. Raises ValueError for a vocabulary too small for these, or too large
    for the texts.
    """
    if num_tokens < SMALLEST_VOCABULARY:
        raise ValueError(
            f"a vocabulary of {num_tokens} is too small; bytes and named tokens alone "
            f"are {SMALLEST_VOCABULARY}"
        )
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(r), "isolated") for r in (_DIGITS, _CJK, _WORDS)),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    first = [AddedToken(name, normalized=False, special=True) for name in FIRST_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens - len(NAMED_TOKENS),
        special_tokens=first,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
    )
    core.train_from_iterator(texts, trainer)
    missing = num_tokens - len(NAMED_TOKENS) - core.get_vocab_size()
    if missing:
        raise ValueError(
            f"the texts give a vocabulary of {num_tokens - missing} at most, not {num_tokens}; "
            "ask for less or give more text"
        )
    # The flags are those of the published file.
    core.add_tokens(
        [
            AddedToken(name, normalized=name != END_OF_QUERY, special=name == END_OF_QUERY)
            for name in NAMED_TOKENS
        ]
    )
    return Tokenizer(core)


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} is half of a surrogate pair and has no UTF-8 form; "
            "replace it first"
        ) from None
    return text


def _byte_of() -> dict[str, int]:
    """Map each character of the byte-level alphabet to its byte.

    Printable Latin-1 maps to itself; the other bytes, in order, are U+0100 and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


BYTE_OF = _byte_of()
