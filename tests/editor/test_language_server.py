"""The language server as a process, asked by an editor of our own over its pipes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_completion import model  # noqa: F401  (a random network in a folder)
from tests.editor.scripted_editor import SCRIPTED, SECONDS, Editor

Span = tuple[int, int]


@pytest.fixture(scope="module")
def running() -> Iterator[Editor]:
    with Editor(SCRIPTED) as editor:
        yield editor


@pytest.fixture
def editor(running: Editor) -> Iterator[Editor]:
    yield running
    running.close_all()


def edit(start: Span, end: Span, text: str) -> dict[str, object]:
    def place(span: Span) -> dict[str, int]:
        return {"line": span[0], "character": span[1]}

    return {"range": {"start": place(start), "end": place(end)}, "text": text}


def test_what_is_offered(editor: Editor) -> None:
    capabilities = editor.server["capabilities"]
    assert capabilities["positionEncoding"] == "utf-16"
    assert capabilities["textDocumentSync"]["change"] == 2  # incremental
    assert "inlineCompletionProvider" in capabilities
    assert "completionProvider" in capabilities
    assert editor.server["serverInfo"]["name"] == "sounding"


def test_ghost_text_ends_with_its_line(editor: Editor) -> None:
    editor.open("file:///w/line.py", "# says + b\\nprint(1)\nx = a ")
    (item,) = editor.inline("file:///w/line.py", 1, 6)
    assert item["insertText"] == "+ b"
    place = {"line": 1, "character": 6}
    assert item["range"] == {"start": place, "end": place}


def test_a_block_where_one_begins(editor: Editor) -> None:
    text = "# says     y = 1\\n    return y\\n\\n\\nz\ndef f():\n"
    editor.open("file:///w/block.py", text)
    (item,) = editor.inline("file:///w/block.py", 2, 0)
    assert item["insertText"] == "    y = 1\n    return y"


def test_units_are_utf_16(editor: Editor) -> None:
    uri = "file:///w/units.py"
    editor.open(uri, "# says .upper()\ns = '🌊é' + x\n")
    assert editor.inline(uri, 1, 9) is not None  # behind the quote: "🌊" counts two
    editor.wait_until_asked("# says .upper()\ns = '🌊é'")
    (item,) = editor.menu(uri, 1, 13)
    assert item["textEdit"]["newText"] == "x.upper()"
    assert item["textEdit"]["range"]["start"] == {"line": 1, "character": 12}


def test_units_are_what_was_agreed_on() -> None:
    wanted = {"general": {"positionEncodings": ["utf-8", "utf-16"]}}
    with Editor(SCRIPTED, wanted) as editor:
        assert editor.server["capabilities"]["positionEncoding"] == "utf-8"
        editor.open("file:///w/a.py", "# says .upper()\ns = '🌊é'")
        assert editor.inline("file:///w/a.py", 1, 12) is not None
        editor.wait_until_asked("# says .upper()\ns = '🌊é'")


def test_edits_and_line_ends(editor: Editor) -> None:
    uri = "file:///w/edits.py"
    # A form feed ends no line, and a CR does.
    editor.open(uri, "# says 1\r\n\f🌊 = 2\rb = 🌊\n")
    editor.change(
        uri,
        edit((1, 1), (1, 3), "wave"),  # 🌊 on the first line
        edit((2, 4), (2, 99), "wave\r\nc = "),  # to the end of the line
        edit((9, 0), (9, 0), "d = "),  # at the end of the document
    )
    assert editor.inline(uri, 3, 4) is not None
    editor.wait_until_asked("# says 1\n\fwave = 2\nb = wave\nc = ")
    assert editor.inline(uri, 4, 4) is not None
    editor.wait_until_asked("# says 1\n\fwave = 2\nb = wave\nc = \nd = ")
    editor.change(uri, {"text": "# says 2\ne = "})
    assert editor.inline(uri, 1, 4)[0]["insertText"] == "2"


def test_menu_item_repeats_the_word(editor: Editor) -> None:
    editor.open("file:///w/menu.py", "# says o.bar(\\n    1)\nx = fo")
    (item,) = editor.menu("file:///w/menu.py", 1, 6)
    assert item["label"] == "foo.bar("
    assert item["filterText"] == item["textEdit"]["newText"] == "foo.bar("
    assert item["textEdit"]["range"] == {
        "start": {"line": 1, "character": 4},
        "end": {"line": 1, "character": 6},
    }


def test_the_chosen_item_of_an_open_menu_counts(editor: Editor) -> None:
    uri = "file:///w/chosen.py"
    editor.open(uri, "# says (1)\nx = so")
    where = edit((1, 4), (1, 6), "sorted")
    (item,) = editor.inline(uri, 1, 6, selectedCompletionInfo=where)
    assert item["insertText"] == "sorted(1)"
    assert item["range"] == where["range"]


def test_typing_along_needs_no_model(editor: Editor) -> None:
    uri = "file:///w/along.py"
    editor.open(uri, "# says foo(bar)\nx = ")
    assert editor.inline(uri, 1, 4)[0]["insertText"] == "foo(bar)"
    editor.wait_until_asked("# says foo(bar)\nx = ")  # the log comes through another pipe
    editor.change(uri, edit((1, 4), (1, 4), "fo"))
    asked = len(editor.log)
    assert editor.inline(uri, 1, 6)[0]["insertText"] == "o(bar)"
    assert editor.menu(uri, 1, 6)[0]["textEdit"]["newText"] == "foo(bar)"
    assert not any("asked" in line for line in editor.log[asked:])
    editor.change(uri, edit((1, 6), (1, 6), "r"))
    assert editor.inline(uri, 1, 7)[0]["insertText"] == "foo(bar)"


def test_other_open_documents_are_read(editor: Editor) -> None:
    editor.open("file:///w/lib/shapes.py", "def surface_of_sphere(radius):\n    return 4\n")
    editor.open("file:///w/uses.py", "# says 2)\nprint(surface_of_sphere(")
    editor.inline("file:///w/uses.py", 1, 24)
    shown = "# lib/shapes.py\ndef surface_of_sphere(radius):\n    return 4\n\n"
    editor.wait_until_asked(shown + "# says 2)\nprint(surface_of_sphere(")
    editor.close("file:///w/lib/shapes.py")
    editor.change("file:///w/uses.py", {"text": "# says 2)\nprint(1 + surface_of_sphere("})
    editor.inline("file:///w/uses.py", 1, 28)
    editor.wait_until_asked("# says 2)\nprint(1 + surface_of_sphere(")


def test_cancelling_ends_the_generation(editor: Editor) -> None:
    uri = "file:///w/cancel.py"
    editor.open(uri, "# endless\nx = ")
    ended = editor.log.count("ended\n")
    request = editor.begin_inline(uri, 1, 4)
    editor.wait_until_asked("# endless\nx = ")
    editor.tell("$/cancelRequest", {"id": request})
    assert editor.end(request)["error"]["code"] == -32800
    editor.wait_for_log(lambda log: log.count("ended\n") > ended, "ended")


def test_a_newer_request_overtakes(editor: Editor) -> None:
    uri = "file:///w/newer.py"
    editor.open(uri, "# endless\ny = ")
    ended = editor.log.count("ended\n")
    first = editor.begin_inline(uri, 1, 4)
    shared = editor.begin_inline(uri, 1, 4)
    editor.wait_until_asked("# endless\ny = ")
    editor.change(uri, edit((0, 0), (0, 9), "# says 3"))
    second = editor.begin_inline(uri, 1, 4)
    assert editor.end(second)["result"][0]["insertText"] == "3"
    assert editor.end(first)["result"] is editor.end(shared)["result"] is None
    editor.wait_for_log(lambda log: log.count("ended\n") > ended, "ended")


def test_the_loop_is_never_blocked(editor: Editor) -> None:
    editor.open("file:///w/busy.py", "# endless\nz = ")
    busy = editor.begin_inline("file:///w/busy.py", 1, 4)
    editor.wait_until_asked("# endless\nz = ")
    answer = editor.ask("sounding/anything", {})
    assert answer["error"]["code"] == -32601
    editor.close("file:///w/busy.py")
    assert editor.end(busy)["result"] is None


def test_errors_are_shown_once(editor: Editor) -> None:
    uri = "file:///w/fails.py"
    editor.open(uri, "# fails badly\nx = ")
    assert editor.inline(uri, 1, 4) is None
    assert editor.inline(uri, 1, 3) is None
    editor.wait_for_message("Sounding: badly")
    assert editor.menu(uri, 1, 4) == []
    shown = [message["params"] for message in editor.messages]
    assert shown == [{"type": 1, "message": "Sounding: badly"}]


def test_parameters_that_are_none(editor: Editor) -> None:
    error = editor.ask("textDocument/inlineCompletion", {"position": 5})["error"]
    assert error["code"] == -32602
    assert error["message"] == "invalid parameters for textDocument/inlineCompletion"


def test_documents_that_are_not_open(editor: Editor) -> None:
    request = editor.begin_inline("file:///w/unknown.py", 0, 0)
    error = editor.end(request)["error"]
    assert error["code"] == -32602
    assert "file:///w/unknown.py is not open" in error["message"]


def test_shutdown_during_a_completion() -> None:
    with Editor(SCRIPTED) as editor:
        editor.open("file:///w/a.py", "# endless\nx = ")
        request = editor.begin_inline("file:///w/a.py", 1, 4)
        editor.wait_until_asked("# endless\nx = ")
        assert editor.leave() == 0
        assert editor.end(request)["error"]["code"] == -32800


COMMAND = ["-m", "sounding", "language-server"]


def test_the_command_suggests_code_and_exits_cleanly(model: Path) -> None:  # noqa: F811
    arguments = [str(model), "--budget-ms", "0", "--max-tokens", "8", "--context-tokens", "64"]
    with Editor([*COMMAND, *arguments]) as editor:
        editor.open("file:///w/a.py", "def add(a, b):\n    return a\n\n\nx = add(1, 2)\n")
        items = [editor.inline("file:///w/a.py", 1, 10 + count) for count in (0, 1, 2, 3)]
        assert any(items), "a random network may be silent at one place, but not at all of them"
        assert not editor.messages
        assert editor.leave() == 0


def test_models_that_are_not_there() -> None:
    with Editor([*COMMAND, "/nowhere"]) as editor:
        editor.wait_for_message("Sounding: '/nowhere' is neither")
        editor.open("file:///w/a.py", "x = ")
        assert editor.inline("file:///w/a.py", 0, 4) is None
        editor.tell("exit", None)  # without a shutdown
        assert editor.process.wait(SECONDS) == 1
        assert len(editor.messages) == 1


def test_a_closed_stdin_ends_it() -> None:
    result = subprocess.run(
        [sys.executable, *COMMAND, "/nowhere"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, b"")


@pytest.mark.parametrize(
    "sent",
    [
        b"Content-Length: abc\r\n\r\n{}",
        b'Content-Length: 9\r\n\r\n{"jsonrpc":"2.0","method":"x"}',  # shorter than what is sent
    ],
)
def test_a_frame_that_cannot_be_read_ends_it(sent: bytes) -> None:
    """So that the editor starts it anew; whatever came behind would be misread."""
    with Editor(SCRIPTED) as editor:
        assert editor.process.stdin is not None
        editor.process.stdin.write(sent)
        editor.process.stdin.flush()
        editor.wait_for_message("the editor sent an invalid message")
        assert editor.process.wait(SECONDS) == 1


def test_other_documents_do_not_wait(editor: Editor) -> None:
    editor.open("file:///w/busy.py", "# endless\nx = ")
    busy = editor.begin_inline("file:///w/busy.py", 1, 4)
    editor.wait_until_asked("# endless\nx = ")
    editor.open("file:///w/other.py", "# says + 1\nx = y ")
    (item,) = editor.inline("file:///w/other.py", 1, 6)
    assert item["insertText"] == "+ 1"
    editor.close("file:///w/busy.py")
    assert editor.end(busy)["result"] is None


def test_of_a_long_document_what_is_near_is_looked_at(editor: Editor) -> None:
    uri = "file:///w/long.py"
    lines = "x = 1234\n" * 100_000
    editor.open(uri, lines + "# says + 1\ny = x \n" + lines)
    (item,) = editor.inline(uri, 100_001, 6)
    assert item["insertText"] == "+ 1"
    editor.change(uri, edit((100_001, 6), (100_001, 6), "+ 2 "))
    (item,) = editor.inline(uri, 100_001, 10)
    assert item["range"]["start"] == {"line": 100_001, "character": 10}


def test_a_place_beyond_the_end_is_the_end(editor: Editor) -> None:
    uri = "file:///w/end.py"
    editor.open(uri, "# says + 1\ny = x ")
    (item,) = editor.inline(uri, 1_000_000_000, 0)
    place = {"line": 1, "character": 6}
    assert item["range"] == {"start": place, "end": place}
    (entry,) = editor.menu(uri, 1, 4_000)
    assert entry["textEdit"]["range"]["end"] == place
