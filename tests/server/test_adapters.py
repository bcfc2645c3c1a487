"""Adapters by name, in every protocol, and loading and dropping them while the server runs.

Catches: a protocol that answers with the base where an adapter was asked for, a name that is
answered though its adapter is gone, a route that loads folders though nobody allowed it.
"""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sounding.engine.adapters import Adapters
from sounding.server.app import application
from sounding.server.options import ServerOptions
from sounding.server.service import Service
from sounding.weights.adapters import Adapter
from tests.server.scripted import ScriptedEngine

ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "x = "},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/infill": {"input_prefix": "x = ", "input_suffix": "\n"},
    "/completion": {"prompt": "x = "},
    "/api/generate": {"prompt": "x = ", "stream": False},
    "/api/chat": {"messages": [{"role": "user", "content": "hi"}], "stream": False},
}


class Deltas:
    """The part of a network that loads adapters."""

    def load_adapter(self, adapter: Adapter) -> Any:
        return adapter


def read(path: Path) -> Adapter:
    if not path.is_dir():
        raise ValueError(f"{path} holds no adapter")
    return Adapter({}, 1.0, "")


class Served:
    """A server over a scripted engine, with the adapter `mine`."""

    def __init__(self, *, loading: bool = False) -> None:
        self.engine = ScriptedEngine()
        adapters = Adapters(Deltas())
        adapters.load("mine", Adapter({}, 1.0, ""))
        service = Service(
            *(self.engine, self.engine.tokenizer, ServerOptions(model_names=("nano",))),
            adapters=adapters,
            read_adapter=read if loading else None,
        )
        self.client = TestClient(application(service))

    def ask(self, path: str, model: str) -> int:
        return self.client.post(path, json=ASKED[path] | {"model": model}).status_code


@pytest.mark.parametrize("path", ASKED)
def test_every_protocol_passes_the_adapter_on(path: str) -> None:
    served = Served()
    assert served.ask(path, "nano:mine") == 200
    assert served.ask(path, "nano") == 200
    names = [request.adapter for request in served.engine.requests]
    half = len(names) // 2  # /infill asks for several candidates
    assert names == ["mine"] * half + [None] * half
    assert served.ask(path, "nano:other") == 404


def test_adapters_are_listed_beside_the_model() -> None:
    data = Served().client.get("/v1/models").json()["data"]
    assert [model["id"] for model in data] == ["nano", "nano:mine"]


def test_adapters_are_loaded_and_dropped(tmp_path: Path) -> None:
    served = Served(loading=True)
    load = {"lora_name": "other", "lora_path": str(tmp_path)}
    assert served.client.post("/v1/load_lora_adapter", json=load).status_code == 200
    assert served.ask("/v1/completions", "nano:other") == 200
    dropped = served.client.post("/v1/unload_lora_adapter", json={"lora_name": "other"})
    assert dropped.status_code == 200
    assert served.ask("/v1/completions", "nano:other") == 404
    again = served.client.post("/v1/unload_lora_adapter", json={"lora_name": "other"})
    assert again.status_code == 404
    for wrong in ({"lora_path": str(tmp_path / "none")}, {"lora_name": "latest"}):
        assert served.client.post("/v1/load_lora_adapter", json=load | wrong).status_code == 400


def test_clients_load_nothing_unless_they_may(tmp_path: Path) -> None:
    load = {"lora_name": "other", "lora_path": str(tmp_path)}
    assert Served().client.post("/v1/load_lora_adapter", json=load).status_code == 404
