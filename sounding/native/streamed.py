"""A network whose routed experts stay on disk, within a memory budget."""

from sounding.native.expert_store import ExpertStore
from sounding.native.memory import bring_into_memory
from sounding.native.network import KernelNetwork
from sounding.simulation import Simulation
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.expert_files import ExpertFiles, require_checksums
from sounding.weights.memory_plan import divide_memory, everything_bytes
from sounding.weights.resident import StreamedTensors


def load_streamed(
    checkpoint: Checkpoint, budget_bytes: int, simulation: Simulation
) -> KernelNetwork | None:
    """The network within so many bytes; None if all of it fits, so that nothing need be streamed.

    Raises ValueError for a budget below the floor, and NotServed.
    """
    config = checkpoint.config
    if everything_bytes(config, checkpoint.num_bytes) <= budget_bytes:
        return None
    names = list(checkpoint.names(routed_experts=False))
    layers = [(f"layers.{n}", config.n_routed_experts) for n in range(config.num_hidden_layers)]
    layers += [(f"mtp.{n}", config.n_routed_experts) for n in range(config.num_mtp_layers)]
    drafter, blocks = config.dspark_prefix, range(config.num_dspark_blocks)
    layers += [(f"{drafter}{n}", config.draft_experts) for n in blocks]
    files = ExpertFiles(checkpoint, [name for name, _ in layers], [count for _, count in layers])
    try:
        plan = divide_memory(
            config,
            budget_bytes,
            resident_bytes=sum(checkpoint.sources[name].num_bytes for name in names),
            slot_bytes=files.slot_bytes,
            num_experts=sum(files.counts),
        )
    except ValueError:
        files.close()
        raise
    resident = bring_into_memory({name: checkpoint.read_raw(name) for name in names})
    require_checksums(checkpoint, resident)
    store = ExpertStore(files, slots=plan.slots, plan=plan)
    tensors = StreamedTensors(checkpoint, resident)
    return KernelNetwork(config, tensors, simulation, store=store, piece_tokens=plan.chunk_tokens)
