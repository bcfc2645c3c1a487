"""Prompts for base models: filling in the middle, and a repository's files as context.

The order is prefix, suffix, middle: the model generates the middle after the end token. The format
has names for repositories and files but the release does not fix the space around them; here
there is none, so that a file's text is exactly the text between its two tokens.
Source: docs/prompt.md 1 and 6.2.
"""

from collections.abc import Sequence

from sounding.text.markup import (
    BOS,
    END_FILE,
    END_FILE_NAME,
    END_REPO_NAME,
    EOS,
    FILE,
    FILE_NAME,
    FIM_BEGIN,
    FIM_END,
    FIM_HOLE,
    REPO_NAME,
)

_STRUCTURE = (
    BOS,
    EOS,
    FIM_BEGIN,
    FIM_HOLE,
    FIM_END,
    REPO_NAME,
    END_REPO_NAME,
    FILE_NAME,
    END_FILE_NAME,
    FILE,
    END_FILE,
)

File = tuple[str, str]  # path, text


def infill_prompt(
    prefix: str,
    suffix: str,
    *,
    path: str | None = None,
    files: Sequence[File] = (),
    repository: str | None = None,
    bos: bool = True,
) -> str:
    """Return the prompt for the text between prefix and suffix.

    With `path` the gap is in that file of a repository, after the other `files` of it. Raises
    ValueError for a text that contains one of the format's own tokens, and for files without a
    path for the gap.
    """
    _check(prefix=prefix, suffix=suffix)
    gap = f"{FIM_BEGIN}{prefix}{FIM_HOLE}{suffix}{FIM_END}"
    if path is None:
        if files or repository is not None:
            raise ValueError("there are files of a repository but no path; say which has the gap")
        return (BOS if bos else "") + gap
    _check(path=path)
    return repository_prompt(files, repository=repository, bos=bos) + _named(path) + FILE + gap


def infill_document(prefix: str, middle: str, suffix: str, *, bos: bool = True) -> str:
    """The infill prompt with its answer and EOS, as in training. Raises as `infill_prompt` does."""
    _check(middle=middle)
    return infill_prompt(prefix, suffix, bos=bos) + middle + EOS


def repository_prompt(
    files: Sequence[File],
    *,
    repository: str | None = None,
    continue_with: str | None = None,
    bos: bool = True,
) -> str:
    """Return the prompt of a repository's whole files, each under its name, in order.

    `continue_with` names a further file for the model to generate. Raises ValueError for a name or
    text that contains one of the format's own tokens.
    """
    parts = [BOS] if bos else []
    if repository is not None:
        _check(repository=repository)
        parts.append(f"{REPO_NAME}{repository}{END_REPO_NAME}")
    for path, text in files:
        _check(path=path, **{f"the text of {path}": text})
        parts.append(f"{_named(path)}{FILE}{text}{END_FILE}")
    if continue_with is not None:
        _check(continue_with=continue_with)
        parts.append(_named(continue_with) + FILE)
    return "".join(parts)


def _named(path: str) -> str:
    return f"{FILE_NAME}{path}{END_FILE_NAME}"


def _check(**texts: str) -> None:
    for name, text in texts.items():
        for token in _STRUCTURE:
            if token in text:
                raise ValueError(
                    f"{name} contains {token!r} at character {text.index(token)}, which would "
                    "be read as structure; leave this file out or write the token differently"
                )
