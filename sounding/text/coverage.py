"""Compression of texts by a vocabulary: bytes per token by language and file type."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sounding.text.tokenizer import Tokenizer

# Programming languages by file type; everything else is prose, whose script is looked at.
LANGUAGES = {
    ".c": "C",
    ".h": "C",
    ".cc": "C++",
    ".cpp": "C++",
    ".cu": "CUDA",
    ".cuh": "CUDA",
    ".hpp": "C++",
    ".cs": "C#",
    ".css": "CSS",
    ".go": "Go",
    ".hs": "Haskell",
    ".html": "HTML",
    ".java": "Java",
    ".jl": "Julia",
    ".js": "JavaScript",
    ".json": "JSON",
    ".jsonl": "JSON",
    ".kt": "Kotlin",
    ".lua": "Lua",
    ".ml": "OCaml",
    ".php": "PHP",
    ".pl": "Perl",
    ".py": "Python",
    ".pyi": "Python",
    ".r": "R",
    ".rb": "Ruby",
    ".rs": "Rust",
    ".scala": "Scala",
    ".sh": "Shell",
    ".sql": "SQL",
    ".swift": "Swift",
    ".tex": "TeX",
    ".toml": "TOML",
    ".ts": "TypeScript",
    ".tsx": "TypeScript",
    ".xml": "XML",
    ".yaml": "YAML",
    ".yml": "YAML",
    ".zig": "Zig",
}
_LOOKED_AT = 20_000  # characters of a prose file that tell its script


@dataclass(slots=True)
class Coverage:
    """Files of one language and type, their bytes of UTF-8 and their tokens."""

    language: str
    file_type: str
    files: int = 0
    num_bytes: int = 0
    num_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "language": self.language,
            "type": self.file_type,
            "files": self.files,
            "bytes": self.num_bytes,
            "tokens": self.num_tokens,
            "bytes_per_token": self.num_bytes / self.num_tokens if self.num_tokens else 0.0,
        }


def measure(tokenizer: Tokenizer, texts: Iterable[tuple[Path, str]]) -> list[Coverage]:
    """Count each text, names of special tokens in it taken as plain text.

    The largest group comes first and the sum of all last; no texts give no rows.
    """
    groups: dict[tuple[str, str], Coverage] = {}
    for path, text in texts:
        file_type = path.suffix.lower() or "(none)"
        language = LANGUAGES.get(file_type) or script(text)
        group = groups.setdefault((language, file_type), Coverage(language, file_type))
        group.files += 1
        group.num_bytes += len(text.encode())
        group.num_tokens += tokenizer.count(text, named=False)
    rows = sorted(groups.values(), key=lambda row: -row.num_bytes)
    if not rows:
        return []
    return [
        *rows,
        Coverage(
            "all",
            "",
            sum(row.files for row in rows),
            sum(row.num_bytes for row in rows),
            sum(row.num_tokens for row in rows),
        ),
    ]


def script(text: str) -> str:
    """The script most letters of a text are of, such as "Latin", "CJK" or "Cyrillic"."""
    counts = Counter(
        unicodedata.name(character, "").split(" ")[0]
        for character in text[:_LOOKED_AT]
        if character.isalpha()
    )
    if not counts:
        return "no letters"
    name = counts.most_common(1)[0][0]
    return name if name == "CJK" else name.capitalize()
