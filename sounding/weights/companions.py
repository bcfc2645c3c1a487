"""The files beside the weights of a model that belong to it: tokenizer, templates, licence."""

from collections.abc import Iterator
from pathlib import Path

# Files that travel with the weights unchanged; anything else in the folder is not copied.
_PATTERNS = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "LICENSE*")


def companions(folder: Path) -> Iterator[Path]:
    """The files of a model's folder that are copied with its weights."""
    for pattern in _PATTERNS:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())
