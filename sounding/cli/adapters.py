"""`adapter`: look into adapters, and exchange them with the PEFT library."""

import json
from pathlib import Path

import click

from sounding.loading import find_model, open_checkpoint, weights_digest

_FOLDER = click.Path(path_type=Path)
_EXISTING = click.Path(exists=True, path_type=Path)
_model_option = click.option(
    "--model", help="Folder of the model it was made for.  [default: the shipped one]"
)


@click.group()
def adapter() -> None:
    """Look into an adapter, and exchange it with the PEFT library.

    \b
    Examples:
      sounding adapter inspect .sounding/adapter
      sounding adapter export .sounding/adapter for-peft
    """


@adapter.command()
@click.argument("source", type=_EXISTING)
@_model_option
def inspect(source: Path, model: str | None) -> None:
    """Describe an adapter as JSON: its size, its deltas, whether it fits the model.

    Keys: bytes, parameters, factor, base (digest of the weights it was made for), matches_base,
    deltas ({module: rank}).
    """
    from sounding.weights.adapters import read_adapter

    base = find_model(model)
    found = read_adapter(source, open_checkpoint(base).config)
    facts = {
        "bytes": found.nbytes,
        "parameters": found.num_parameters,
        "factor": found.factor,
        "base": found.base,
        "matches_base": found.base == weights_digest(base),
        "deltas": {module: delta.rank for module, delta in found.deltas.items()},
    }
    click.echo(json.dumps(facts, indent=2))


@adapter.command()
@click.argument("source", type=_EXISTING)
@click.argument("destination", type=_FOLDER)
@_model_option
def export(source: Path, destination: Path, model: str | None) -> None:
    """Write an adapter as the PEFT library reads it, for the model in the form of transformers.

    `sounding convert MODEL FOLDER --to transformers` writes that form of the model.
    """
    from sounding.weights.adapters import read_adapter
    from sounding.weights.peft import write_peft

    base = find_model(model)
    config = open_checkpoint(base).config
    write_peft(read_adapter(source, config), config, destination, base=base.resolve().name)
    click.echo(f"{destination}: an adapter for PeftModel.from_pretrained", err=True)


@adapter.command("import")
@click.argument("source", type=_EXISTING)
@click.argument("destination", type=_FOLDER)
@_model_option
def import_(source: Path, destination: Path, model: str | None) -> None:
    """Read an adapter that the PEFT library wrote, and write it as `serve --adapter` takes it.

    It is bound to the model that is named: PEFT's files do not say which weights it was made for.
    """
    from sounding.weights.adapters import write_adapter
    from sounding.weights.peft import read_peft

    base = find_model(model)
    digest = weights_digest(base)
    made = read_peft(source, open_checkpoint(base).config, base=digest)
    click.echo(write_adapter(made, destination))
