"""Functions taken out of files: what stands alone runs alone, and every reason is counted."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sounding.cli.data import data
from sounding.data import functions
from sounding.data.corpus import build, read_stats
from sounding.data.documents import read_documents
from sounding.data.functions import REASONS, functions_of, mine
from sounding.data.sources import folder_source
from tests.data.conftest import FolderMaker

GOOD = '''def spread(values, low=0):
    """How far values lie above a limit, at most."""
    above = [value - low for value in values if value > low]
    return max(above, default=0)
'''
MODULE = f'''"""A module."""

import numpy as np
import os.path
from collections import Counter, defaultdict as grouping
from functools import lru_cache
from math import sqrt
from typing import Any
from . import sibling

LIMIT = 3


{GOOD}

@lru_cache(maxsize=None)
def common(words: tuple[str, ...]) -> list[Any]:
    """The words that come more than once, in order."""

    def often(word):
        return counts[word] > 1

    counts = Counter(words)
    groups = grouping(list)
    return sorted(filter(often, counts)) + list(groups) + [os.path.sep]


async def countdown(number):
    """Yield a number and those below it."""
    while number:
        yield number
        number -= 1
'''
BELOW = "    first = value + 1\n    second = first * 2\n    return second\n"
REFUSED = {
    "test": [f'def test_it(value):\n    """Say what it tests."""\n{BELOW}'],
    "undocumented": [f"def f(value):\n{BELOW}", f'def f(value):\n    """Short."""\n{BELOW}'],
    "trivial": [
        'def f(value):\n    """Return what was given."""\n    return value\n',
        'def f(value):\n    """Does nothing so far."""\n    raise TypeError(\n        1\n    )\n',
        'def f(value):\n    """Does nothing so far."""\n    ...\n    ...\n    pass\n',
    ],
    "long": [
        'def f(value):\n    """Add one many times."""\n' + "    value += 1\n" * 40,
        'def f(value):\n    """Says a lot.\n' + "\n    More.\n" * 11 + f'    """\n{BELOW}',
    ],
    "branching": [
        'def f(value):\n    """Has many branches."""\n' + "    if value:\n        value += 1\n" * 11
    ],
    "dependent": [
        f'def f(value):\n    """Uses a constant."""\n    value += LIMIT\n{BELOW}',
        f'def f(value=LIMIT):\n    """Uses it as a default."""\n{BELOW}',
        f'def f(value: Limit):\n    """Uses it as a type."""\n{BELOW}',
        f'@mark\ndef f(value):\n    """Is decorated with it."""\n{BELOW}',
        f'def f(value):\n    """Another package."""\n    value = np.abs(value)\n{BELOW}',
        f'def f(value):\n    """Its own package."""\n    value = sibling.g(value)\n{BELOW}',
        'def f(value):\n    """Uses it deep inside."""\n    def inner():\n'
        "        return [LIMIT for _ in range(3)]\n    return inner()\n",
        'def f(value):\n    """Sets a name outside."""\n    global STATE\n    STATE = value\n'
        "    return STATE\n",
    ],
}


def test_what_is_taken_runs_alone() -> None:
    taken = {name: text for reason, text, name in functions_of(MODULE) if not reason}
    assert taken.keys() == {"spread", "common", "countdown"}
    assert taken["spread"] == GOOD
    assert taken["common"].startswith(
        "import os.path\nfrom collections import Counter, defaultdict as grouping\n"
        "from functools import lru_cache\nfrom typing import Any\n\n\n@lru_cache(maxsize=None)\ndef"
    )
    for text in taken.values():
        exec(text, names := dict[str, object]())
        assert not {"np", "sqrt", "LIMIT"} & names.keys()
    assert names.keys() >= {"countdown"}
    exec(taken["common"] + "\nassert common(('b', 'a', 'b')) == ['b', os.path.sep]", {})


@pytest.mark.parametrize(
    ("reason", "text"), [(reason, text) for reason, some in REFUSED.items() for text in some]
)
def test_what_is_not_taken(reason: str, text: str) -> None:
    head = "import numpy as np\nfrom . import sibling\nfrom .types import Limit\nLIMIT = 3\n\n\n"
    compile(head + text, "text", "exec")
    assert functions_of(head + text) == [(reason, "", text.partition("def ")[2].partition("(")[0])]


def test_code_that_cannot_be_parsed_has_no_functions() -> None:
    assert functions_of("def f(:\n") == []


def test_a_corpus_of_functions(tmp_path: Path, make_folder: FolderMaker) -> None:
    files: dict[str, str | bytes] = {
        "a.py": MODULE,
        "b.py": f'"""Another module, and a copy."""\n\nimport sys\n\n\n{GOOD}\nprint(sys)\n',
        "c.py": "\n\n".join(text for some in REFUSED.values() for text in some),
        "d.py": '"""No functions, but enough words to be a document at last."""\nx = [1, 2]\n',
    }
    sources = [folder_source(make_folder("one", {**files, "LICENSE": "MIT License"}), "train")]
    build(tmp_path / "corpus", sources)
    out = tmp_path / "functions"
    result = CliRunner().invoke(data, ["functions", str(tmp_path / "corpus"), str(out), "--json"])
    assert result.exception is None, result.output
    stats = json.loads(result.stdout)
    assert stats == read_stats(out)
    documents = list(read_documents(out, "train"))
    assert [d.path for d in documents] == ["a.py:spread", "a.py:common", "a.py:countdown"]
    assert {d.package for d in documents} == {"one"} and documents[0].text == GOOD
    assert stats["documents"] == 3 and stats["splits"]["train"]["documents"] == 3
    assert stats["bytes"] == sum(len(d.text.encode()) for d in documents)
    refused = {name: len(some) for name, some in REFUSED.items()}
    assert stats["skipped"] == refused | {"duplicate": 1}
    assert stats["skipped"].keys() == REASONS.keys() - {"near-duplicate"}
    assert stats["functions_of"] == read_stats(tmp_path / "corpus")["identity"]
    with pytest.raises(ValueError, match="exists; choose a new folder"):
        mine(tmp_path / "corpus", out)


def test_no_function_stands_alone(tmp_path: Path, make_folder: FolderMaker) -> None:
    text = REFUSED["dependent"][0] + "\n" + REFUSED["undocumented"][0]
    build(tmp_path / "corpus", [folder_source(make_folder("one", {"a.py": text}), "train")])
    with pytest.raises(ValueError, match=r"no function of .* stands alone"):
        mine(tmp_path / "corpus", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "one"]


def test_rules_make_another_identity(
    tmp_path: Path, make_folder: FolderMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "corpus", [folder_source(make_folder("one", {"a.py": MODULE}), "train")])
    first = mine(tmp_path / "corpus", tmp_path / "first")
    assert mine(tmp_path / "corpus", tmp_path / "second")["identity"] == first["identity"]
    monkeypatch.setattr(functions, "_RULES", 0)
    assert mine(tmp_path / "corpus", tmp_path / "third")["identity"] != first["identity"]
