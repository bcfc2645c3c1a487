"""One conversation with tools, over an engine in this process and over HTTP with our own server."""

from collections.abc import Callable, Iterator

import pytest

from sounding.agent.engine_chat import EngineChat
from sounding.agent.http_chat import HTTPChat
from sounding.agent.loop import Chat, Transcript, converse
from sounding.engine.sampling import SamplingParams
from sounding.tasks.checks import FilesCheck
from sounding.tasks.workspace import Workspace
from tests.server.live import Live, live
from tests.server.scripted import ScriptedEngine
from tests.tasks.test_checks import FILES

EDIT = (
    "Let me mend it.\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="edit">\n'
    '<｜DSML｜parameter name="path" string="true">solution.py</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="old" string="true">a - b</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="new" string="true">a + b</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
    "</｜DSML｜tool_calls>"
)
ASK = [{"role": "user", "content": "Repair solution.py."}]


def script(prompt: str) -> str:
    """Edits once, then says so; thinks where it is asked to."""
    thought = "Look.</think>" if prompt.endswith("<think>") else ""
    if "## Tools" not in prompt:
        return thought + "No tools."
    return thought + ("Done." if "<tool_result>edited" in prompt else EDIT)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine(script)) as running:
        yield running


def over_http(server: Live) -> Chat:
    return HTTPChat(server.url, temperature=0.0, top_p=1.0, max_tokens=200)


def in_process(server: Live) -> Chat:
    engine = server.engine
    assert isinstance(engine, ScriptedEngine)
    return EngineChat(engine, engine.tokenizer, SamplingParams(temperature=0.0), 200)


def conversed(chat: Chat, *, thinking: bool = False) -> tuple[Transcript, Workspace]:
    check: FilesCheck = FILES
    workspace = Workspace(check)
    return converse(chat, ASK, workspace, most_turns=4, thinking=thinking), workspace


@pytest.mark.parametrize("thinking", [False, True])
def test_both_ways_send_the_same_prompts_and_leave_the_same_files(
    server: Live, *, thinking: bool
) -> None:
    engine = server.engine
    assert isinstance(engine, ScriptedEngine)
    prompts, ways = [], (in_process, over_http)
    for way in ways:
        before = len(engine.prompts)
        said, workspace = conversed(way(server), thinking=thinking)
        prompts.append(engine.prompts[before:])
        assert (said.ended, said.turns) == ("answer", 2)
        assert said.messages[-1]["content"] == "Done."
        assert [bool(m.get("reasoning_content")) for m in said.messages] == [
            thinking,
            False,
            thinking,
        ]
        assert workspace.files["solution.py"] == "def add(a, b):\n    return a + b\n"
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) == 2


@pytest.mark.parametrize("way", [in_process, over_http])
def test_a_conversation_longer_than_the_context_is_cut_off(
    server: Live, way: Callable[[Live], Chat]
) -> None:
    long = [{"role": "user", "content": "x " * 9000}]
    assert converse(way(server), long, None, most_turns=2).ended == "length"


def test_an_address_that_is_none_is_refused() -> None:
    for url in ("localhost:8000", "https://127.0.0.1", "ftp://x", ""):
        with pytest.raises(ValueError, match="no address such as"):
            HTTPChat(url, temperature=0.0, top_p=1.0, max_tokens=8)


def test_no_server_is_an_error_that_names_the_address() -> None:
    chat = HTTPChat("http://127.0.0.1:9", temperature=0.0, top_p=1.0, max_tokens=8)
    with pytest.raises(OSError, match="gave no whole answer"):
        converse(chat, ASK, None, most_turns=1)


def test_a_server_that_refuses_is_an_error_with_its_words(server: Live) -> None:
    chat = HTTPChat(server.url, temperature=-1.0, top_p=1.0, max_tokens=8)
    with pytest.raises(ValueError, match="temperature"):
        converse(chat, ASK, None, most_turns=1)
