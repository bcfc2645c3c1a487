"""The format of prompts that fill in the middle: which tokens, and in which order.

A prompt is `begin PREFIX hole SUFFIX end`, and the model writes the middle. A model may have
learned another order, with the suffix before the prefix: then nothing stands before the hole, and
the middle begins with the prefix. Its folder says so.
Source: docs/prompt.md 1 and 6.2; Bavarian et al., "Efficient training of language models to fill in
the middle", 2022, where the orders are PSM and SPM.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from sounding.files import parse_json, write_file
from sounding.text.markup import BOS, FIM_BEGIN, FIM_END, FIM_HOLE
from sounding.text.tokenizer import Tokenizer

_FILE = "tokenizer_config.json"
_SUFFIX_FIRST = "fim_suffix_first"  # ours, in that file

Ids = Sequence[int] | NDArray[Any]
"""Token ids of a part of a prompt."""


class FimTokens(NamedTuple):
    """Ids of the tokens that structure a prompt."""

    bos: int
    begin: int
    hole: int
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "FimTokens":
        """Raises ValueError for a vocabulary that lacks one."""
        return cls(*map(tokenizer.id_of, (BOS, FIM_BEGIN, FIM_HOLE, FIM_END)))


@dataclass(frozen=True)
class FimFormat:
    """The order of the parts, as a model has learned it."""

    suffix_first: bool = False

    @classmethod
    def from_folder(cls, folder: Path) -> "FimFormat":
        """Read the order from a model's folder. Raises ValueError for one that cannot be read."""
        path = folder / _FILE
        if not path.is_file():
            return cls()
        value = parse_json(path.read_bytes(), str(path)).get(_SUFFIX_FIRST, False)
        if not isinstance(value, bool):
            raise ValueError(f"{path}: {_SUFFIX_FIRST} = {value!r} must be true or false")
        return cls(suffix_first=value)

    def write(self, folder: Path) -> list[Path]:
        """Write the files that `from_folder` needs to find this order in a folder, and name them:
        none for the usual order."""
        if not self.suffix_first:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _FILE
        write_file(path, json.dumps({_SUFFIX_FIRST: True}).encode())
        return [path]

    def arrange(self, tokens: FimTokens, prefix: Ids, suffix: Ids) -> list[Ids]:
        """The parts of a prompt in their order, to be joined; the middle follows the last one."""
        before, after = ([], prefix) if self.suffix_first else (prefix, [])
        return [[tokens.bos, tokens.begin], before, [tokens.hole], suffix, [tokens.end], after]
