"""Compare a model with its GGUF file in llama.cpp: `scripts/gguf-in-llama MODEL`.

The file is written anew and served by llama-server. Compared are the tokens of texts, and what
llama.cpp writes greedily into gaps with the scores it gives: our network reads the same tokens, so
a token that it would not have chosen is counted with the difference of scores that decides.
"""

import argparse
import itertools
import json
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sounding.loading import LoadedModel, open_checkpoint, open_model
from sounding.progress import progress_bar
from sounding.text.fim_format import FimTokens
from sounding.weights.gguf import convert_to_gguf

TEXTS, LINES, WRITTEN = 1_000, 200, 16
_PIECE_CHARACTERS = 400
_SIDE_TOKENS = 192  # of a gap's text on either side
_NEAR = 0.05  # nats between two tokens that rounding to llama.cpp's types can exchange


@dataclass
class Comparison:
    """What was compared, and how it went."""

    same_texts: int = 0
    texts: int = 0
    same_lines: int = 0
    near_lines: int = 0
    """Lines that differ first where the network's two best tokens are less than `_NEAR` apart."""
    lines: int = 0
    differences: list[float] = field(default_factory=list)
    """Of the written tokens' log-probabilities, in nats."""

    def report(self) -> str:
        """Three lines for people."""
        nats = np.abs(self.differences)
        return (
            f"tokens: {self.same_texts} of {self.texts} texts alike\n"
            f"scores of {len(nats)} tokens: mean difference {nats.mean():.4f} nats, "
            f"largest {nats.max():.3f}\n"
            f"lines written greedily: {self.same_lines} of {self.lines} alike, {self.near_lines} "
            f"more part where two tokens are within {_NEAR} nats"
        )


class LlamaServer:
    """A client of llama.cpp's own routes."""

    def __init__(self, url: str) -> None:
        self._url = url

    def post(self, route: str, **body: Any) -> Any:
        """The JSON answer to a JSON request."""
        sent = urllib.request.Request(
            self._url + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(sent) as answer:
            return json.load(answer)

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, special tokens taken as text."""
        answer = self.post("/tokenize", content=text, add_special=False, parse_special=False)
        return list(answer["tokens"])

    def write(self, prompt: list[int]) -> tuple[list[int], list[float]]:
        """Greedy tokens after a prompt, and their log-probabilities."""
        answer = self.post(
            "/completion",
            prompt=prompt,
            n_predict=WRITTEN,
            temperature=0,
            n_probs=1,
            cache_prompt=False,
        )
        written = answer["completion_probabilities"]
        return [entry["id"] for entry in written], [entry["logprob"] for entry in written]


@contextmanager
def served(program: Path, gguf: Path) -> Iterator[LlamaServer]:
    """llama-server with a model, ready to answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command: list[str | Path] = [
        program,
        "-m",
        gguf,
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "-c",
        "4096",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{program.name} ended with {process.returncode} at its start")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield LlamaServer(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def sources() -> Iterator[str]:
    """Python's own library, file by file: text that every machine has."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="strict")


def texts() -> Iterator[str]:
    """Pieces of source files."""
    for source in sources():
        for start in range(0, len(source), 4 * _PIECE_CHARACTERS):
            yield source[start : start + _PIECE_CHARACTERS]


def gaps() -> Iterator[tuple[str, str]]:
    """What stands before and after the code of a line: every fortieth indented line of a file."""
    for source in sources():
        lines = source.splitlines(keepends=True)
        for number in range(20, len(lines), 40):
            indented = lines[number][:1] == " " and lines[number].strip()
            if indented:
                indent = len(lines[number]) - len(lines[number].lstrip())
                before = "".join(lines[:number]) + lines[number][:indent]
                yield before, "\n" + "".join(lines[number + 1 :])


def compare(model: LoadedModel, server: LlamaServer) -> Comparison:
    """Run all comparisons, with progress on stderr."""
    found, tokenizer = Comparison(), model.tokenizer
    with progress_bar() as bar:
        for text in bar.track(list(itertools.islice(texts(), TEXTS)), description="texts"):
            found.texts += 1
            found.same_texts += tokenizer.encode(text) == server.tokens(text)
        for gap in bar.track(list(itertools.islice(gaps(), LINES)), description="lines"):
            _compare_line(model, server, _prompt(model, *gap), found)
    return found


def _prompt(model: LoadedModel, prefix: str, suffix: str) -> list[int]:
    encode = model.tokenizer.encode
    before = encode(prefix[-8 * _SIDE_TOKENS :])[-_SIDE_TOKENS:]
    after = encode(suffix[: 8 * _SIDE_TOKENS])[:_SIDE_TOKENS]
    parts = model.fim_format.arrange(FimTokens.of(model.tokenizer), before, after)
    return [int(token) for part in parts for token in part]


def _compare_line(
    model: LoadedModel, server: LlamaServer, prompt: list[int], found: Comparison
) -> None:
    from sounding.engine.scoring import split_logits

    written, theirs = server.write(prompt)
    tokens = prompt + written
    logits = split_logits(model.network, [tokens], [[len(tokens)]])[0][len(prompt) - 1 : -1]
    logits = logits.astype(np.float64)
    scores = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    ours = scores[np.arange(len(written)), written]
    found.differences += (ours - theirs).tolist()
    found.lines += 1
    for token, row in zip(written, scores, strict=True):
        if row.argmax() != token:
            found.near_lines += bool(row.max() - row[token] < _NEAR)
            return
        if "\n" in model.tokenizer.decode([token]):
            break
    found.same_lines += 1


def main() -> None:
    """Write the file, serve it, compare, and print the report."""
    parser = argparse.ArgumentParser(prog="scripts/gguf-in-llama", description=__doc__)
    parser.add_argument("program", type=Path, help=argparse.SUPPRESS)  # llama-server as built
    parser.add_argument("model", help="a model's folder, or nano")
    arguments = parser.parse_args()
    try:
        model = open_model(arguments.model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            convert_to_gguf(open_checkpoint(model.folder), path)
            with served(arguments.program, path) as server:
                print(compare(model, server).report())
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"scripts/gguf-in-llama: {error}") from None


if __name__ == "__main__":
    main()
