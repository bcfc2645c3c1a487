"""Write rendered documents as a corpus, the folder that `data tokenize` reads."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sounding.data import corpus
from sounding.data.sources import DocumentSource, RawFile
from sounding.textbook.exercises import Exercise
from sounding.textbook.rendering import Rendered, render

LICENSE = "MIT"


def write_corpus(
    out: Path,
    exercises: Sequence[Exercise],
    *,
    splits: Sequence[str],
    variants: int,
    seed: int,
    overwrite: bool = False,
    progress: corpus.Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write the documents of these splits to the folder `out` and return the statistics.

    Held-out topics form the split "heldout", all others "train". Variants are near duplicates by
    design, so only equal documents are dropped. Raises ValueError if a split has no exercises or
    the folder holds something else.
    """
    sources = []
    for split in splits:
        chosen = [e for e in exercises if e.held_out == (split == "heldout")]
        if not chosen:
            raise ValueError(f"there is no exercise for the split {split}; see held_out of topics")
        sources.append(_source(split, list(render(chosen, variants, seed))))
    settings = corpus.CorpusSettings(threshold=1.0)
    return corpus.build(out, sources, settings, overwrite=overwrite, progress=progress)


def _source(split: str, documents: Sequence[Rendered]) -> DocumentSource:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.path}\0{document.text}\0".encode())

    def files() -> Iterator[RawFile]:
        for document in documents:
            content = document.text.encode()
            yield RawFile(document.path, len(content), lambda content=content: content)  # type: ignore[misc]

    return DocumentSource(
        name="textbook" if split == "train" else f"textbook-{split}",
        version=digest.hexdigest()[:12],
        license=LICENSE,
        split=split,
        fingerprint=digest.hexdigest(),
        public=False,
        files=files,
    )
