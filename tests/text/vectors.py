"""Golden prompts, golden messages and the published vocabulary."""

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

from sounding.text.tokenizer import Tokenizer

FOLDER = Path(__file__).parents[1] / "vectors"


def rows(name: str) -> list[dict[str, Any]]:
    lines = (FOLDER / "encoding" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def pair(number: int) -> tuple[list[dict[str, Any]], str]:
    """One of the published pairs; pair 1 keeps its tools beside the messages."""
    folder = FOLDER / "encoding"
    given = json.loads((folder / f"official_input_{number}.json").read_text(encoding="utf-8"))
    expected = (folder / f"official_output_{number}.txt").read_text(encoding="utf-8")
    if isinstance(given, list):
        return given, expected
    first, *others = given["messages"]
    return [{**first, "tools": given["tools"]}, *others], expected


@cache
def published_tokenizer() -> Tokenizer:
    packed = (FOLDER / "tokenizer" / "tokenizer.json.xz").read_bytes()
    return Tokenizer.from_json(lzma.decompress(packed).decode())
