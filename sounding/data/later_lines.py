"""Lines of a folder that stood nowhere in an earlier commit: what was yet to be written then."""

from pathlib import Path

from sounding.data.filters import decode
from sounding.data.sources import DocumentSource, commit_source, folder_source


def later_lines(
    root: Path, commit: str, suffixes: tuple[str, ...]
) -> tuple[list[tuple[str, str]], dict[str, set[int]]]:
    """Path and text of the folder's files that have such lines, and the lines' numbers from 0.

    Lines are compared without their indentation. Raises ValueError if there is no such commit.
    """
    old = {
        line.strip()
        for _, text in _texts(commit_source(root, commit, "train"), suffixes)
        for line in text.split("\n")
    }
    documents, numbers = [], {}
    for path, text in _texts(folder_source(root, "train"), suffixes):
        later = {n for n, line in enumerate(text.split("\n")) if line.strip() not in old}
        if later:
            documents.append((path, text))
            numbers[path] = later
    return documents, numbers


def _texts(source: DocumentSource, suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
    wanted = (file for file in source.files() if file.path.endswith(suffixes))
    found = ((file.path, decode(file.read())) for file in wanted)
    return [(path, text) for path, text in found if text is not None]
