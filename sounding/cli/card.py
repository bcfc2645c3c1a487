"""`card`: the model card of a trained model."""

from pathlib import Path

import click

from sounding.loading import find_model

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("folder", metavar="RUN", type=_FOLDER)
@click.argument("results", nargs=-1, type=_FILE)
@click.option("--corpus", type=_FOLDER, required=True, help="Corpus folder, made by `data build`.")
@click.option("--model", help="Folder of the model.  [default: the shipped model]")
@click.option(
    "--note",
    "notes",
    multiple=True,
    help="A sentence to add about the training, such as the machine; can be given repeatedly.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: README.md in the model's folder]",
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def card(
    folder: Path,
    results: tuple[Path, ...],
    corpus: Path,
    model: str | None,
    notes: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
) -> None:
    """Write the model card of a trained model.

    RUN is the folder of the run. RESULTS are files with the output of `eval ... --json`, one object
    after another; results of another model are refused.
    """
    from sounding.evaluation.model_card import card_text, collect_facts
    from sounding.files import write_file

    path = find_model(model)
    written = out or path / "README.md"
    if written.exists() and not overwrite:
        raise ValueError(
            f"{written} exists already; replace it (--overwrite) or choose another file (--out)"
        )
    facts = collect_facts(folder, path, corpus, results, notes)
    write_file(written, card_text(facts).encode())
    click.echo(f"wrote {written}", err=True)
