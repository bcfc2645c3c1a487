"""Every `Source:` in the code names something a reader can open, and the docs name what is there.

A source is a numbered section of a page in docs/, or a work outside: a paper with its year, a
report with its section, an RFC, a file of the Linux documentation. `scripts/check` runs this.
"""

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("sounding", "tests", "examples")
SUFFIXES = (".py", ".cpp", ".h")

NUMBER = r"\d+(?:\.\d+)*"
# The words after it, to the end of the paragraph or of the docstring; not a class or a return type.
SOURCE = re.compile(r'(?<!class )(?<!-> )\bSource:\s+(.+?)(?=\n\n|"""|\Z)', re.DOTALL)
PAGE = re.compile(
    rf"(?<![\w./-])([a-z][\w-]*/[\w/-]+\.md)((?:\s+{NUMBER})(?:(?:,|,? and| to)\s+{NUMBER})*)?"
)
OUTSIDE = re.compile(r"\b(?:19|20)\d\d\b|\breport \d|\bRFC \d|\bDocumentation/\w")
HEADING = re.compile(rf"^##+ ({NUMBER})\.? ", re.MULTILINE)
# How a name is defined.
DEFINED = {
    ".py": r"^\s*(?:async )?(?:def|class) {}\b",
    ".cpp": r"^[\w:*& ]+ [*&]?{}\(",
    ".h": r"^[\w:*& ]+ [*&]?{}[( ]",
}
# In a page: a file or folder, perhaps with a name in it, as `engine/engine.py:Engine.submit`.
NAMED = re.compile(r"`((?:[\w.-]+/)*(?:[\w-]+\.(?:py|cpp|h|toml)|(?<=/)))(?::([A-Za-z_][\w.]*))?`")


def faults(text: str, name: str) -> Iterator[str]:
    """What leads nowhere in a file of this text and name, as `name:line: reason`."""
    # Citations may be broken over lines, also those of a comment.
    text = re.sub(r"(?m)^[ \t]*(?:#|//)?[ \t]*", "", text)

    def place(match: re.Match[str]) -> str:
        return f"{name}:{text.count(chr(10), 0, match.start()) + 1}"

    for match in PAGE.finditer(text):
        for reason in missing(match[1], match[2] or ""):
            yield f"{place(match)}: {reason}"
    for match in SOURCE.finditer(text):
        pages = PAGE.findall(match[1])
        if not any(numbers for _, numbers in pages) and not OUTSIDE.search(match[1]):
            cited = " ".join(match[1].split())
            yield f"{place(match)}: {cited!r} is neither a page with a section nor a dated work"


def missing(page: str, numbers: str) -> Iterator[str]:
    """Why a page with these section numbers, such as " 2 to 4 and 7.1", cannot be opened."""
    if not (ROOT / page).is_file():
        yield f"there is no {page}"
        return
    wanted = re.findall(NUMBER, numbers)
    for first, last in re.findall(r"(\d+) to (\d+)", " ".join(numbers.split())):
        wanted += map(str, range(int(first), int(last) + 1))
    for number in dict.fromkeys(wanted):
        if number not in sections(page):
            yield f"{page} has no section {number}"


@cache
def sections(page: str) -> tuple[str, ...]:
    """The numbers of a page's headings."""
    return tuple(HEADING.findall((ROOT / page).read_text(encoding="utf-8")))


def test_every_source_leads_somewhere() -> None:
    found: list[str] = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path != Path(__file__):
                name = str(path.relative_to(ROOT))
                found += faults(path.read_text(encoding="utf-8"), name)
    assert not found, "\n" + "\n".join(found)


def absent(text: str) -> Iterator[str]:
    """Files, folders, and names in them that a page mentions and the repository lacks.

    A path begins at the root, in sounding/ or in docs/; a file without a folder may lie anywhere.
    """
    for path, name in NAMED.findall(text):
        places = [base / path for base in (ROOT, ROOT / "sounding", ROOT / "docs")]
        if "/" not in path:
            places += [place for folder in FOLDERS for place in (ROOT / folder).rglob(path)]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            yield path
        elif name:
            code = found.read_text(encoding="utf-8")
            for part in name.split("."):
                if not re.search(DEFINED[found.suffix].format(part), code, re.MULTILINE):
                    yield f"{path}:{name}"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_names_in_the_docs_are_there(page: Path) -> None:
    assert list(absent(page.read_text(encoding="utf-8"))) == []


def test_what_is_not_there_is_found() -> None:
    text = "`ops/norm.py`, `ops/norm.py:rms_norm`, `ops/`, `setup.py`, `pip install x`"
    assert list(absent(text)) == []
    assert list(absent("`ops/nothing.py`")) == ["ops/nothing.py"]
    assert list(absent("`ops/norm.py:nothing`")) == ["ops/norm.py:nothing"]
    assert list(absent("`nowhere/`")) == ["nowhere/"]


def test_the_rooms_are_drawn_as_the_contract_has_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    drawn = [re.split(r"\s{2,}", line)[0] for line in page.split("```")[1].strip().splitlines()]
    assert drawn == [layer for layer in contract["layers"] if layer != "__main__"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_in_the_docs_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_section_number_stands_once(page: Path) -> None:
    numbers = sections(str(page.relative_to(ROOT)))
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    "text",
    [
        "Source: docs/architecture.md 5.4.",
        "    # Source: docs/architecture.md 2, 3\n    # and 11; docs/training.md 2 to 4.",
        "// Source:\n// docs/architecture.md 9.1",
        'Source: Wilson, "Probable inference", 1927.',
        "Source: DeepSeek-V4 report 2.3.",
        '"""Rounded. Source: docs/architecture.md 9."""\nx = 1',
        "class Source:\n    pass",
        "def read() -> Source:\n    return SOURCE",
        "as docs/prompt.md says",
    ],
)
def test_a_source_that_leads_somewhere_passes(text: str) -> None:
    assert list(faults(text, "a.py")) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\n\nSource: spec/architecture.md 6.", "a.py:3: there is no spec/architecture.md"),
        ("Source: docs/architecture.md 99.", "a.py:1: docs/architecture.md has no section 99"),
        ("docs/architecture.md 5.4 and 5.99", "a.py:1: docs/architecture.md has no section 5.99"),
        ("docs/training.md 6 to 9", "a.py:1: docs/training.md has no section 9"),
        ("# docs/training.md\n# 41", "a.py:1: docs/training.md has no section 41"),
        ("x\nSource: docs/architecture.md.", "a.py:2: 'docs/architecture.md.' is neither"),
        ("Source: the report.\n\nIn 2026.", "a.py:1: 'the report.' is neither"),
        ('"""Source: common knowledge."""', "a.py:1: 'common knowledge.' is neither"),
    ],
)
def test_a_source_that_leads_nowhere_is_named_with_its_line(text: str, fault: str) -> None:
    found = list(faults(text, "a.py"))
    assert len(found) >= 1
    assert found[0].startswith(fault)
