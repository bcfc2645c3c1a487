"""States on disk: they survive restarts and kills, and what is damaged is a miss."""

import dataclasses
import errno
import logging
import os
import random
import signal
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.engine.engine import Engine
from sounding.engine.prefix import weights_digest as digests
from sounding.engine.prefix.snapshot import Entries, Tail, entries_between, put_together, take_tail
from sounding.engine.prefix.store import PrefixStore, state_identity
from sounding.engine.prefix.store_folder import MARK_NAME, StoreFolder
from sounding.engine.prefix.weights_digest import weights_digest
from sounding.engine.requests import Event, Finished, Priority
from sounding.engine.settings import BLOCK_TOKENS, EngineSettings
from sounding.files import file_facts
from sounding.model.reference_network import ReferenceNetwork
from sounding.model.state import growing_state
from tests.engine.running import CONFIG, prompt, request
from tests.networks import make_network

NETWORK = ReferenceNetwork(make_network(CONFIG))
MODEL, OTHER = "a" * 16, "b" * 16
KILLS = int(os.environ.get("SOUNDING_KILLS", "5"))


class State(NamedTuple):
    tokens: list[int]
    blocks: Sequence[Entries]
    tail: Tail

    @property
    def bytes(self) -> bytes:
        return put(self.blocks, self.tail)


def put(blocks: Sequence[Entries], tail: Tail) -> bytes:
    """All of a state, to compare."""
    state = growing_state(CONFIG)
    put_together(state, blocks, tail)
    return state.serialize() + tail.streams.tobytes()


@cache
def some_states() -> list[State]:
    """Several prompts, some beginning alike, with a state at every block and at the end."""
    made = []
    shared = prompt(260)
    for tokens in (shared, shared[:200] + prompt(90), prompt(150), prompt(40), shared[:140]):
        state = growing_state(CONFIG)
        for start in range(0, len(tokens), BLOCK_TOKENS):
            chunk = tokens[start : start + BLOCK_TOKENS]
            streams = NETWORK.predict(chunk, (), [len(chunk)], [state]).streams[-1:]
            blocks = [
                entries_between(state, at, at + BLOCK_TOKENS)
                for at in range(0, state.length - BLOCK_TOKENS + 1, BLOCK_TOKENS)
            ]
            made.append(State(tokens[: state.length], blocks, take_tail(state, streams)))
    return made


def expected() -> dict[tuple[int, ...], bytes]:
    return {tuple(state.tokens): state.bytes for state in some_states()}


def fill(store: PrefixStore) -> None:
    for state in some_states():
        store.put(state.tokens, state.blocks, state.tail, whole=False)
    store.flush()


def check(store: PrefixStore, folder: Path, limit: int = 10**9) -> int:
    """Whatever is found is right, and nothing else lies about; how many were found whole."""
    known, whole = expected(), 0
    for state in some_states():
        found = store.find([*state.tokens, 3], beyond=0, known_blocks=0)
        if found is not None:
            assert put(found.blocks, found.tail) == known[tuple(found.tokens)]
            assert found.tail.length == len(found.tokens)
            whole += len(found.tokens) == len(state.tokens)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MARK_NAME]
    assert not [path for path in files if path.name.startswith(".")]
    assert store.nbytes == sum(path.stat().st_size for path in files) <= limit
    return whole


def test_what_was_put_is_found_after_a_restart(tmp_path: Path) -> None:
    store = PrefixStore(tmp_path / "new" / "store", MODEL, 10**9)
    fill(store)
    assert check(store, tmp_path) == len(some_states())
    store.close()
    store = PrefixStore(tmp_path / "new" / "store", MODEL, 10**9)
    assert check(store, tmp_path) == len(some_states()) and len(store) > 5
    state = some_states()[1]
    found = store.find(state.tokens, beyond=0, known_blocks=1)
    assert found is not None and len(found.blocks) == 1
    assert store.find(state.tokens, beyond=len(state.tokens), known_blocks=0) is None
    store.close()
    other = PrefixStore(tmp_path / "new" / "store", OTHER, 10**9)
    assert other.find(state.tokens, beyond=0, known_blocks=0) is None and len(other) == 0
    assert other.nbytes > 0  # the limit is for all models together
    other.close()


def test_only_for_a_whole_prompt(tmp_path: Path) -> None:
    store = PrefixStore(tmp_path, MODEL, 10**9)
    state = some_states()[2]
    store.put(state.tokens, state.blocks, state.tail, whole=True)
    store.flush()
    assert store.find([*state.tokens, 3], beyond=0, known_blocks=0) is None
    assert store.find(state.tokens, beyond=0, known_blocks=0) is not None
    store.close()


@settings(max_examples=6)
@given(data=st.data())
def test_damage_is_a_miss(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A flipped bit, a file cut short, emptied, swapped with another or gone."""
    folder = tmp_path_factory.mktemp("store")
    store = PrefixStore(folder, MODEL, 10**9)
    fill(store)
    store.close()
    files = sorted((folder / MODEL).glob("*.[bt]*"))
    file, other = (files[data.draw(st.integers(0, len(files) - 1))] for _ in range(2))
    contents = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "flip", "flip", "cut", "empty", "swap", "gone"]))
    if kind == "flip":
        at = data.draw(st.integers(0, 8 * len(contents) - 1))
        contents[at // 8] ^= 1 << at % 8
    elif kind == "cut":
        del contents[data.draw(st.integers(0, len(contents) - 1)) :]
    elif kind == "empty":
        contents.clear()
    elif kind == "swap":
        contents[:] = other.read_bytes()
    file.write_bytes(contents)
    if kind == "gone":
        file.unlink()
    logging.disable()
    store = PrefixStore(folder, MODEL, 10**9)
    found = check(store, folder)
    damaged = kind != "swap" or file != other
    assert (found < len(some_states())) == damaged
    fill(store)  # what was damaged is written anew
    assert check(store, folder) == len(some_states())
    store.close()
    logging.disable(logging.NOTSET)


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = PrefixStore(tmp_path, MODEL, 10**9)
    fill(store)
    total, first = store.nbytes, some_states()[0]
    store.find(first.tokens, beyond=0, known_blocks=0)
    store.close()
    limit = total // 3
    store = PrefixStore(tmp_path, MODEL, limit)
    assert 0 < check(store, tmp_path, limit) < len(some_states())
    assert store.find(first.tokens, beyond=0, known_blocks=0) is not None
    fill(store)
    check(store, tmp_path, limit)
    store.close()


def test_a_folder_that_cannot_be_used_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = PrefixStore(tmp_path / "file", MODEL, 10**9)
    fill(store)
    assert not store.usable and check(store, tmp_path / "none") == 0
    store.close()
    first = PrefixStore(tmp_path / "store", MODEL, 10**9)
    second = PrefixStore(tmp_path / "store", MODEL, 10**9)
    assert first.usable and not second.usable
    first.close()
    second.close()
    assert caplog.text.count("prefixes are not kept on disk") == 2
    assert "another process uses this folder" in caplog.text


def test_a_full_disk_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(folder: StoreFolder, name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", name)

    write = StoreFolder.write
    monkeypatch.setattr(StoreFolder, "write", full)
    store = PrefixStore(tmp_path, MODEL, 10**9)
    fill(store)
    assert check(store, tmp_path) == 0
    assert caplog.text.count("No space left") == 1  # and then no more is tried for a while
    monkeypatch.setattr(StoreFolder, "write", write)
    monkeypatch.setattr(store, "_paused_until", 0.0)
    fill(store)
    assert check(store, tmp_path) == len(some_states())
    store.close()


def _write_for_ever(folder: Path, limit: int, seed: int) -> None:
    choose = random.Random(seed)
    store = PrefixStore(folder, MODEL, limit)
    while True:
        state = choose.choice(some_states())
        store.put(state.tokens, state.blocks, state.tail, whole=False)
        store.flush()


def test_killed_while_writing(tmp_path: Path) -> None:
    """At any moment: what was unfinished is dropped, the rest is right. Half the states fit, so
    that files come and go; set SOUNDING_KILLS for more kills."""
    sizes = PrefixStore(tmp_path / "all", MODEL, 10**9)
    fill(sizes)
    limit = sizes.nbytes // 2
    sizes.close()
    folder, choose, found = tmp_path / "store", random.Random(1), 0
    for kill in range(KILLS):
        child = os.fork()
        if child == 0:
            try:
                _write_for_ever(folder, limit, kill)
            finally:
                os._exit(1)
        time.sleep(choose.uniform(0.02, 0.3))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        store = PrefixStore(folder, MODEL, limit)
        assert store.usable
        found += check(store, folder, limit)
        store.close()
    assert found > 0


def answer(engine: Engine, tokens: list[int], **how: Any) -> tuple[list[Event], Finished]:
    asked = request(tokens, temperature=1.0, top_logprobs=2, max_tokens=3, **how)
    *events, last = engine.submit(asked)
    assert isinstance(last, Finished)
    return events, last


def test_an_engine_goes_on_where_another_ended(tmp_path: Path) -> None:
    """To the same bits as one that computes everything."""
    cold = Engine(NETWORK, settings=EngineSettings(prefix_limit_bytes=0))
    tokens = prompt(700)
    identity = state_identity(NETWORK, EngineSettings())
    hits = []
    for more in (0, 60, 200):
        engine = Engine(NETWORK, store=PrefixStore(tmp_path, identity, 10**9))
        given = tokens + prompt(more)
        (events, end), (expected_events, _) = answer(engine, given), answer(cold, given)
        assert events == expected_events
        answer(engine, prompt(300), priority=Priority.KEYSTROKE)
        hits.append(end.usage.hit_tokens)
        stats = engine.stats()
        engine.close()
        assert stats.stored_bytes >= 0
    cold.close()
    assert hits == [0, 640, 640]
    store = PrefixStore(tmp_path, identity, 10**9)
    assert store.find(prompt(300), beyond=0, known_blocks=0) is None  # was typed
    store.close()


def test_identities_differ_where_states_do() -> None:
    plain = EngineSettings()
    other = ReferenceNetwork(make_network(dataclasses.replace(CONFIG, rms_norm_eps=1e-5)))
    names = [
        state_identity(NETWORK, plain),
        state_identity(NETWORK, EngineSettings(exact_splits=True)),
        state_identity(ReferenceNetwork(make_network(CONFIG, seed=1)), plain),
        state_identity(ReferenceNetwork(make_network(CONFIG, dtype=torch.bfloat16)), plain),
        state_identity(other, plain),
    ]
    assert len(set(names)) == len(names)
    assert names[0] == state_identity(ReferenceNetwork(make_network(CONFIG)), plain)


def test_every_byte_of_the_weights_is_in_the_identity() -> None:
    """Rows edited far behind the beginning of a weight, or one bit of any of them."""
    network, plain = ReferenceNetwork(make_network(CONFIG)), EngineSettings()
    digest, name = weights_digest(network), state_identity(network, plain)
    for parameter in network.model.parameters():
        flat = parameter.data.view(-1).view(torch.uint8)
        for at in (flat.numel() // 2, flat.numel() - 1):
            flat[at] ^= 1
            assert weights_digest(network) != digest
            flat[at] ^= 1
    assert state_identity(network, plain) == name
    network.model.embed.weight.data[5:].neg_()
    assert state_identity(network, plain) != name


def test_the_digest_of_a_large_network_is_kept_with_the_facts_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, store = tmp_path / "a.safetensors", tmp_path / "store"
    shard.write_bytes(b"one")
    network = ReferenceNetwork(make_network(CONFIG))
    fresh = weights_digest(network)
    monkeypatch.setattr(digests, "_LARGE_BYTES", 1)
    facts = file_facts([shard])
    assert weights_digest(network, facts, store) == fresh
    network.model.embed.weight.data.neg_()
    assert weights_digest(network, facts, store) == fresh  # was not read again
    before = shard.stat()
    shard.write_bytes(b"two")
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights_digest(network, file_facts([shard]), store) == weights_digest(network) != fresh
    for kept in store.glob("*.digest"):
        kept.write_text("damaged")
    assert weights_digest(network, facts, store) == weights_digest(network)
    PrefixStore(store, MODEL).close()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("")
    with pytest.raises(ValueError, match="new or empty"):
        weights_digest(network, facts, tmp_path / "theirs")
