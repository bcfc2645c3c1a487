"""Where PyTorch is not installed: models run on the kernels, and what needs it says so in a line.

Catches: an import on the way of serving that only training needs.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sounding.cli import COMMANDS
from sounding.ops import cpu
from sounding.text.markup import EOS
from tests.editor.scripted_editor import Editor

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join([str(Path(__file__).with_name("without_torch")), str(ROOT)])
ENVIRONMENT = os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
SOURCE = "def area(width, height):\n    return \n"


def run(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], input=given, env=ENVIRONMENT, capture_output=True, text=True
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """What arguments name in braces."""
    source, ids, folder = tmp_path / "area.py", tmp_path / "ids.safetensors", tmp_path / "folder"
    source.write_text(SOURCE + "\n\ndef other(value):\n    return value + 1\n" * 3)
    save_file({"input_ids": np.array([[0, 5, 6]])}, ids)
    folder.mkdir()
    nano = ROOT / "sounding" / "assets" / "nano"
    return {"source": source, "ids": ids, "folder": folder, "nano": nano, "out": tmp_path / "out"}


def test_these_are_hidden() -> None:
    for module in ("torch", "jaxtyping", "matplotlib"):
        assert f"No module named '{module}'" in run("-c", f"import {module}").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("complete", "{source}:2:12", "--max-tokens", "4"),
        ("write", "def area(", "--max-tokens", "4"),
        ("generate", "--prompt", "import ", "--max-tokens", "4"),
        ("logits", "nano", "--bfloat16", "--tokens", "{ids}", "--out", "{out}"),
        ("inspect", "nano"),
        ("inspect", "preset:flash"),
        ("plan", "nano"),
        ("tokenizer", "inspect", "{nano}/tokenizer.json"),
        ("eval", "lines", "{source}", "--per-file", "1"),
        ("bench", "nano", "--runs", "1", "--prefill", "32", "--decode", "4", "--context", "16"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_command_works(arguments: tuple[str, ...], files: dict[str, Path]) -> None:
    done = run("-m", "sounding", *(each.format(**files) for each in arguments))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or files["out"].is_file()


def test_a_run_is_measured_without_the_picture(files: dict[str, Path], tmp_path: Path) -> None:
    """The picture needs Matplotlib; the table is printed all the same."""
    saved = tmp_path / "run" / "milestones" / "step-00000003"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text('{"step": 3, "tokens": 300}')
    (saved / "model").symlink_to(files["nano"])
    how = ("--documents", "1", "--lines", "1", "--json")
    done = run("-m", "sounding", "eval", "run", str(tmp_path / "run"), str(files["source"]), *how)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"][0]["step"] == 3
    assert "growth.png is not drawn: drawing requires Matplotlib" in done.stderr


def test_the_model_card_needs_no_pytorch() -> None:
    done = run("-c", "import sounding.evaluation.model_card")
    assert done.returncode == 0, done.stderr


def test_every_command_can_say_what_it_does() -> None:
    every = "; ".join(f"cli([{name!r}, '--help'], standalone_mode=False)" for name in COMMANDS)
    done = run("-c", f"from sounding.cli import cli; {every}")
    assert done.returncode == 0, done.stderr


def test_prompts_go_both_ways() -> None:
    how = {"thinking_mode": "chat"}
    row = {"messages": [{"role": "user", "content": "hi"}], "kwargs": how}
    done = run("-m", "sounding", "encode", given=json.dumps(row) + "\n")
    assert done.returncode == 0 and "hi" in json.loads(done.stdout)["prompt"]
    done = run("-m", "sounding", "parse", given=json.dumps({"text": f"hello{EOS}", **how}) + "\n")
    assert json.loads(done.stdout)["message"]["content"] == "hello"


def test_the_library_completes() -> None:
    code = f"import sounding; print(sounding.load('nano').complete({SOURCE[:-1]!r}, max_tokens=4))"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_server_answers() -> None:
    command = [sys.executable, "-m", "sounding", "serve", "nano", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        url = next(found[1] for line in lines if (found := re.search(r"serving .* on (.*)", line)))
        asked = {"model": "nano", "prompt": "x = ", "max_tokens": 3}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(asked).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert json.loads(answer.read())["usage"]["completion_tokens"] <= 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_language_server_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PATH)
    with Editor(["-m", "sounding", "language-server"]) as editor:
        editor.open("file:///w/area.py", SOURCE)
        place = {
            "textDocument": {"uri": "file:///w/area.py"},
            "position": {"line": 1, "character": 11},
        }
        asked = place | {"context": {"triggerKind": 1}}
        assert "error" not in editor.ask("textDocument/inlineCompletion", asked)


@pytest.mark.parametrize(
    "arguments",
    [
        ("logits", "nano", "--tokens", "{ids}", "--out", "{out}"),
        ("train", "copying"),
        ("eval", "mechanisms", "{source}", "--at-least", "8"),
        ("convert", "{nano}", "{out}", "--to", "bf16"),
        ("plot", "{folder}"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_what_needs_it_says_so_in_a_line(
    arguments: tuple[str, ...], files: dict[str, Path]
) -> None:
    done = run("-m", "sounding", *(each.format(**files) for each in arguments))
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert re.match(r"sounding: .* needs .*: pip install 'sounding\[train\]'$", line)


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ("complete a.py:1", False),
        ("eval lines .", False),
        ("eval mechanisms .", True),
        ("eval run runs/nano corpus", False),
        ("card runs/nano", False),
        ("logits nano --tokens a --out b", True),
        ("logits nano --tokens a --out b --bfloat16", False),
        ("train nano", True),
        ("train --help", False),
        ("bench nano", False),
        ("bench nano --train", True),
        ("", False),
    ],
)
def test_the_script_installs_it_for_commands_that_need_it(arguments: str, needed: bool) -> None:
    script = 'source "$1/scripts/environment"; shift; needs_training "$@"'
    done = subprocess.run(["bash", "-c", script, "bash", ROOT, *arguments.split()])
    assert done.returncode == (0 if needed else 1)
