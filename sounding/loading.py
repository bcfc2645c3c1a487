"""Find a model, open it, run it: from a name or folder to an engine that generates.

Everything that needs a running model starts here: the commands, evaluation, benchmarks and
`sounding.load`. It prints nothing and is independent of the command line.
"""

import atexit
import contextlib
import difflib
import importlib.util
import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sounding.files import file_facts
from sounding.ops.cpu import library, report_missing
from sounding.presets import PRESETS
from sounding.runtime import keep_what_is_loaded, prepare_process
from sounding.simulation import DEPLOYED, EXACT, Simulation

if TYPE_CHECKING:  # imported when called, since many errors are found without them
    from sounding.engine.batch import Batch
    from sounding.engine.engine import Engine
    from sounding.engine.network import Network
    from sounding.model.reference_network import ReferenceNetwork
    from sounding.model.transformer import Transformer
    from sounding.text.fim_format import FimFormat
    from sounding.text.tokenizer import Tokenizer
    from sounding.weights.adapters import Adapter
    from sounding.weights.checkpoint import Checkpoint

_log = logging.getLogger(__name__)

SHIPPED_NAME = "nano"
SHIPPED = Path(__file__).parent / "assets" / SHIPPED_NAME

# What only training, conversion and the reference need: modules and their names.
_TRAINING = {
    "torch": "PyTorch",
    "jaxtyping": "jaxtyping",
    "matplotlib": "Matplotlib",
    "gguf": "gguf",
}

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
    models = sorted((run / _CHECKPOINTS).glob(f"step-*/{_MODEL}"))
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
    near = difflib.get_close_matches(name, [*PRESETS, *folders], n=1, cutoff=0.75)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{name!r} is neither a preset ({', '.join(PRESETS)}) nor a folder{hint}"


# --------------------------------------------------------------------------------------------------
# Open


def open_checkpoint(name: str | Path | None = None) -> "Checkpoint":
    """The checkpoint of the model called `name`, headers only. Raises ValueError with a hint."""
    from sounding.weights.checkpoint import Checkpoint

    return Checkpoint(find_model(name))


def open_with_drafter(folder: Path, drafter: str | Path | None = None) -> "Checkpoint":
    """The checkpoint of a model joined with a DSpark drafter that lies beside it: the one in the
    folder `drafter` of its own if there is one, or that of the folder given; "none": without.

    Raises ValueError, naming what does not fit, for a drafter of another shape or other weights.
    """
    from sounding.weights.checkpoint import Checkpoint

    if drafter is None and not (folder / "drafter").is_dir():  # most models
        return Checkpoint(folder)
    from sounding.weights.drafter import find_drafter

    found = find_drafter(folder, drafter)
    if found is None:
        return Checkpoint(folder)
    joined = Checkpoint(folder, found)
    found.require_base(weights_digest(folder))
    return joined


def load_network(
    name: str | Path | None = None,
    *,
    simulate: bool = False,
    exact: bool = False,
    drafter: str | Path | None = None,
    memory_bytes: int | None = None,
) -> "Network":
    """The network of a model: by the C++ kernels in bfloat16, as the models are published.

    With `memory_bytes` it keeps within so much memory: routed experts that do not fit are read from
    disk as tokens need them. Raises ValueError for less than the model runs with.

    Where they do not serve it, and with `exact`, the PyTorch reference computes it in float32.
    There a quantized weight is unpacked at every use; where memory allows, once and for all here.
    `simulate` rounds activations to FP8 and FP4 as the deployed network. For `drafter` see
    `open_with_drafter`. Raises ValueError, saying what to install, where PyTorch is needed and
    missing.
    """
    checkpoint = open_with_drafter(find_model(name), drafter)
    return _network_of(checkpoint, simulate, exact, memory_bytes)


def _network_of(
    checkpoint: "Checkpoint",
    simulate: bool = False,
    exact: bool = False,
    memory_bytes: int | None = None,
) -> "Network":
    prepare_process()
    simulation = DEPLOYED if simulate else EXACT
    network: Network | None = None
    if memory_bytes is not None:
        network = _load_streamed(checkpoint, simulation, memory_bytes)
    if network is None and not exact:
        network = _load_kernels(checkpoint, simulation)
    if network is None:
        network = _load_reference(checkpoint, simulation, exact=exact)
    keep_what_is_loaded()
    return network


def _load_streamed(
    checkpoint: "Checkpoint", simulation: Simulation, memory_bytes: int
) -> "Network | None":
    """The network within a memory budget; None if all of it fits."""
    if library() is None:
        report_missing()
        raise ValueError("--memory needs the C++ kernels, which were not built")
    from sounding.native.streamed import load_streamed

    network = load_streamed(checkpoint, memory_bytes, simulation)
    if network is not None and network.store is not None and network.store.plan is not None:
        plan = network.store.plan
        _log.info(
            "%d of %d experts fit in memory, steps have up to %d tokens",
            *(plan.slots, plan.num_experts, plan.chunk_tokens),
        )
    return network


def _load_kernels(checkpoint: "Checkpoint", simulation: Simulation) -> "Network | None":
    """The network on the C++ kernels; None where they were not built or do not serve it."""
    if library() is None:
        report_missing()
        return None
    import psutil

    from sounding.native.describe import NotServed
    from sounding.native.memory import bring_into_memory
    from sounding.native.network import KernelNetwork

    tensors = checkpoint.read_all()
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size < psutil.virtual_memory().available / _RESIDENT_SHARE:
        tensors = bring_into_memory(tensors)
    try:
        return KernelNetwork(checkpoint.config, tensors, simulation)
    except NotServed as reason:
        _log.info("the kernels do not serve this network: %s", reason)
        return None


def load_reference(name: str | Path | None = None) -> "Transformer":
    """The PyTorch network of a model in float32, without gradients."""
    prepare_process()
    network = _load_reference(open_checkpoint(name), EXACT, exact=True)
    return network.model


def _load_reference(
    checkpoint: "Checkpoint", simulation: Simulation, *, exact: bool
) -> "ReferenceNetwork":
    require_torch("float32" if exact else "running this model without the C++ kernels")
    import psutil
    import torch

    from sounding.model.from_checkpoint import load_model
    from sounding.model.reference_network import ReferenceNetwork
    from sounding.weights.layout import count_parameters

    counts = count_parameters(checkpoint.config)
    size = counts.main + counts.mtp + counts.dspark
    fits = 4 * size < psutil.virtual_memory().available / 2
    dequantize = torch.float32 if fits else None
    return ReferenceNetwork(load_model(checkpoint, simulation=simulation, dequantize=dequantize))


def require_torch(purpose: str) -> None:
    """Raise ValueError, saying how to install it, where PyTorch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError(f"{purpose} needs {how_to_install('torch')}")


def how_to_install(module: str | None) -> str | None:
    """Return the message for a missing module: its name and how to install it; None if it is not in
    the training extra."""
    name = _TRAINING.get((module or "").partition(".")[0])
    return name and f"{name}, which is not installed: pip install 'sounding[train]'"


def can_converse(folder: Path) -> bool:
    """Whether a model has learned to answer, rather than only to continue text.

    The `training.json` of an export says so (`converses`); without it, a folder or the title of a
    model card with the word "base" in its name says that it has not.
    """
    told = _exported(folder, "converses")
    if isinstance(told, bool):
        return told
    names = [folder.resolve().name]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        card = (folder / "README.md").read_text(encoding="utf-8")
        names += [line for line in card.splitlines() if line.startswith("# ")][:1]
    return not any(re.search(r"\bbase\b", name, re.IGNORECASE) for name in names)


def trained_context(folder: Path) -> int | None:
    """Tokens of the longest sequences that a model was trained on; None where its folder does not
    say (`sequence_tokens` in the `training.json` of an export)."""
    told = _exported(folder, "sequence_tokens")
    return told if type(told) is int else None


def _exported(folder: Path, key: str) -> object:
    """A value of the `training.json` that an export has beside its weights, or None."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found: object = json.loads((folder / "training.json").read_bytes()).get(key)
        return found
    return None


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer beside a model's weights.

    Raises ValueError where there is none, and for one of another model.
    """
    _require_tokenizer(folder)
    return _tokenizer_of(open_checkpoint(folder))


def _require_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json, without which no text can be read")


def _tokenizer_of(checkpoint: "Checkpoint") -> "Tokenizer":
    from sounding.text.markup import EOS
    from sounding.text.tokenizer import Tokenizer

    prepare_process()
    folder, config = checkpoint.folder, checkpoint.config
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
    network: "Network"
    tokenizer: "Tokenizer"
    fim_format: "FimFormat"
    """The order of prefix and suffix in its prompts."""
    files: str = ""
    """Facts of the files of its weights, from before they were read (see `file_facts`)."""
    _engines: "list[Engine]" = field(default_factory=list)
    _digest: str = ""

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

    def batch(self, width: int, adapter: str | Path | None = None) -> "Batch":
        """Continues many prompts with it, `width` at a time; with the adapter in a folder.

        Raises ValueError for an adapter that is none, or of another base.
        """
        from sounding.engine.batch import Batch

        engine = self.engine(width=width)
        if adapter is None:
            return Batch(engine)
        engine.adapters.load(str(adapter), self.read_adapter(Path(adapter)))
        return Batch(engine, adapter=str(adapter))

    def read_adapter(self, path: Path) -> "Adapter":
        """The adapter in a folder or file. Raises ValueError where it was not made for this model:
        for another shape, or for weights of another digest."""
        from sounding.weights.adapters import read_adapter, require_base

        adapter = read_adapter(path, self.network.config)
        if adapter.base:
            if not self._digest:
                self._digest = weights_digest(self.folder)
            require_base(adapter, self._digest, str(path))
        return adapter

    def close(self) -> None:
        """Stop its engines, and the reading of its experts. Safe to call twice."""
        while self._engines:
            engine = self._engines.pop()
            engine.close()
            atexit.unregister(engine.close)
        if self.network.store is not None:
            self.network.store.close()


def weights_digest(folder: Path) -> str:
    """Digest of all bytes of a model's weights, which an adapter made for them names."""
    from sounding.weights import digest

    return digest.weights_digest(open_checkpoint(folder).read_all())


def open_model(
    name: str | Path | None = None,
    memory_bytes: int | None = None,
    drafter: str | Path | None = None,
) -> LoadedModel:
    """Load network and tokenizer of a model, in `memory_bytes` as `load_network` does; for
    `drafter` see `open_with_drafter`. Raises ValueError saying what is missing or wrong."""
    from sounding.text.fim_format import FimFormat

    folder = find_model(name)
    _require_tokenizer(folder)
    checkpoint = open_with_drafter(folder, drafter)  # once for both: its headers are checked
    tokenizer = _tokenizer_of(checkpoint)  # first: it is quick, and its errors need no weights
    fim_format = FimFormat.from_folder(folder)
    files = file_facts(checkpoint.files)
    network = _network_of(checkpoint, memory_bytes=memory_bytes)
    return LoadedModel(folder, network, tokenizer, fim_format, files)


# --------------------------------------------------------------------------------------------------
# Run


def start_engine(
    network: "Network",
    tokenizer: "Tokenizer | None",
    prefix_store: Path | None = None,
    store_bytes: int | None = None,
    *,
    files: str = "",
    **settings: Any,
) -> "Engine":
    """Start an engine for a network; it is closed when the process ends, if not before.

    `prefix_store` is the folder of prefixes on disk, limited to `store_bytes`; `files` are the
    `file_facts` of the weights' files. Raises ValueError for a folder that is no store.
    """
    from sounding.engine.engine import Engine
    from sounding.engine.exact import splits_are_exact
    from sounding.engine.settings import EngineSettings, within_memory

    options = EngineSettings(
        exact_splits=splits_are_exact(network), **within_memory(network, settings)
    )
    options = options.resolved(network.block_drafter)
    store = None
    if prefix_store is not None:
        from sounding.engine.prefix.store import PrefixStore, state_identity
        from sounding.engine.prefix.weights_digest import weights_digest

        limit = {} if store_bytes is None else {"limit_bytes": store_bytes}
        weights = weights_digest(network, files, prefix_store)
        store = PrefixStore(prefix_store, state_identity(network, options, weights), **limit)
    engine = Engine(network, tokenizer, options, store=store)
    # A thread that still runs native code while the interpreter ends would abort the process.
    atexit.register(engine.close)
    return engine
