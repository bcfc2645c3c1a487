"""Small things that clients ask for: a list of models in Anthropic's form, an honest 415."""

import gzip
import json
from collections.abc import Iterator

import anthropic
import pytest

from sounding.server.options import ServerOptions
from tests.server.live import Live, live, post
from tests.server.scripted import ScriptedEngine


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine("Yes."), ServerOptions(model_names=("nano", "other"))) as running:
        yield running


def test_the_models_as_anthropic_s_library_lists_them(server: Live) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        page = client.models.list()
        assert [model.id for model in page] == ["nano", "other"]
        assert (page.first_id, page.last_id, page.has_more) == ("nano", "other", False)
        assert page.data[0].created_at.timestamp() == int(server.service.began)


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "GZIP"])
def test_a_compressed_body_is_told_as_one(server: Live, encoding: str) -> None:
    body = gzip.compress(json.dumps({"model": "nano", "prompt": "x"}).encode())
    headers = {"content-encoding": encoding}
    for path in ("/v1/completions", "/v1/messages", "/infill", "/api/chat"):
        answer = post(server.url + path, content=body, headers=headers)
        assert answer.status_code == 415 and "Content-Encoding" in answer.text


def test_identity_is_no_compression(server: Live) -> None:
    headers = {"content-encoding": "identity"}
    body = {"model": "nano", "prompt": "x"}
    assert post(server.url + "/v1/completions", json=body, headers=headers).status_code == 200
