"""Building a corpus: read, filter, deduplicate, split, write.

A corpus is a folder of compressed JSONL shards, `train-00000.jsonl.xz` and so on for each split,
and `stats.json`, which is written last. Work is staged source by source: an interrupted build
resumes after the last finished source, and its result is identical to the byte.
"""

import hashlib
import json
import logging
import lzma
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sounding.data.documents import Document, ShardWriter, replacing
from sounding.data.duplicates import THRESHOLD, Duplicates, signature
from sounding.data.filters import content_reason, decode, path_reason
from sounding.data.manifest import SPLITS, require_split
from sounding.data.overlap import Overlap
from sounding.data.sources import DocumentSource, RawFile
from sounding.files import write_file

logger = logging.getLogger(__name__)

STATS_NAME = "stats.json"
SHARD_BYTES = 64 * 2**20  # of text; about 10 MB compressed
_RULES = 1  # raised when a change of the filters makes staged work stale
_STAGE_NAME = ".stage"

Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """The filters that decide which files become documents."""

    suffixes: tuple[str, ...] = (".py",)
    threshold: float = THRESHOLD  # Jaccard similarity of near duplicates; 1 keeps them
    shard_bytes: int = SHARD_BYTES
    overlap_digest: str = ""  # identifies the texts to keep out
    left_out: tuple[str, ...] = ()  # SHA-256 of texts that become no documents

    def __post_init__(self) -> None:
        for suffix in self.suffixes:
            if not suffix.startswith("."):
                raise ValueError(f"suffix {suffix!r} must begin with a dot, like '.py'")
        if not self.suffixes:
            raise ValueError("suffixes is empty; name at least one, like '.py'")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes = {self.shard_bytes} must be at least 1")


def build(
    out: Path,
    sources: Sequence[DocumentSource],
    settings: CorpusSettings | None = None,
    *,
    overlap: Overlap | None = None,
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write a corpus to the folder `out` and return its statistics.

    `overlap` refuses documents that repeat evaluation texts; the settings have their digest. An
    interrupted build is continued; a finished one is left alone if nothing changed. Raises
    ValueError for two sources of one name, and for a folder in use unless `overwrite` is set.
    """
    settings = settings or CorpusSettings()
    sources = _ordered(sources)
    identity = _digest(settings, [_source_key(source) for source in sources])
    stage = out / _STAGE_NAME
    finished = _finished(out, identity, overwrite)
    if finished:
        shutil.rmtree(stage, ignore_errors=True)  # where the last step was interrupted
        return finished
    stage.mkdir(parents=True, exist_ok=True)
    staged = []
    for index, source in enumerate(sources):
        progress(f"reading {source.name}", index, len(sources))
        staged.append(_stage(stage, source, settings, overlap))
    stats = _write(out, sources, staged, settings, progress)
    stats = {"identity": identity, "python": platform.python_version(), **stats}
    write_file(out / STATS_NAME, json.dumps(stats, indent=1).encode() + b"\n")
    shutil.rmtree(stage)
    return stats


def _ordered(sources: Sequence[DocumentSource]) -> list[DocumentSource]:
    """Held-out sources first: of near duplicates across the split, training loses its one."""
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"sources of the same name: {', '.join(twice)}; rename one")
    if not sources:
        raise ValueError("there is no source to build from; name a folder or a manifest")
    for source in sources:
        require_split(f"split of {source.name}", source.split)
    return sorted(sources, key=lambda source: source.split != "heldout")  # stable


def _source_key(source: DocumentSource) -> tuple[str, ...]:
    public = "public" if source.public else "own"
    return (source.name, source.version, source.license, source.split, source.fingerprint, public)


def _digest(*parts: object) -> str:
    """Identity of work: of its inputs, of our rules, and of the Python whose parser judges."""
    text = repr((parts, _RULES, platform.python_version()))
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(out: Path, identity: str, overwrite: bool) -> dict[str, Any] | None:
    """The statistics of a finished build of the same sources; else clear `out` if allowed."""
    path = out / STATS_NAME
    if path.is_file():
        stats: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if stats.get("identity") == identity:
            return stats
        if not overwrite:
            raise ValueError(
                f"{out} holds a corpus of other sources or settings; choose another folder or "
                "replace it (--overwrite)"
            )
        path.unlink()
    elif out.is_dir() and any(out.iterdir()) and not (out / _STAGE_NAME).is_dir():
        raise ValueError(f"{out} holds something else; choose a new folder")
    return None


# --------------------------------------------------------------------------------------------------
# First every source on its own


def _stage(
    folder: Path, source: DocumentSource, settings: CorpusSettings, overlap: Overlap | None
) -> Path:
    """Filter one source into a file whose name depends on all that decides its content.

    Its lines are documents with their signatures; the last one counts what was skipped.
    """
    identity = _digest(_source_key(source), settings.suffixes, settings.overlap_digest)
    path = folder / f"{source.name}-{identity[:16]}.jsonl.xz"
    if not path.exists():
        skipped: Counter[str] = Counter()
        with replacing(path) as temporary, lzma.open(temporary, "wt", preset=0) as stream:
            for row in _filtered(source, settings, overlap, skipped):
                stream.write(json.dumps(row) + "\n")
            stream.write(json.dumps({"skipped": skipped}) + "\n")
    return path


def _filtered(
    source: DocumentSource, settings: CorpusSettings, overlap: Overlap | None, skipped: Counter[str]
) -> Iterator[dict[str, str]]:
    for entry in source.files():
        reason, text = _judge(entry, source, settings, overlap)
        if reason:
            skipped[reason] += 1
            continue
        yield {
            "path": entry.path,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "text": text,
            "signature": signature(text).tobytes().hex(),
        }


def _judge(
    entry: RawFile, source: DocumentSource, settings: CorpusSettings, overlap: Overlap | None
) -> tuple[str | None, str]:
    """The reason to skip a file, or its text."""
    reason = path_reason(entry.path, entry.num_bytes, settings.suffixes)
    if reason:
        return reason, ""
    try:
        content = entry.read()
    except Exception:  # damaged archives raise many kinds, and one file must not stop a build
        return "unreadable", ""
    text = decode(content)
    if text is None:
        return "encoding", ""
    reason = content_reason(entry.path, text, public=source.public)
    if reason is None and overlap is not None and overlap.touches(text):
        reason = "excluded"
    return reason, text


# --------------------------------------------------------------------------------------------------
# Then all of them together


def _write(
    out: Path,
    sources: Sequence[DocumentSource],
    staged: Sequence[Path],
    settings: CorpusSettings,
    progress: Progress,
) -> dict[str, Any]:
    for split in SPLITS:
        for old in [*out.glob(f"{split}-*.jsonl.xz"), *out.glob(f".{split}-*.tmp")]:
            old.unlink()
    writers = {split: ShardWriter(out, split, settings.shard_bytes) for split in SPLITS}
    duplicates = Duplicates(settings.threshold)
    packages, left_out = {}, set(settings.left_out)
    for index, (source, path) in enumerate(zip(sources, staged, strict=True)):
        progress(f"writing {source.name}", index, len(sources))
        writer = writers[source.split]
        packages[source.name] = _write_source(source, path, duplicates, left_out, writer)
    if left_out:
        logger.warning(
            "%d of the %d texts that the manifest leaves out are in no source; the first is %s",
            len(left_out),
            len(settings.left_out),
            min(left_out),
        )
    for writer in writers.values():
        writer.finish()
    progress("written", len(sources), len(sources))
    return describe(packages, [path for split in SPLITS for path in writers[split].paths])


def describe(packages: dict[str, dict[str, Any]], shards: Sequence[Path]) -> dict[str, Any]:
    """Statistics of a corpus from those of its packages."""
    return {
        "documents": sum(entry["documents"] for entry in packages.values()),
        "bytes": sum(entry["bytes"] for entry in packages.values()),
        "splits": _grouped(packages, "split"),
        "licenses": _grouped(packages, "license"),
        "skipped": dict(sum((Counter(e["skipped"]) for e in packages.values()), Counter())),
        "shards": {path.name: path.stat().st_size for path in shards},
        "packages": packages,
    }


def _write_source(
    source: DocumentSource,
    path: Path,
    duplicates: Duplicates,
    left_out: set[str],
    writer: ShardWriter,
) -> dict[str, Any]:
    """Write the documents that are neither copies nor left out; hashes that were met are removed.

    A text that is left out still counts as seen, so its near copies go as well.
    """
    num_documents = num_bytes = 0
    skipped: Counter[str] = Counter()
    with lzma.open(path, "rt") as stream:
        for line in stream:
            row = json.loads(line)
            if "skipped" in row:
                skipped.update(row["skipped"])
                continue
            mark = np.frombuffer(bytes.fromhex(row.pop("signature")), np.uint32)
            reason = duplicates.reason(row["sha256"], mark)
            if row["sha256"] in left_out:
                left_out.remove(row["sha256"])
                reason = "left-out"
            if reason:
                skipped[reason] += 1
                continue
            writer.write(
                Document(package=source.name, version=source.version, license=source.license, **row)
            )
            num_documents += 1
            num_bytes += len(row["text"].encode())
    return {
        "version": source.version,
        "license": source.license,
        "split": source.split,
        "documents": num_documents,
        "bytes": num_bytes,
        "skipped": dict(sorted(skipped.items())),
    }


def _grouped(packages: dict[str, dict[str, Any]], key: str) -> dict[str, dict[str, int]]:
    groups: dict[str, dict[str, int]] = {}
    for entry in packages.values():
        group = groups.setdefault(entry[key], {"packages": 0, "documents": 0, "bytes": 0})
        group["packages"] += 1
        group["documents"] += entry["documents"]
        group["bytes"] += entry["bytes"]
    return dict(sorted(groups.items()))


def read_stats(corpus: Path) -> dict[str, Any]:
    """Read the statistics of a corpus. Raises ValueError for a folder without a finished corpus."""
    path = corpus / STATS_NAME
    if not path.is_file():
        raise ValueError(f"{corpus} holds no finished corpus; `data build {corpus}` makes one")
    stats: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stats
