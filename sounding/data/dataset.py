"""A tokenized corpus: one flat file of token ids, and the offset of each document.

A dataset is a folder of `tokens.bin` (little-endian uint16, or uint32 for vocabularies above
65,536), `offsets.npy` (int64, one more than documents), `tokenizer.json` and `dataset.json`.
Documents contain text only: the loader adds BOS, EOS and the FIM tokens.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sounding.data.manifest import file_digest
from sounding.text.tokenizer import Tokenizer

TOKENS_NAME, OFFSETS_NAME, INFO_NAME = "tokens.bin", "offsets.npy", "dataset.json"
TOKENIZER_NAME = "tokenizer.json"
_BATCH_DOCUMENTS = 256  # encoded together: enough for all cores, little memory

Tokens = NDArray[np.unsignedinteger[Any]]


def tokenize(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    out: Path,
    *,
    source: str = "",
    progress: Callable[[int], None] = lambda num_documents: None,
) -> dict[str, Any]:
    """Write the dataset of `texts` to the new folder `out` and return its description.

    `source` is a note for readers. The folder appears when it is complete. Raises ValueError if
    it exists, or there is no text.
    """
    if out.exists():
        raise ValueError(f"{out} exists; choose a new folder or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tokenizer.save(partial / TOKENIZER_NAME)
    dtype = np.dtype("<u2" if tokenizer.num_tokens <= 2**16 else "<u4")
    lengths: list[int] = []
    num_bytes = 0
    digest = hashlib.sha256()
    with (partial / TOKENS_NAME).open("wb") as stream:
        for group in _grouped(texts, _BATCH_DOCUMENTS):
            for text, ids in zip(group, tokenizer.encode_many(group, named=False), strict=True):
                content = np.asarray(ids, dtype).tobytes()
                digest.update(content)
                stream.write(content)
                lengths.append(len(ids))
                num_bytes += len(text.encode())
            progress(len(lengths))
    if not lengths:
        raise ValueError("there is no document to tokenize; look at the corpus and its split")
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    np.save(partial / OFFSETS_NAME, offsets)
    info = {
        "source": source,
        "documents": len(lengths),
        "tokens": int(offsets[-1]),
        "bytes": num_bytes,
        "bytes_per_token": round(num_bytes / max(1, int(offsets[-1])), 4),
        "dtype": dtype.name,
        "vocab_size": tokenizer.num_tokens,
        "tokens_sha256": digest.hexdigest(),
    }
    (partial / INFO_NAME).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    partial.rename(out)
    return info


def _grouped(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while group := list(islice(iterator, size)):
        yield group


class Dataset:
    """Documents as token ids, mapped from disk: opening costs nothing, reading a few pages."""

    def __init__(self, tokens: Tokens, offsets: NDArray[np.int64], tokenizer: Tokenizer) -> None:
        if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(tokens):
            raise ValueError(
                f"offsets must go from 0 to the {len(tokens)} tokens; tokenize the corpus again"
            )
        self.tokens, self.offsets, self.tokenizer = tokens, offsets, tokenizer

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Dataset":
        """Map a dataset folder. Raises ValueError if its files do not fit together."""
        root = Path(folder)
        if not (root / INFO_NAME).is_file():
            raise ValueError(f"{root} is no dataset; `data tokenize` makes one")
        info = json.loads((root / INFO_NAME).read_text(encoding="utf-8"))
        dtype = np.dtype(info["dtype"]).newbyteorder("<")
        if (root / TOKENS_NAME).stat().st_size != info["tokens"] * dtype.itemsize:
            raise ValueError(f"{root / TOKENS_NAME} is cut short; tokenize the corpus again")
        tokens = np.memmap(root / TOKENS_NAME, dtype, mode="r")
        offsets = np.load(root / OFFSETS_NAME)
        return cls(tokens, offsets, Tokenizer.from_file(root / TOKENIZER_NAME))

    @classmethod
    def from_texts(cls, texts: Sequence[str], tokenizer: Tokenizer) -> "Dataset":
        """A dataset in memory, for small things."""
        encoded = tokenizer.encode_many(texts, named=False)
        offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int64)
        return cls(np.asarray([i for ids in encoded for i in ids], np.uint32), offsets, tokenizer)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def document(self, index: int) -> Tokens:
        """Token ids of one document, a view of the file."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def bytes_of(self, tokens: NDArray[np.integer[Any]]) -> bytes:
        """Return the exact bytes of a run of tokens."""
        return b"".join(map(self.tokenizer.token_bytes.__getitem__, tokens.tolist()))

    @cached_property
    def digest(self) -> str:
        """Identifies the documents and their order: a resumed run must see the same ones."""
        parts = hashlib.sha256(np.ascontiguousarray(self.offsets).tobytes())
        ends = [self.tokens[: 1 << 16], self.tokens[-(1 << 16) :]]
        for run in ends:  # the offsets tell most datasets apart; reading it all would cost seconds
            parts.update(np.ascontiguousarray(run, np.uint32).tobytes())
        return parts.hexdigest()[:16]


def read_info(folder: Path) -> dict[str, Any]:
    """The description that `tokenize` wrote."""
    info: dict[str, Any] = json.loads((folder / INFO_NAME).read_text(encoding="utf-8"))
    return info


def verify(folder: Path) -> None:
    """Compare the token file with its checksum; raises ValueError if it is damaged."""
    if file_digest(folder / TOKENS_NAME) != read_info(folder)["tokens_sha256"]:
        raise ValueError(f"{folder / TOKENS_NAME} is damaged; tokenize the corpus again")
