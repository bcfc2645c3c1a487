"""`serve` through its runner, and once as a process that is told to stop."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sounding.cli import cli
from tests.cli.test_completion import model as model  # a random model, made once


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["serve", *map(str, arguments)], catch_exceptions=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "other machines can reach 0.0.0.0: give --api-keys FILE"),
        (["--trace", "{file}"], "is a file"),
        (["--api-keys", "{file}"], "there is no key"),
        (["--context-tokens", "3"], "3 is not in the range"),
        (["--port", "99999"], "not in the range"),
    ],
)
def test_mistakes_are_told(model: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    file = tmp_path / "file"
    file.write_text("# no keys\n")
    result = run(model, "--port", "0", *(a.format(file=file) for a in arguments))
    assert result.exit_code != 0
    assert message in str(result.exception) + result.output


def test_a_server_from_start_to_end(model: Path, tmp_path: Path) -> None:
    """Answers on the port it names, writes its trace, and ends well when it is told to."""
    command = [sys.executable, "-m", "sounding", "serve", str(model), "--port", "0"]
    command += ["--trace", str(tmp_path / "trace"), "--prefix-store", str(tmp_path / "prefixes")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        told = next(found for line in lines if (found := re.search(r"serving (.*) on (.*)", line)))
        assert told[1] == "random"
        asked = {"model": "random", "prompt": "x = ", "max_tokens": 3}
        request = urllib.request.Request(
            told[2] + "/v1/completions", json.dumps(asked).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            done = json.loads(answer.read())
        assert done["usage"]["completion_tokens"] == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    (trace,) = (tmp_path / "trace").glob("*.json")
    assert json.loads(trace.read_text())["usage"]["completion_tokens"] == 3
