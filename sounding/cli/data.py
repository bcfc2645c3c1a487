"""`data`: build, inspect and tokenize corpora."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import MofNCompleteColumn

from sounding.cli.textbook import textbook
from sounding.progress import progress_bar

if TYPE_CHECKING:
    from sounding.data.manifest import Manifest

_COLUMNS = ("documents", "MB", "skipped", "copies")
_FOLDER = click.Path(file_okay=False, path_type=Path)
_CORPUS = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def data() -> None:
    """Build and tokenize training data."""


data.add_command(textbook)


@data.command()
@click.argument("out", type=_FOLDER)
@click.option("--manifest", help="TOML file of pinned packages, or 'shipped' for the default one.")
@click.option(
    "--source",
    "folders",
    type=_FOLDER,
    multiple=True,
    help="Folder or git working tree to read; can be given repeatedly.",
)
@click.option(
    "--heldout",
    multiple=True,
    metavar="NAME",
    help="Hold out this package for evaluation; can be given repeatedly.",
)
@click.option(
    "--exclude",
    type=_FILE,
    multiple=True,
    help="JSONL file; documents that overlap its texts are left out. Can be given repeatedly.",
)
@click.option(
    "--suffix",
    "suffixes",
    multiple=True,
    default=(".py",),
    show_default=True,
    help="Suffix of the files to read; can be given repeatedly.",
)
@click.option(
    "--threshold",
    default=0.7,
    show_default=True,
    help="Similarity from which documents are near duplicates.",
)
@click.option(
    "--cache", type=_FOLDER, help="Folder of downloads.  [default: the user's cache folder]"
)
@click.option("--overwrite", is_flag=True, help="Replace a corpus of other sources in OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON.")
def build(
    out: Path,
    manifest: str | None,
    folders: tuple[Path, ...],
    heldout: tuple[str, ...],
    exclude: tuple[Path, ...],
    suffixes: tuple[str, ...],
    threshold: float,
    cache: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a corpus to the folder OUT.

    By default the sources are those of the shipped manifest: pinned public packages, downloaded
    with pip, and the standard library. With --source they are only the given folders, unless
    --manifest is given too. The same command resumes an interrupted build.
    """
    from sounding.data import corpus, overlap
    from sounding.data import manifest as pins
    from sounding.data.sources import folder_source

    keep_out, digest = None, ""
    if exclude:
        keep_out = overlap.Overlap(text for path in exclude for text in overlap.read_texts(path))
        digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in exclude)).hexdigest()
    listed = None
    if manifest or not folders:
        shipped = manifest in (None, "shipped")
        listed = pins.read_manifest(pins.SHIPPED if shipped else Path(str(manifest)))
    settings = corpus.CorpusSettings(
        suffixes=suffixes,
        threshold=threshold,
        overlap_digest=digest,
        left_out=listed.left_out if listed else (),
    )
    with _bar() as show:
        for folder in folders:
            if folder.is_dir() and not any(path.suffix in suffixes for path in folder.rglob("*")):
                raise ValueError(
                    f"{folder} has no file that ends in {', '.join(suffixes)} (--suffix)"
                )
        sources = [folder_source(folder, "train") for folder in folders]
        if listed:
            sources = _public_sources(listed, cache, show) + sources
        sources = _held_out(sources, heldout)
        stats = corpus.build(
            out, sources, settings, overlap=keep_out, overwrite=overwrite, progress=show
        )
    if as_json:
        click.echo(json.dumps(stats))
    else:
        _print_stats(stats)


def _public_sources(listed: "Manifest", cache: Path | None, show: Any) -> list[Any]:
    """Download the packages of a manifest; the standard library too. Reports all failures."""
    from sounding.data import manifest as pins
    from sounding.data.sources import standard_library_source, wheel_source

    folder = (cache or pins.user_cache_folder()) / "packages"
    sources, failures = [], []
    for index, package in enumerate(listed.packages):
        show(f"fetching {package.name}", index, len(listed.packages))
        try:
            sources.append(wheel_source(package, pins.fetch(package, listed.target, folder)))
        except ValueError as error:
            failures.append(str(error))
    if failures:
        raise ValueError(
            "\n".join(failures) + f"\n{len(failures)} of {len(listed.packages)} packages are "
            "missing; run the same command again to download only those"
        )
    if listed.standard_library:
        sources.append(standard_library_source(listed.standard_library))
    return sources


def _held_out(sources: list[Any], names: tuple[str, ...]) -> list[Any]:
    from dataclasses import replace

    unknown = sorted(set(names) - {source.name for source in sources})
    if unknown:
        raise ValueError(
            f"--heldout {', '.join(unknown)}: no source has this name; the sources are "
            + ", ".join(source.name for source in sources)
        )
    return [replace(s, split="heldout") if s.name in names else s for s in sources]


@contextmanager
def _bar() -> Iterator[Any]:
    """A progress bar on stderr; yields a function (what, done, total) that updates it."""
    with progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield show


def _print_stats(stats: dict[str, Any]) -> None:
    row = "{:18} {:12} {:8} {:>9} {:>8} {:>8} {:>6}  {}"
    click.echo(row.format("package", "version", "split", *_COLUMNS, "licence"))
    for name, entry in stats["packages"].items():
        skipped = {reason: n for reason, n in entry["skipped"].items() if reason != "type"}
        copies = skipped.pop("duplicate", 0) + skipped.pop("near-duplicate", 0)
        numbers = [f"{entry['documents']:,}", f"{entry['bytes'] / 1e6:.2f}"]
        numbers += [f"{sum(skipped.values()):,}", f"{copies:,}"]
        click.echo(row.format(name, entry["version"], entry["split"], *numbers, entry["license"]))
    click.echo()
    for split, entry in stats["splits"].items():
        click.echo(f"{split}: {entry['documents']:,} documents, {entry['bytes'] / 1e6:.1f} MB")
    reasons = sorted(stats["skipped"].items(), key=lambda pair: -pair[1])
    click.echo("skipped: " + ", ".join(f"{reason} {n:,}" for reason, n in reasons))
    size = sum(stats["shards"].values())
    click.echo(f"{len(stats['shards'])} shards, {size / 1e6:.1f} MB compressed")


@data.command()
@click.argument("corpus", type=_CORPUS)
@click.option(
    "--vocab-size", required=True, type=int, help="Number of ids, including named tokens."
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File to write, a tokenizer.json."
)
@click.option(
    "--megabytes", default=100.0, show_default=True, help="Maximum amount of text to train on."
)
def vocabulary(corpus: Path, vocab_size: int, out: Path, megabytes: float) -> None:
    """Train a tokenizer on the training split of the folder CORPUS.

    If the split has more text than --megabytes, documents are taken evenly from all of it.
    """
    from sounding.data.corpus import read_stats
    from sounding.data.documents import read_documents
    from sounding.text.tokenizer import train

    total = read_stats(corpus)["splits"]["train"]["bytes"]
    share = min(1.0, megabytes * 1e6 / max(1, total))
    texts = (
        document.text
        for index, document in enumerate(read_documents(corpus, "train"))
        if int((index + 1) * share) > int(index * share)
    )
    made = train(texts, vocab_size, progress=True)
    made.save(out)
    click.echo(f"{out}: {made.num_tokens:,} tokens, trained on {share:.0%} of the text", err=True)


@data.command()
@click.argument("corpus", type=_CORPUS)
@click.option("--tokenizer", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=_FOLDER, required=True, help="Folder of the dataset to write.")
@click.option("--split", default="train", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the description as JSON.")
def tokenize(corpus: Path, tokenizer: Path, out: Path, split: str, as_json: bool) -> None:
    """Tokenize one split of the folder CORPUS: a dataset is a flat file of token ids."""
    from sounding.data.corpus import read_stats
    from sounding.data.dataset import tokenize as write_dataset
    from sounding.data.documents import read_documents
    from sounding.text.tokenizer import Tokenizer

    stats = read_stats(corpus)
    total = stats["splits"].get(split, {}).get("documents", 0)
    with _bar() as show:
        info = write_dataset(
            (document.text for document in read_documents(corpus, split)),
            Tokenizer.from_file(tokenizer),
            out,
            source=f"{split} of corpus {stats['identity'][:16]}",
            progress=lambda done: show("tokenizing", done, total),
        )
    if as_json:
        click.echo(json.dumps(info))
    else:
        click.echo(
            f"{info['documents']:,} documents, {info['tokens']:,} tokens of {info['bytes']:,} "
            f"bytes: {info['bytes_per_token']:.2f} bytes per token"
        )


@data.command()
@click.argument("corpus", type=_CORPUS)
@click.argument("out", type=_FOLDER)
@click.option("--split", default="train", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON.")
def functions(corpus: Path, out: Path, split: str, as_json: bool) -> None:
    """Extract self-contained functions from the folder CORPUS to the corpus OUT.

    The functions are short and documented and use only the standard library; the imports that they
    need precede them. `data tokenize OUT` makes a dataset for a mixture.
    """
    from sounding.data.corpus import read_stats
    from sounding.data.functions import mine

    total = read_stats(corpus)["splits"].get(split, {}).get("documents", 0)
    with _bar() as show:
        stats = mine(corpus, out, split, progress=lambda done: show("reading", done, total))
    if as_json:
        click.echo(json.dumps(stats))
    else:
        _print_stats(stats)


@data.command()
@click.argument("corpus", type=_CORPUS)
@click.option("--split", help="Print the documents of this split as JSONL.")
@click.option("--package", help="With --split: only the documents of this package.")
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON.")
def show(corpus: Path, split: str | None, package: str | None, as_json: bool) -> None:
    """Print the statistics of the folder CORPUS, or its documents."""
    from dataclasses import asdict

    from sounding.data.corpus import read_stats
    from sounding.data.documents import read_documents

    stats = read_stats(corpus)
    if package and not split:
        raise ValueError("--package requires --split")
    if split:
        for document in read_documents(corpus, split):
            if package in (None, document.package):
                click.echo(json.dumps(asdict(document), ensure_ascii=False))
    elif as_json:
        click.echo(json.dumps(stats))
    else:
        _print_stats(stats)


@data.command()
@click.argument("file", type=_FILE)
@click.option("--tokenizer", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=_FOLDER, required=True, help="Folder of the dataset to write.")
def problems(file: Path, tokenizer: Path, out: Path) -> None:
    """Tokenize the training rows of MBPP: a dataset for a mixture (`data.mixture`).

    A document is the description of a row as a comment, followed by the solution. Rows that repeat
    one of the evaluation rows are left out.
    """
    from sounding.data.dataset import tokenize as write_dataset
    from sounding.tasks.mbpp import REPEATED_IDS, TRAIN_IDS, read_mbpp, training_text
    from sounding.text.tokenizer import Tokenizer

    rows = [row for row in read_mbpp(file, TRAIN_IDS) if row.number not in REPEATED_IDS]
    texts = map(training_text, rows)
    info = write_dataset(texts, Tokenizer.from_file(tokenizer), out, source="MBPP, training rows")
    click.echo(f"{info['documents']:,} documents, {info['tokens']:,} tokens")
