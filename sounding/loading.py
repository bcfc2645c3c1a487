"""Find a model, open it, run it: from a name or folder to an engine that generates.

Everything that needs a running model starts here: the commands, evaluation, benchmarks and
`sounding.load`. It prints nothing and knows no command line.
"""

import atexit
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sounding.files import file_facts
from sounding.presets import PRESETS
from sounding.runtime import keep_what_is_loaded, prepare_process

if TYPE_CHECKING:  # PyTorch takes a second to import, and many errors are found without it
    from sounding.engine.batch import Batch
    from sounding.engine.engine import Engine
    from sounding.model.transformer import Transformer
    from sounding.text.tokenizer import Tokenizer
    from sounding.weights.checkpoint import Checkpoint

SHIPPED_NAME = "nano"
SHIPPED = Path(__file__).parent / "assets" / SHIPPED_NAME

_RESIDENT_SHARE = 4  # weights smaller than a quarter of free memory are read into it at once
_CHECKPOINTS, _MODEL = "checkpoints", "model"  # where `train` leaves the models of a run


# --------------------------------------------------------------------------------------------------
# Find


def find_model(name: str | Path | None = None) -> Path:
    """The folder of the model called `name`: the shipped one by default or as "nano".

    A folder is itself; the folder of a training run is the model of its last checkpoint. A folder
    that is called "nano" is written "./nano". Raises ValueError, saying how to get a model, for
    anything else.
    """
    if name is None or name == SHIPPED_NAME:
        return _shipped()
    folder = Path(name)
    if not folder.is_dir():
        raise ValueError(unknown_model(str(name)))
    if not (folder / "config.json").is_file() and (folder / _CHECKPOINTS).is_dir():
        return _last_checkpoint(folder)
    return folder


def _shipped() -> Path:
    if not (SHIPPED / "config.json").is_file():
        raise ValueError(
            f"no model was named, and none is shipped in {SHIPPED}: give the folder of a "
            "checkpoint (--model); or make one with `data build`, `data vocabulary`, `data "
            "tokenize` and `train nano`, and put it there with `scripts/ship runs/nano "
            f"{SHIPPED}`"
        )
    return SHIPPED


def _last_checkpoint(run: Path) -> Path:
    """The model of a run's last checkpoint. Folders of steps sort by their number."""
    models = sorted(path / _MODEL for path in (run / _CHECKPOINTS).glob("step-*") if path.is_dir())
    if not models:
        raise ValueError(f"{run} is a training run without a checkpoint yet; train it further")
    return models[-1]


def unknown_model(name: str) -> str:
    """The message for a name that is no folder."""
    path = Path(name)
    shape = name.removeprefix("preset:")
    if shape in PRESETS:
        return f"{name!r} is a preset, a shape without weights; give the folder of a checkpoint"
    if path.is_file():
        return f"{name} is a file; give the folder with config.json and the safetensors in it"
    folders = []
    if path.parent.is_dir():
        folders = [str(other) for other in path.parent.iterdir() if other.is_dir()]
    near = difflib.get_close_matches(name, [*PRESETS, *folders], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{name!r} is neither a preset ({', '.join(PRESETS)}) nor a folder{hint}"


# --------------------------------------------------------------------------------------------------
# Open


def open_checkpoint(name: str | Path | None = None) -> "Checkpoint":
    """The checkpoint of the model called `name`, headers only. Raises ValueError with a hint."""
    from sounding.weights.checkpoint import Checkpoint

    return Checkpoint(find_model(name))


def load_network(
    name: str | Path | None = None, *, simulate: bool = False, exact: bool = False
) -> "Transformer":
    """The network of a model: on the native kernels in bfloat16, as the models are published.

    Where they do not serve it, and with `exact`, it computes in float32. There a quantized weight
    is unpacked at every use; where memory allows, once and for all here. `simulate` rounds
    activations to FP8 and FP4 as the deployed network.
    """
    prepare_process()
    network = _load_network(name, simulate=simulate, exact=exact)
    keep_what_is_loaded()
    return network


def _load_network(name: str | Path | None, *, simulate: bool, exact: bool) -> "Transformer":
    import psutil
    import torch

    from sounding.model.layers import DEPLOYED, EXACT
    from sounding.model.native import serves
    from sounding.weights.build import bring_into_memory, load_model
    from sounding.weights.layout import count_parameters

    checkpoint = open_checkpoint(name)
    simulation = DEPLOYED if simulate else EXACT
    available = psutil.virtual_memory().available
    if not exact:
        network = load_model(checkpoint, simulation=simulation, dtype=torch.bfloat16)
        if serves(network):
            size = sum(parameter.nbytes for parameter in network.parameters())
            if size < available / _RESIDENT_SHARE:
                bring_into_memory(network)
            return network
    counts = count_parameters(checkpoint.config)
    fits = 4 * (counts.main + counts.mtp) < available / 2
    return load_model(checkpoint, simulation=simulation, dequantize=torch.float32 if fits else None)


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer beside a model's weights.

    Raises ValueError where there is none, and for one of another model.
    """
    from sounding.text.markup import EOS
    from sounding.text.tokenizer import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json, without which no text can be read")
    prepare_process()
    config = open_checkpoint(folder).config
    tokenizer = Tokenizer.from_file(folder, config.vocab_size)
    ends = tokenizer.named.get(EOS, config.eos_token_id)
    if config.eos_token_id not in (None, ends):
        raise ValueError(
            f"the tokenizer in {folder} ends texts with token {ends}, the model with "
            f"{config.eos_token_id}: they do not belong together"
        )
    return tokenizer


@dataclass
class LoadedModel:
    """A network with the tokenizer that lies beside its weights, and the engines that run it."""

    folder: Path
    network: "Transformer"
    tokenizer: "Tokenizer"
    files: str = ""
    """Facts of the files of its weights, from before they were read (see `file_facts`)."""
    _engines: "list[Engine]" = field(default_factory=list)

    def engine(
        self, prefix_store: Path | None = None, store_bytes: int | None = None, **settings: Any
    ) -> "Engine":
        """An engine that runs it until `close`; `settings` are those of `EngineSettings`."""
        engine = start_engine(
            *(self.network, self.tokenizer, prefix_store, store_bytes),
            files=self.files,
            **settings,
        )
        self._engines.append(engine)
        return engine

    def batch(self, width: int) -> "Batch":
        """Continues many prompts with it, `width` at a time."""
        from sounding.engine.batch import Batch

        return Batch(self.engine(width=width))

    def close(self) -> None:
        """Stop its engines. Safe to call twice."""
        while self._engines:
            engine = self._engines.pop()
            engine.close()
            atexit.unregister(engine.close)


def open_model(name: str | Path | None = None) -> LoadedModel:
    """Load network and tokenizer of a model. Raises ValueError saying what is missing or wrong."""
    folder = find_model(name)
    tokenizer = load_tokenizer(folder)  # first: it is quick, and its errors need no weights
    files = file_facts(folder.glob("*.safetensors"))
    return LoadedModel(folder, load_network(folder), tokenizer, files)


# --------------------------------------------------------------------------------------------------
# Run


def start_engine(
    network: "Transformer",
    tokenizer: "Tokenizer | None",
    prefix_store: Path | None = None,
    store_bytes: int | None = None,
    *,
    files: str = "",
    **settings: Any,
) -> "Engine":
    """An engine for a network, closed at the latest when the process ends.

    `prefix_store` is the folder where prefixes are kept on disk, within `store_bytes`; `files` are
    facts of the files the weights were read from, as `file_facts` gives them. Raises ValueError for
    a folder that is no store.
    """
    from sounding.engine.engine import Engine
    from sounding.engine.exact import splits_are_exact
    from sounding.engine.prefix.store import PrefixStore, state_identity
    from sounding.engine.prefix.weights_digest import weights_digest
    from sounding.engine.settings import EngineSettings

    options = EngineSettings(exact_splits=splits_are_exact(network), **settings)
    store = None
    if prefix_store is not None:
        limit = {} if store_bytes is None else {"limit_bytes": store_bytes}
        weights = weights_digest(network, files, prefix_store)
        store = PrefixStore(prefix_store, state_identity(network, options, weights), **limit)
    engine = Engine(network, tokenizer, options, store=store)
    # A thread that still runs native code while the interpreter ends would abort the process.
    atexit.register(engine.close)
    return engine
