"""What the processes of these tests do: `torchrun ... -m tests.parallel.worker OUT CASE...`.

A case is NAME:DATAxEXPERTxCONTEXT:SETTING. Each arranges the processes anew; the first process
writes what was found to OUT/NAME-DATAxEXPERTxCONTEXT.pt.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sounding.parallel.context import Cut
from sounding.parallel.group import Group, make_meshes, mesh_shape
from sounding.parallel.matrices import is_cut
from sounding.parallel.sharding import local, whole
from sounding.train.optim import is_matrix
from tests.parallel import runs
from tests.parallel.live_bytes import LiveBytes


def train(group: Group, out: Path, setting: str) -> dict[str, Any]:
    """Metrics of some steps in float64, and the first step's gradients in float32."""
    run = runs.run_config(setting)
    return {
        "metrics": runs.metrics(run, out / f"run-{group.size('context')}", group),
        "gradients": runs.gradients(run, out / "gradients", group),
    }


def sent(group: Group, out: Path, setting: str) -> dict[str, Any]:
    """Bytes that this process sent in a step, and what was chosen in it."""
    run = runs.run_config(setting)
    whole_sequence = runs.long_batches(run) if group.size("context") > 1 else None
    one = runs.trainer(run, out / "sent", group, torch.float32, source=whole_sequence)
    chosen: list[torch.Tensor] = []
    for block in (*one.model.blocks, *one.model.mtp_blocks):
        gate = block.get_submodule("ffn.gate")
        gate.register_forward_hook(lambda _, args, output: chosen.append(output[0].chosen))
    named = one.model.named_parameters()
    matrices = {name: param for name, param in named if is_cut(param) and is_matrix(name)}
    one.take_step()
    rows: list[Any] = [None] * group.world
    own = {
        "sent": dict(group.sent),
        "chosen": chosen,
        "expert_rank": group.rank_in("expert"),
        "matrices": {n: (param.shape, local(param).numel()) for n, param in matrices.items()},
    }
    dist.all_gather_object(rows, own)
    return {"processes": rows}


def logits(group: Group, out: Path, setting: str) -> dict[str, Any]:
    """Logits of one long sequence and some short ones, cut over the processes."""
    run = runs.run_config(setting)
    model = runs.network(run, torch.float64)
    batch = runs.ragged_batch(3, run.data.batch_tokens, run.model.vocab_size)
    cut = Cut(batch.lengths, group)
    with torch.no_grad():
        states = cut.states(run.model)
        output = model(batch.tokens[cut.part.rows], list(cut.part.lengths), states)
        own = model.logits(model.hidden(output.streams))
        parts: list[Any] = [None] * group.world
        dist.all_gather_object(parts, own)
        output = model(batch.tokens, batch.lengths)
        alone = model.logits(model.hidden(output.streams))
    return {"cut": torch.cat(parts), "alone": alone}


def memory(group: Group, out: Path, setting: str) -> dict[str, Any]:
    """The most bytes that were live in a step, beyond those before it, of every process."""
    run = runs.long_run_config(setting)
    one = runs.trainer(run, out / "memory", group, torch.float32, source=runs.long_batches(run))
    batches = one._next_batches()
    counts, plan = one._counts(batches), one.objective.plan(one.step)
    one._differentiate(batches, counts, plan)  # gradients and buffers stand from here on
    with LiveBytes() as live:
        one._differentiate(batches, counts, plan)
    peaks: list[Any] = [None] * group.world
    dist.all_gather_object(peaks, live.peak)
    return {"peaks": peaks}


def save(group: Group, out: Path, setting: str) -> dict[str, Any]:
    """Take steps and save them; the weights and moments, whole."""
    one = runs.trainer(runs.run_config(setting), out / "saved", group, torch.float32)
    for _ in range(2):
        one.take_step()
    one.save()
    return {"tensors": _whole(one, group)}


def load(group: Group, out: Path, setting: str) -> dict[str, Any]:
    """Go on with what others saved; weights and moments as they were loaded, and later metrics."""
    one = runs.trainer(runs.run_config(setting), out / "saved", group, torch.float32)
    tensors = _whole(one, group)
    return {"step": one.step, "tensors": tensors, "metrics": [one.take_step()]}


def _whole(one: Any, group: Group) -> dict[str, torch.Tensor]:
    named = dict(one.model.named_parameters()) | one.optimizers.named_state()
    return {name: whole(tensor.detach(), group).clone() for name, tensor in named.items()}


CASES: dict[str, Callable[[Group, Path, str], dict[str, Any]]] = {
    case.__name__: case for case in (train, sent, logits, memory, save, load)
}


def main(out: Path, cases: list[str]) -> None:
    dist.init_process_group("gloo")
    try:
        for case in cases:
            name, axes, setting = case.split(":")
            shape = mesh_shape(dist.get_world_size(), *map(int, axes.split("x")))
            group = Group(dist.get_rank(), dist.get_world_size(), make_meshes("cpu", shape))
            found = CASES[name](group, out, setting)
            if group.is_main:
                torch.save(found, out / f"{name}-{axes}.pt")
            group.wait()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
