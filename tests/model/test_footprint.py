"""How much memory a sequence takes: the state's bytes, and the peak of long chunks.

Peaks are taken in a process of its own, whose highest resident size is then only this.
"""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from sounding.model.state import packed_state
from sounding.model.transformer import Transformer
from sounding.presets import nano, tiny
from sounding.runtime import give_back_free_memory, peak_resident_bytes
from sounding.simulation import Simulation
from sounding.weights.description import StateSize
from tests.networks import make_network

VECTORS = Path(__file__).parent.parent / "vectors" / "tiny"
GIB = 2**30


@pytest.mark.parametrize("max_tokens", [0, 4096, 65536])
def test_packed_state_is_as_large_as_the_formula_says(max_tokens: int) -> None:
    """docs/architecture.md 8.1, and one window more for the MTP block."""
    size = StateSize(nano())
    drafts = nano().num_mtp_layers * nano().sliding_window * size.entry_bytes
    assert packed_state(nano(), max_tokens=max_tokens).nbytes == size.bytes_at(max_tokens) + drafts


def test_a_process_is_not_as_large_as_what_started_it() -> None:
    held = torch.ones(64 << 20)  # 256 MiB
    program = "from sounding.runtime import peak_resident_bytes; print(peak_resident_bytes())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 4 << 20 < int(done.stdout) < 128 << 20
    assert peak_resident_bytes() > held.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives memory back when asked")
def test_free_memory_is_given_back() -> None:
    """A hundred thousand small blocks, of which the last stays: nothing behind it can be returned
    unasked."""
    process = psutil.Process()
    held = [bytes(2000) for _ in range(100_000)]
    last = held[-1]
    del held
    before = process.memory_info().rss
    give_back_free_memory()
    assert before - process.memory_info().rss > 100 << 20
    assert len(last) == 2000


def test_packed_state_does_not_grow() -> None:
    model: Transformer = make_network(tiny(), simulation=Simulation(kv=True, indexer=True))
    state = packed_state(tiny(), max_tokens=512)
    before = state.nbytes
    with torch.no_grad():
        model(torch.arange(400) % 512, states=[state])
    assert (state.length, state.nbytes) == (400, before)


PREFILL = """
with torch.no_grad():
    model(torch.randint(512, ({tokens},)))
"""
TRAIN = """
tokens = torch.randint(512, (8192,))
output = model(tokens)
loss = cross_entropy(model.hidden(output.streams), model.head.weight, tokens.roll(-1))
drafted = model.draft(output.streams, tokens.roll(-1))
hidden = model.mtp[0].hidden(drafted.streams)
loss = loss + cross_entropy(hidden, model.head.weight, tokens.roll(-2))
loss.backward()
assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
"""
SETUP = f"""
from pathlib import Path
import torch
from sounding.ops.loss import cross_entropy
from sounding.runtime import peak_resident_bytes
from sounding.weights.checkpoint import Checkpoint
from sounding.model.from_checkpoint import load_model
model = load_model(Checkpoint(Path({str(VECTORS)!r})), dequantize=torch.float32)
"""
REPORT = """
print(peak_resident_bytes())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "most"),
    [
        pytest.param(PREFILL.format(tokens=16_384), 2 * GIB, id="prefill 16384"),
        pytest.param(
            PREFILL.format(tokens=65_536), 4 * GIB, id="prefill 65536", marks=pytest.mark.long
        ),
        pytest.param(TRAIN, 4 * GIB, id="train 8192"),
    ],
)
def test_peak_memory_stays_below_scores_of_all_pairs(work: str, most: int) -> None:
    """Scores of all pairs for four heads would be 4 GiB for 16,384 tokens, and 64 for 65,536; of
    8,192 for each of four heads and five layers, kept for the gradient, 5 GiB."""
    command = [sys.executable, "-c", SETUP + work + REPORT]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < most
