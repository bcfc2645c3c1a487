"""Bits per byte: the code length of a text under a model, compared with general compressors.

Every token of a document is scored once. A document is read in windows of `context` tokens,
including BOS, that start at multiples of `stride`. After the first window, each token is predicted
from at least context - 1 - stride tokens before it. EOS is not scored, because the end of a text is
not a byte of it.
"""

import lzma
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from sounding.evaluation.model import LogProbs
from sounding.evaluation.statistics import Estimate, bootstrap

Document = tuple[str, str]  # name, text


class Window(NamedTuple):
    """Tokens to read; the last ones are scored."""

    document: int
    tokens: list[int]
    scored: int


def windows(
    tokens: Sequence[int], bos: int, *, context: int, stride: int, document: int = 0
) -> Iterator[Window]:
    """The windows of a document. Raises ValueError if they would skip tokens."""
    if not 1 <= stride < context:
        raise ValueError(f"stride = {stride} must be from 1 to below context = {context}")
    size, done, start = context - 1, 0, 0
    while done < len(tokens):
        end = min(start + size, len(tokens))
        yield Window(document, [bos, *tokens[start:end]], end - done)
        done, start = end, start + stride


def score_documents(
    documents: Sequence[Document],
    encode: Callable[[str], list[int]],
    bos: int,
    logprobs: LogProbs,
    *,
    context: int,
    stride: int,
    batch_tokens: int,
) -> Iterator[dict[str, object]]:
    """Yield a row per finished document: id, bytes, tokens, bits.

    Windows of several documents are read together, up to `batch_tokens` at once.
    """
    bits = [0.0] * len(documents)
    counts = [0] * len(documents)
    pending: list[Window] = []
    reported = 0

    def flush() -> None:
        for window, row in zip(
            pending, logprobs([window.tokens for window in pending]), strict=True
        ):
            bits[window.document] -= math.fsum(row[-window.scored :]) / math.log(2)
        pending.clear()

    def rows(until: int) -> Iterator[dict[str, object]]:
        for index in range(reported, until):
            name, text = documents[index]
            size = len(text.encode())
            yield {"id": name, "bytes": size, "tokens": counts[index], "bits": bits[index]}

    for index, (_, text) in enumerate(documents):
        tokens = encode(text)
        counts[index] = len(tokens)
        for window in windows(tokens, bos, context=context, stride=stride, document=index):
            if pending and sum(len(w.tokens) for w in pending) + len(window.tokens) > batch_tokens:
                flush()
                yield from rows(window.document)
                reported = max(reported, window.document)
            pending.append(window)
    if pending:
        flush()
    yield from rows(len(documents))


def xz_bytes(data: bytes) -> int:
    """Size of the data after `xz -9e`.

    A dictionary larger than the data changes only the time to allocate it.
    """
    size = min(64 * 2**20, max(2**16, 1 << len(data).bit_length()))
    preset = 9 | lzma.PRESET_EXTREME
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": size}]
    return len(lzma.compress(data, check=lzma.CHECK_CRC64, filters=filters))


def brotli_bytes(data: bytes) -> tuple[str, int] | None:
    """Return (command, compressed size), or None if neither program nor package is installed.

    The package has no windows above 16 MiB; for data up to that size the result is the same.
    """
    program = shutil.which("brotli")
    if program is not None:
        command = [program, "-q", "11", "--large_window=30", "--stdout", "-"]
        done = subprocess.run(command, input=data, capture_output=True, check=True)
        return "brotli -q 11 --large_window=30", len(done.stdout)
    try:
        import brotli
    except ImportError:
        return None
    return "brotli -q 11 --lgwin=24", len(brotli.compress(data, quality=11, lgwin=24))


def summarise_bits(rows: Sequence[dict[str, Any]], *, seed: int) -> dict[str, Estimate]:
    """Bits per byte and bytes per token over all documents; intervals resample documents."""
    bits = [(row["bits"], float(row["bytes"])) for row in rows]
    tokens = [(float(row["bytes"]), float(row["tokens"])) for row in rows]
    return {
        "bits_per_byte": bootstrap(bits, seed=seed),
        "bytes_per_token": bootstrap(tokens, seed=seed),
    }


def compressed_sizes(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Sizes of the same bytes after compression: all documents as one stream, and separately.

    In one stream each document has all earlier ones as context; the model has one document.
    """
    parts = [text.encode() for text in texts]
    whole = b"".join(parts)
    rows = []
    for joined, data in ((True, [whole]), (False, parts)):
        done = [brotli_bytes(part) for part in data]
        sizes = [("xz -9e", sum(map(xz_bytes, data)))]
        if done and done[0] is not None:
            sizes.append((done[0][0], sum(size for _, size in filter(None, done))))
        rows += [
            {
                "program": name,
                "documents": "together" if joined else "one by one",
                "bytes": size,
                "bits_per_byte": 8 * size / max(1, len(whole)),
            }
            for name, size in sizes
        ]
    return rows
