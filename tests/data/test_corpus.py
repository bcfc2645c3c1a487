"""Building: every reason is counted, the split is clean, an interruption changes nothing."""

import dataclasses
import hashlib
import json
import logging
import lzma
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sounding.data import corpus
from sounding.data.corpus import CorpusSettings, build, read_stats
from sounding.data.documents import read_documents
from sounding.data.filters import REASONS
from sounding.data.overlap import Overlap
from sounding.data.sources import DocumentSource, RawFile, folder_source, wheel_source
from tests.data.conftest import FolderMaker, code, make_wheel

NEAR = code(3).replace("return", "yield", 1)


def reasons() -> dict[str, tuple[str, str | bytes]]:
    """One file for every reason, in the order in which the index must see copies."""
    return {
        "type": ("notes.txt", code(10)),
        "vendored": ("_vendor/a.py", code(11)),
        "test-data": ("tests/data/a.py", code(12)),
        "generated": ("wire_pb2.py", code(13)),
        "minified": ("long.py", code(14) + f"x = '{'ab ' * 400}'\n"),
        "large": ("large.py", "x = 1\n" * 100_000),
        "small": ("small.py", "x = 1\n"),
        "encoding": ("latin.py", "größe = 1\n".encode("latin-1") * 20),
        "binary": ("nul.py", code(15) + "\0"),
        "table": ("table.py", "T = [\n" + "    1.25, 3.5, 9.75,\n" * 40 + "]\n"),
        "syntax": ("old.py", code(16) + "\nprint 'old'\n"),
        "licence": ("gpl.py", "# SPDX-License-Identifier: GPL-2.0\n" + code(17)),
        "secret": ("key.py", code(18) + f"\nkey = 'AKIA{'Q7' * 8}'\n"),
        "duplicate": ("zz_copy.py", code(3)),
        "near-duplicate": ("zz_edited.py", NEAR),
        "excluded": ("answer.py", code(20)),
        "left-out": ("named.py", code(21)),
    }


def small_sources(tmp_path: Path) -> list[DocumentSource]:
    files: dict[str, str | bytes] = {"sample/good.py": code(3), "sample/other.py": code(4)}
    files |= {"sample/" + path: content for path, content in reasons().values()}
    train = wheel_source(*make_wheel(tmp_path / "wheels", files))
    tested = {"tested/a.py": code(30), "tested/b.py": code(31)}
    held = wheel_source(*make_wheel(tmp_path / "wheels", tested, name="tested", split="heldout"))
    leaky = {"leaky/a.py": code(30), "leaky/b.py": code(31).replace("return", "yield", 1)}
    leaky["leaky/c.py"] = code(32)
    return [train, wheel_source(*make_wheel(tmp_path / "wheels", leaky, name="leaky")), held]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_reason_is_counted_once(tmp_path: Path) -> None:
    sources = small_sources(tmp_path)
    intact = sources[0].files
    broken = RawFile("sample/broken.py", 100, lambda: (_ for _ in ()).throw(OSError("bad sector")))

    def files() -> Iterator[RawFile]:
        yield from intact()
        yield broken

    sources[0] = dataclasses.replace(sources[0], files=files)
    settings = CorpusSettings(left_out=(digest(code(21)),))
    stats = build(tmp_path / "out", sources, settings, overlap=Overlap([code(20)]))
    skipped = dict(stats["packages"]["sample"]["skipped"])
    assert skipped.pop("type") == 4  # the note and the wheel's three own files
    assert skipped == dict.fromkeys(REASONS.keys() - {"type"}, 1)
    kept = [d.path for d in read_documents(tmp_path / "out", "train") if d.package == "sample"]
    assert kept == ["sample/good.py", "sample/other.py"]


def test_documents_and_statistics(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = CorpusSettings(left_out=(digest(code(21)),))
    stats = build(out, small_sources(tmp_path), settings, overlap=Overlap([code(20)]))
    assert read_stats(out) == stats
    documents = [d for split in ("heldout", "train") for d in read_documents(out, split)]
    assert stats["documents"] == len(documents) == 5
    assert stats["bytes"] == sum(len(d.text.encode()) for d in documents)
    assert stats["splits"]["heldout"] == {
        "packages": 1,
        "documents": 2,
        "bytes": sum(len(code(seed)) for seed in (30, 31)),
    }
    assert stats["licenses"].keys() == {"MIT"}
    assert stats["shards"] == {p.name: p.stat().st_size for p in sorted(out.glob("*.xz"))}
    content = lzma.decompress((out / "heldout-00000.jsonl.xz").read_bytes())
    line = json.loads(content.splitlines()[0])
    assert line["text"] == code(30) and line["license"] == "MIT" and line["package"] == "tested"


def test_copies_across_the_split_stay_held_out(tmp_path: Path) -> None:
    stats = build(tmp_path / "out", small_sources(tmp_path))
    assert stats["packages"]["tested"]["documents"] == 2
    assert stats["packages"]["leaky"]["documents"] == 1
    assert stats["packages"]["leaky"]["skipped"]["duplicate"] == 1
    assert stats["packages"]["leaky"]["skipped"]["near-duplicate"] == 1


def test_texts_left_out_by_hash_take_their_copies_along(
    tmp_path: Path, make_folder: FolderMaker, caplog: pytest.LogCaptureFixture
) -> None:
    files: dict[str, str | bytes] = {
        "a.py": code(3),
        "b.py": code(3),
        "c.py": NEAR,
        "d.py": code(4),
    }
    sources = [folder_source(make_folder("one", files), "train")]
    plain = build(tmp_path / "plain", sources)
    with caplog.at_level(logging.WARNING):
        stats = build(tmp_path / "out", sources, CorpusSettings(left_out=(digest(code(3)),)))
    assert not caplog.records
    assert [d.path for d in read_documents(tmp_path / "out", "train")] == ["d.py"]
    assert stats["skipped"] == {"left-out": 1, "duplicate": 1, "near-duplicate": 1}
    assert stats["identity"] != plain["identity"]


def test_a_hash_of_no_text_is_reported(
    tmp_path: Path, make_folder: FolderMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """Sources differ from where the hash was taken, and what it was to leave out may be in."""
    source = folder_source(make_folder("one", {"a.py": code(3), "b.py": code(4)}), "train")
    settings = CorpusSettings(left_out=(digest(code(3)), "ab" * 32))
    with caplog.at_level(logging.WARNING):
        build(tmp_path / "out", [source], settings)
    assert (
        f"1 of the 2 texts that the manifest leaves out are in no source; the first is {'ab' * 32}"
        in (caplog.text)
    )


class Killed(BaseException):
    """Ends a build as a signal would: nothing of ours catches it."""


def watch(patch: pytest.MonkeyPatch, before: Callable[[], None]) -> None:
    """Call `before` ahead of every step of a build that gives a file its name or removes files."""
    for owner, name in ((Path, "replace"), (corpus, "write_file"), (shutil, "rmtree")):
        original = getattr(owner, name)

        def step(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            before()
            return original(*args, **kwargs)

        patch.setattr(owner, name, step)


def test_killed_at_any_step_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, settings = small_sources(tmp_path), CorpusSettings(shard_bytes=1500)
    steps: list[int] = []
    with monkeypatch.context() as patch:
        watch(patch, lambda: steps.append(1))
        build(tmp_path / "whole", sources, settings)
    expected = contents(tmp_path / "whole")
    assert len(steps) == 3 + (len(expected) - 1) + 1 + 1  # stages, shards, statistics, clearing
    for last in range(len(steps)):
        left = iter(range(last))

        def countdown(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed

        out = tmp_path / f"killed-{last}"
        with monkeypatch.context() as patch:
            watch(patch, countdown)
            with pytest.raises(Killed):
                build(out, sources, settings)
        build(out, sources, settings)
        assert contents(out) == expected


def test_finished_sources_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = small_sources(tmp_path)
    read: list[str] = []

    def counting(source: DocumentSource) -> DocumentSource:
        def files() -> Iterator[RawFile]:
            read.append(source.name)
            yield from source.files()

        return dataclasses.replace(source, files=files)

    def fail(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_write", fail)
        with pytest.raises(Killed):
            build(tmp_path / "out", list(map(counting, sources)))
    assert read == ["tested", "sample", "leaky"]
    build(tmp_path / "out", list(map(counting, sources)))
    build(tmp_path / "out", list(map(counting, sources)))  # finished: nothing to do
    assert len(read) == 3


def test_folders_in_use(tmp_path: Path, make_folder: FolderMaker) -> None:
    one = folder_source(make_folder("one", {"a.py": code(1)}), "train")
    two = folder_source(make_folder("two", {"a.py": code(2)}), "train")
    build(tmp_path / "out", [one])
    with pytest.raises(ValueError, match="holds a corpus of other sources or settings"):
        build(tmp_path / "out", [two])
    build(tmp_path / "out", [two], overwrite=True)
    assert [d.package for d in read_documents(tmp_path / "out", "train")] == ["two"]
    with pytest.raises(ValueError, match="holds something else"):
        build(tmp_path / "one", [two], overwrite=True)


def test_sources_and_settings_that_make_no_corpus_are_refused(
    tmp_path: Path, make_folder: FolderMaker
) -> None:
    source = folder_source(make_folder("one", {"a.py": code(1)}), "train")
    with pytest.raises(ValueError, match="sources of the same name: one"):
        build(tmp_path / "out", [source, source])
    with pytest.raises(ValueError, match="there is no source"):
        build(tmp_path / "out", [])
    with pytest.raises(ValueError, match="split of one = 'dev' must be"):
        build(tmp_path / "out", [dataclasses.replace(source, split="dev")])
    with pytest.raises(ValueError, match="suffix 'py' must begin with a dot"):
        CorpusSettings(suffixes=("py",))
    with pytest.raises(ValueError, match="suffixes is empty"):
        CorpusSettings(suffixes=())
    with pytest.raises(ValueError, match="shard_bytes = 0"):
        CorpusSettings(shard_bytes=0)
    with pytest.raises(ValueError, match="holds no finished corpus"):
        read_stats(tmp_path)
    with pytest.raises(ValueError, match=r"holds no heldout-\*"):
        list(read_documents(tmp_path, "heldout"))
    build(tmp_path / "out", [source])
    with pytest.raises(ValueError, match="--heldout PACKAGE"):
        list(read_documents(tmp_path / "out", "heldout"))


def test_damaged_shards_are_named(tmp_path: Path, make_folder: FolderMaker) -> None:
    source = folder_source(make_folder("one", {"a.py": code(1), "b.py": code(2)}), "train")
    build(tmp_path / "out", [source])
    shard = tmp_path / "out" / "train-00000.jsonl.xz"
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"train-00000\.jsonl\.xz is damaged after line"):
        list(read_documents(tmp_path / "out", "train"))
