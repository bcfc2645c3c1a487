"""What tuning reads: the code of a folder, what is held out of it, and other code.

Every tenth file, chosen by its path, is held out, so that the effect is measured on text that was
not trained on, the same files in every later call. Files of the standard library of the running
Python are read in between, so that what the model knew is not forgotten.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sounding.data import corpus
from sounding.data.dataset import read_info, tokenize
from sounding.data.documents import Document, read_documents
from sounding.data.shares import Share
from sounding.data.sources import (
    DocumentSource,
    RawFile,
    commit_source,
    folder_source,
    standard_library_source,
)
from sounding.files import write_file
from sounding.text.tokenizer import Tokenizer

LEAST_TOKENS = 2_000
_HELD_OUT = 10  # one of so many files
_GENERAL_FILES = 120  # of the standard library; about 400,000 tokens
_GENERAL_SHARE = 0.2  # of the tokens that are read
_KNOWN_SHARE = 0.3  # of the others, where an earlier call learned most of the folder
_NOT_GENERAL = ("test/", "tests/", "idlelib/", "lib2to3/", "site-packages/", "encodings/")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TuneData:
    """Datasets made of a folder, and the texts to measure with."""

    shares: tuple[Share, ...]
    """What is trained on."""
    held_out: Path | None
    """A dataset; None where there are too few files to hold any out."""
    held_out_texts: Sequence[tuple[str, str]]
    """Path and text of the files that are held out."""
    general_texts: Sequence[tuple[str, str]]
    """The same of the standard library."""
    documents: int
    tokens: int
    """To train on, other code left out."""
    fresh_share: float
    """Share of the text that no earlier call has learned."""
    learned: Collection[str]
    """Digests of all texts that will have been learned."""


def prepare(
    folder: Path,
    model: Path,
    out: Path,
    *,
    since: str | None = None,
    suffixes: tuple[str, ...] = (".py",),
    replay: bool = True,
    learned: Collection[str] = (),
    progress: Progress = lambda what, done, total: None,
) -> TuneData:
    """Filter and tokenize the code in `folder`, or in its commit `since`, into datasets in `out`.

    `model` is the folder of the model, whose tokenizer is used; `learned` are digests of texts that
    the adapter to go on from has learned. What `out` holds of an interrupted call is made anew.
    Raises ValueError where there is too little text to learn from.
    """
    source = folder_source(folder, "train")
    if since is not None:
        source = commit_source(folder, since, "train")
    documents = _documents(source, out / "corpus", suffixes, progress)
    if not documents:
        raise ValueError(
            f"{folder} holds no {' or '.join(suffixes)} file to learn from; name another folder, "
            "or other suffixes with --suffix"
        )
    held = _held_out(documents)
    train = [document for document in documents if document.path not in held]
    fresh = [document for document in train if document.sha256 not in learned]
    known = [document for document in train if document.sha256 in learned]
    tokenizer = Tokenizer.from_file(model)
    parts: dict[str, list[Document]] = {"project": fresh or known}
    if fresh and known:
        parts["known"] = known
    general: list[Document] = []
    if replay:
        general = _documents(_general(), out / "general", (".py",), progress)
        parts["general"] = [d for d in general if d.path not in _held_out(general)]
    sizes = {}
    for name, some in parts.items():
        progress(f"tokenizing {name} code", 0, 1)
        sizes[name] = _tokenize(some, tokenizer, out / "data" / name)
    own = [document for document in documents if document.path in held]
    held_out = out / "data" / "heldout" if own else None
    if held_out is not None:
        _tokenize(own, tokenizer, held_out)
    tokens = sizes["project"] + sizes.get("known", 0)
    if tokens < LEAST_TOKENS:
        raise ValueError(
            f"{folder} holds {tokens:,} tokens of code, too few to learn from; at least "
            f"{LEAST_TOKENS:,} are needed"
        )
    whole = sum(len(document.text) for document in train)
    return TuneData(
        shares=tuple(_shares(out / "data", parts)),
        held_out=held_out,
        held_out_texts=[(document.path, document.text) for document in own],
        general_texts=[(d.path, d.text) for d in general if d.path in _held_out(general)],
        documents=len(documents),
        tokens=tokens,
        fresh_share=sum(len(document.text) for document in fresh) / whole,
        learned=sorted({document.sha256 for document in train}),
    )


def _shares(folder: Path, parts: Collection[str]) -> Iterator[Share]:
    general = _GENERAL_SHARE if "general" in parts else 0.0
    known = (1 - general) * _KNOWN_SHARE if "known" in parts else 0.0
    weights = {"project": 1 - general - known, "known": known, "general": general}
    for name in parts:
        yield Share(name=name, path=str((folder / name).resolve()), weight=weights[name])


def _documents(
    source: DocumentSource, out: Path, suffixes: tuple[str, ...], progress: Progress
) -> list[Document]:
    """The files of a source that pass the filters: no copies, nothing generated, no credentials."""
    settings = corpus.CorpusSettings(suffixes=suffixes)
    stats = corpus.build(out, [source], settings, overwrite=True, progress=progress)
    return list(read_documents(out, "train")) if stats["documents"] else []


def _held_out(documents: Sequence[Document]) -> set[str]:
    """Paths of the files to hold out; none of fewer than ten."""
    if len(documents) < _HELD_OUT:
        return set()
    places = {document.path: _place(document.path) for document in documents}
    chosen = {path for path, place in places.items() if place % _HELD_OUT == 0}
    return chosen or {min(places, key=places.__getitem__)}


def _place(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode("utf-8", "replace")).digest()[:8], "little")


def _general() -> DocumentSource:
    """A part of the standard library, always the same of one Python."""
    whole = standard_library_source("train")

    def files() -> Iterator[RawFile]:
        found = [
            file
            for file in whole.files()
            if file.path.endswith(".py") and not any(part in file.path for part in _NOT_GENERAL)
        ]
        yield from sorted(found, key=lambda file: _place(file.path))[:_GENERAL_FILES]

    return dataclasses.replace(whole, files=files, version=f"{whole.version} in part")


def _tokenize(documents: Sequence[Document], tokenizer: Tokenizer, out: Path) -> int:
    """Make a dataset of texts; returns its tokens."""
    shutil.rmtree(out, ignore_errors=True)
    texts = (document.text for document in documents)
    tokenize(texts, tokenizer, out, source=f"{out.name} code")
    return int(read_info(out)["tokens"])


# --------------------------------------------------------------------------------------------------
# What an adapter has learned


def read_learned(path: Path) -> list[str]:
    """Digests of the texts that an adapter has learned, none where nothing says."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [digest for digest in found if isinstance(digest, str)]


def write_learned(path: Path, learned: Collection[str]) -> None:
    """Keep them for the next call."""
    write_file(path, json.dumps(list(learned)).encode())
