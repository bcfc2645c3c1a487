"""A prefix store leaves everything that it did not make as it is, whatever lies in its folder.

Catches: removing by pattern alone, following links, taking over a folder that others use.
"""

import os
import random
import re
import string
from pathlib import Path

import numpy as np
import pytest

from sounding.engine.prefix.snapshot import Tail
from sounding.engine.prefix.store import PrefixStore
from sounding.engine.prefix.store_folder import MARK_NAME

MODEL, OTHER = "a" * 16, "0123456789abcdef"
HEX = "0123456789abcdef"
TAIL = Tail(3, {"e": np.ones(3)}, {"r": np.zeros(2)}, {"r": 2}, np.ones(4), False)


def snapshot(folder: Path) -> dict[str, object]:
    """Everything below a folder: kinds, contents, times, where links lead."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = (facts.st_mode, facts.st_mtime_ns, path.read_bytes())
        else:
            found[name] = facts.st_mode
    return found


def fill(store: PrefixStore, choose: random.Random) -> None:
    """Puts short prompts, and asks for some."""
    for _ in range(choose.randrange(8)):
        tokens = [choose.randrange(50) for _ in range(choose.randint(1, 100))]
        store.put(tokens, [], TAIL, whole=choose.random() < 0.5)
        store.flush()
        store.find(tokens, beyond=0, known_blocks=0)


def digits(choose: random.Random, count: int) -> str:
    return "".join(choose.choices(HEX, k=count))


def a_name(choose: random.Random) -> str:
    """Of a user's file, often much like one of ours."""
    a, b, end = digits(choose, 32), digits(choose, 32), digits(choose, 8)
    plain = "".join(choose.choices(string.ascii_letters, k=5))
    like_ours = [
        f"{a}.block",
        f"{a}-3-{b}-any.tail",
        f".{a}.block.{end}",
        f".{a}-3-{b}-any.tail.{end}",
    ]
    almost = [
        f"{a}.block.bak",
        f"{plain}.block",
        f"{plain}.tail",
        f".{a}.block.{end}~",
        f"{a}-3-{b}-x.tail",
    ]
    usual = [".git", ".env", ".gitignore", "lock", plain, f".{plain}", f"{plain}.py", "ü.txt"]
    folders = [MODEL, OTHER, digits(choose, 16), digits(choose, 15)]
    return choose.choice([*like_ours, *almost, *usual, *folders, *usual])


def plant(folder: Path, choose: random.Random, depth: int, outside: Path) -> None:
    """Some files, folders, links and pipes of a user."""
    for _ in range(choose.randint(1, 5)):
        path = folder / a_name(choose)
        if path.exists() or path.is_symlink():
            continue
        kind = choose.random()
        if kind < 0.2 and depth:
            path.mkdir()
            plant(path, choose, depth - 1, outside)
        elif kind < 0.35:
            path.symlink_to(outside if choose.random() < 0.7 else "nowhere")
        elif kind < 0.4:
            os.mkfifo(path)
        else:
            path.write_bytes(choose.randbytes(choose.randrange(300)))
            os.utime(path, (choose.randrange(10**9), choose.randrange(10**9)))


def use(folder: Path, choose: random.Random) -> None:
    """Open a store as a server does, with little room so that files come and go."""
    try:
        store = PrefixStore(folder, choose.choice([MODEL, OTHER]), choose.choice([1, 500, 10**6]))
    except ValueError as refused:
        assert str(folder) in str(refused) and "new or empty" in str(refused)
        return
    fill(store, choose)
    store.close()


def one_run(base: Path, seed: int) -> None:
    """Whatever the user has is there before and after, to the byte."""
    choose = random.Random(seed)
    outside, folder = base / "outside", base / "h"
    for made in (base, outside, folder):
        made.mkdir()
    ours: set[str] = set()
    if choose.random() < 0.6:  # the user's files come into a store of ours
        use(folder, choose)
        ours = set(snapshot(base))
        inside = [folder, *(path for path in folder.iterdir() if path.is_dir())]
        for place in choose.sample(inside, k=choose.randint(1, len(inside))):
            plant(place, choose, 2, outside)
    else:
        plant(folder, choose, 3, outside)
    plant(outside, choose, 2, outside)
    theirs = {
        name: what
        for name, what in snapshot(base).items()
        if name not in ours and not named_like_ours(base / name)
    }
    for _ in range(choose.randint(1, 3)):
        use(folder, choose)
    after = snapshot(base)
    assert {name: after.get(name) for name in theirs} == theirs, f"seed {seed}"


def named_like_ours(path: Path) -> bool:
    """A regular file with a name that only a store gives, where a store keeps such."""
    name = r"([0-9a-f]{32}\.block|[0-9a-f]{32}-\d+-[0-9a-f]{32}-(any|whole)\.tail)"
    return (
        path.is_file()
        and not path.is_symlink()
        and (path.parent / MARK_NAME).is_file()
        and re.fullmatch("[0-9a-f]{16}", path.parent.name) is not None
        and re.fullmatch(rf"{name}|\.{name}\.[0-9a-f]{{8}}", path.name) is not None
    )


def test_what_others_have_stays_as_it_is(tmp_path: Path) -> None:
    for seed in range(50):
        one_run(tmp_path / str(seed), seed)


@pytest.mark.long
def test_what_others_have_stays_as_it_is_in_a_thousand_runs(tmp_path: Path) -> None:
    for seed in range(1000, 2000):
        one_run(tmp_path / str(seed), seed)


def test_a_home_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "proj" / ".git").mkdir(parents=True)
    (tmp_path / "proj" / ".env").write_text("mine")
    (tmp_path / "proj" / "a.block").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"not empty and was not made by a prefix store.*empty"):
        PrefixStore(tmp_path, MODEL, 1)
    assert snapshot(tmp_path) == before


def test_a_store_without_a_mark_is_refused(tmp_path: Path) -> None:
    """Nothing in it could be found: it is of a version whose identities were others."""
    (tmp_path / MODEL).mkdir()
    (tmp_path / MODEL / f"{'0' * 32}.block").write_text("")
    (tmp_path / "lock").write_text("")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=MARK_NAME):
        PrefixStore(tmp_path, MODEL, 1)
    assert snapshot(tmp_path) == before


def test_a_link_in_place_of_a_model_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    for folder in (other, tmp_path / "store"):
        PrefixStore(folder, OTHER, 1).close()
    (other / OTHER / f"{'0' * 32}.block").write_text("of another store")
    (tmp_path / "store" / MODEL).symlink_to(other / OTHER)
    before = snapshot(other)
    with pytest.raises(ValueError, match=MODEL):
        PrefixStore(tmp_path / "store", MODEL, 1)
    PrefixStore(tmp_path / "store", OTHER, 1).close()
    assert snapshot(other) == before


def test_a_folder_that_becomes_a_link_while_it_is_used_is_not_followed(tmp_path: Path) -> None:
    store = PrefixStore(tmp_path / "store", MODEL, 10**6)
    fill(store, random.Random(3))
    assert len(store)
    (tmp_path / "store" / MODEL).rename(tmp_path / "moved")
    (tmp_path / "else").mkdir()
    for path in (tmp_path / "moved").iterdir():
        (tmp_path / "else" / path.name).write_text("mine")
    (tmp_path / "store" / MODEL).symlink_to(tmp_path / "else")
    before = snapshot(tmp_path / "else")
    store.limit_bytes = 1
    fill(store, random.Random(3))
    store.close()
    assert snapshot(tmp_path / "else") == before


def test_a_store_whose_making_was_interrupted_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / MARK_NAME).write_bytes(b"This folder")
    store = PrefixStore(tmp_path, MODEL, 10**6)
    assert store.usable
    store.close()
    (tmp_path / MARK_NAME).write_bytes(b"my own notes")
    with pytest.raises(ValueError, match="new or empty"):
        PrefixStore(tmp_path, MODEL, 10**6)
    assert (tmp_path / MARK_NAME).read_bytes() == b"my own notes"


def test_an_identity_is_a_name_of_16_digits(tmp_path: Path) -> None:
    for name in ("a", "../" + "a" * 13, "A" * 16):
        with pytest.raises(ValueError, match="16 hexadecimal digits"):
            PrefixStore(tmp_path, name)
    assert not list(tmp_path.iterdir())
