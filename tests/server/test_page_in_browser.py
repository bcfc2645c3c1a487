"""The page in a real browser, before a server that speaks by rote."""

from collections.abc import Iterator

import pytest

from tests.server.browser import EXECUTABLE, Browser
from tests.server.scripted_page import ANSWER, REASONING, Running, ScriptedServer, status

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="there is no chromium here")

WIDE, PHONE = (1200, 800), (360, 740)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Browser, Running]]:
    with Running() as server:
        browser = Browser()
        try:
            yield browser, server
        finally:
            browser.close()


@pytest.fixture
def server(running: tuple[Browser, Running]) -> ScriptedServer:
    running[1].script.reset()
    return running[1].script


@pytest.fixture
def browser(running: tuple[Browser, Running], server: ScriptedServer) -> Iterator[Browser]:
    browser, running_server = running
    browser.size(*WIDE)
    browser.dark(False)
    browser.open("about:blank")
    browser.problems.clear()
    browser.requested.clear()
    browser.open(running_server.url)
    browser.run("sessionStorage.clear(), localStorage.clear()")
    browser.open(f"{running_server.url}/?anew")
    browser.wait("document.getElementById('model-name').textContent === 'nano'")
    yield browser
    assert not browser.problems
    assert all(url.startswith((running_server.url, "about:")) for url in browser.requested)


# --------------------------------------------------------------------------------------------------
# Chat


def say(browser: Browser, text: str) -> None:
    browser.run("document.getElementById('message').focus()")
    browser.type(text)
    browser.press("Enter")


def test_an_answer_streams_in(browser: Browser, server: ScriptedServer) -> None:
    browser.run("document.getElementById('think').value = 'high'")
    browser.run("document.getElementById('system').value = 'Be brief.'")
    say(browser, "What is the mean?")
    browser.wait("document.querySelector('.facts')")
    assert browser.text(".user") == "What is the mean?"
    # Markup of the model is text, its fences are code.
    assert browser.text(".text p:last-child") == "<b>Mind</b> the empty list."
    assert browser.text(".text pre") == ANSWER.split("```")[1].removeprefix("python\n").rstrip()
    assert browser.text(".text strong") == "mean"
    assert browser.run("document.querySelector('details').open") is False
    assert browser.run("document.querySelector('details p').textContent") == REASONING
    assert "75 % of the prompt from the cache" in browser.text(".facts")
    assert browser.run("document.getElementById('message').value") == ""
    say(browser, "Sure?")
    browser.wait("document.querySelectorAll('.facts').length === 2")
    first, second = (asked for _, asked in server.asked)
    assert first["model"] == "nano"
    assert first["thinking"] == {"type": "enabled"}
    assert first["reasoning_effort"] == "high"
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the mean?"},
    ]
    answered = {"role": "assistant", "content": ANSWER, "reasoning_content": REASONING}
    assert second["messages"] == [
        *first["messages"],
        answered,
        {"role": "user", "content": "Sure?"},
    ]


def test_stopping_an_answer(browser: Browser, server: ScriptedServer) -> None:
    server.endless = True
    say(browser, "Go on and on.")
    browser.wait("document.querySelector('.text').innerText.includes('more more')")
    assert browser.text("#send") == "Stop"
    browser.press("Escape")
    browser.wait("document.querySelector('.facts')")
    assert browser.text(".facts") == "stopped"
    assert browser.text("#send") == "Send"
    assert server.left.wait(10)  # the server is told
    server.endless = False
    say(browser, "And now?")
    browser.wait("document.querySelectorAll('.facts').length === 2")
    assert " more more" in server.asked[1][1]["messages"][1]["content"]


def test_a_new_line_and_a_new_chat(browser: Browser, server: ScriptedServer) -> None:
    browser.run("document.getElementById('message').focus()")
    browser.type("one")
    browser.press("Enter", shift=True)
    browser.type("two")
    browser.press("Enter")
    browser.wait("document.querySelector('.facts')")
    assert server.asked[0][1]["messages"] == [{"role": "user", "content": "one\ntwo"}]
    browser.press("n", alt=True)
    assert browser.run("document.querySelectorAll('article').length") == 0
    say(browser, "three")
    browser.wait("document.querySelector('.facts')")
    assert server.asked[1][1]["messages"] == [{"role": "user", "content": "three"}]


def test_a_refusal_is_told_and_the_question_given_back(
    browser: Browser, server: ScriptedServer
) -> None:
    server.refuse = (400, "prompt is too long: 9 tokens > 8 maximum")
    say(browser, "Too long?")
    browser.wait("document.querySelector('article .trouble')")
    assert browser.text("article .trouble") == "prompt is too long: 9 tokens > 8 maximum"
    assert browser.run("document.getElementById('message').value") == "Too long?"
    server.refuse = None
    browser.press("Enter")
    browser.wait("document.querySelector('.facts')")
    assert len(server.asked[1][1]["messages"]) == 1
    browser.problems.clear()  # the refusal itself


def test_a_key_is_asked_for_once(browser: Browser, server: ScriptedServer) -> None:
    server.key = "secret"
    say(browser, "Let me in.")
    browser.wait("document.getElementById('key-dialog').open")
    browser.type("secret")
    browser.press("Enter")
    browser.wait("document.querySelector('.facts')")
    say(browser, "Again.")
    browser.wait("document.querySelectorAll('.facts').length === 2")
    assert browser.run("Object.values(localStorage).join()") == ""  # it is not kept for good
    browser.problems.clear()


# --------------------------------------------------------------------------------------------------
# Completion

CODE = "document.getElementById('code')"


def place(browser: Browser, before: str, after: str) -> None:
    """A text with the cursor in it, and nothing suggested while typing."""
    browser.run("location.hash = 'complete'")
    browser.wait("!document.getElementById('complete').hidden")
    browser.run("document.getElementById('while-typing').checked = false")
    browser.run(f"{CODE}.value = {before + after!r}, {CODE}.focus()")
    units = len(before.encode("utf-16-le")) // 2
    browser.run(f"{CODE}.setSelectionRange({units}, {units})")


def shown(browser: Browser) -> str:
    suggestion = "document.querySelector('.suggestion')"
    return str(browser.run(f"{suggestion} ? {suggestion}.textContent : ''"))


def test_tab_accepts_and_ctrl_z_takes_back(browser: Browser, server: ScriptedServer) -> None:
    place(browser, "s = '🌊'\ntotal = ", "\nprint(total)\n")
    browser.press(" ", ctrl=True)
    browser.wait("document.querySelector('.suggestion')")
    (_, asked) = server.asked[0]
    assert asked["input_prefix"] == "s = '🌊'\ntotal = "
    assert asked["input_suffix"] == "\nprint(total)\n"
    assert shown(browser) == "sum(numbers)"
    ghost = browser.run("document.getElementById('ghost').textContent")
    assert ghost == "s = '🌊'\ntotal = sum(numbers)\nprint(total)\n\n"
    browser.press("Tab")
    assert browser.run(f"{CODE}.value") == "s = '🌊'\ntotal = sum(numbers)\nprint(total)\n"
    assert browser.run(f"document.activeElement === {CODE}")
    assert shown(browser) == ""
    browser.run("document.execCommand('undo')")
    assert browser.run(f"{CODE}.value") == "s = '🌊'\ntotal = \nprint(total)\n"
    browser.press("Tab")  # with nothing to accept it goes on to the next control
    assert not browser.run(f"document.activeElement === {CODE}")


def test_escape_dismisses_and_typing_along_keeps(browser: Browser, server: ScriptedServer) -> None:
    place(browser, "total = ", "")
    browser.press(" ", ctrl=True)
    browser.wait("document.querySelector('.suggestion')")
    for key in "sum":
        browser.press(key)
    assert shown(browser) == "(numbers)"
    browser.press("Tab")
    assert browser.run(f"{CODE}.value") == "total = sum(numbers)"
    place(browser, "total = ", "")
    browser.press(" ", ctrl=True)
    browser.wait("document.querySelector('.suggestion')")
    browser.press("x")
    assert shown(browser) == ""
    browser.press(" ", ctrl=True)
    browser.wait("document.querySelector('.suggestion')")
    browser.press("Escape")
    assert shown(browser) == ""
    assert browser.run(f"{CODE}.value") == "total = x"
    assert len(server.asked) == 3


def test_suggestions_while_typing(browser: Browser, server: ScriptedServer) -> None:
    place(browser, "a = ", "")
    browser.run("document.getElementById('while-typing').checked = true")
    for key in "bcd":
        browser.press(key)
    browser.wait("document.querySelector('.suggestion')")
    assert [asked["input_prefix"] for _, asked in server.asked] == ["a = bcd"]


# --------------------------------------------------------------------------------------------------
# The server


def test_the_numbers_of_the_server(browser: Browser) -> None:
    browser.press("3", alt=True)
    browser.wait("document.getElementById('running').textContent === '3'")
    told = {name: browser.text(f"#{name}") for name in ("waiting", "rate", "hits", "accepted")}
    assert told == {"waiting": "1", "rate": "123", "hits": "75 %", "accepted": "65 %"}
    assert browser.text("#memory") == "64.0 MiB"
    assert browser.text("#memory-sub") == "of 256 MiB, 12 prefixes, 90.0 MiB on disk"
    assert browser.text("#uptime") == "1 h 2 min"
    assert browser.run("document.querySelectorAll('#sessions tr').length") == 4
    row = "[...document.querySelector('#sessions tr').cells].map((cell) => cell.innerText)"
    assert browser.run(row) == [
        "decoding", "/v1/chat/completions", "1,800", "1,664", "212", "310 ms", "1.5"
    ]  # fmt: skip


def test_expert_load_as_a_picture(browser: Browser) -> None:
    load = status()["engine"]["expert_load"]
    browser.press("3", alt=True)
    browser.wait("document.getElementById('experts-text').textContent.includes('Busiest')")
    # The color of the middle of each cell, as it was drawn.
    script = """(() => {
        const canvas = document.getElementById('experts');
        const pen = canvas.getContext('2d');
        const width = (canvas.width - 34) / 32, height = canvas.height / 8;
        return [...Array(8)].map((_, layer) => [...Array(32)].map((_, expert) =>
            [...pen.getImageData(34 + (expert + .4) * width, (layer + .4) * height, 1, 1).data]
                .slice(0, 3)));
    })()"""
    colors = browser.run(script)
    shares = {}
    for counts, row in zip(load, colors, strict=True):
        mean = sum(counts) / len(counts)
        shares.update({count / mean: sum(color) for count, color in zip(counts, row, strict=True)})
    drawn = [brightness for _, brightness in sorted(shares.items())]
    assert drawn == sorted(drawn, reverse=True)  # more is darker, on white
    assert colors[0][0] == [0xE6, 0xED, 0xED]  # expert 0 of layer 0 was never chosen
    assert colors[2][3] == [0x0F, 0x2F, 0x52]  # more than twice the mean
    assert "expert 3 in layer 2, 3.1×" in browser.text("#experts-text")
    browser.run("document.getElementById('experts').focus()")
    for key in ("ArrowDown", "ArrowRight", "ArrowDown"):
        browser.press(key)
    mean = sum(load[1]) / 32
    expected = f"Layer 1, expert 1: {load[1][1]} times, {load[1][1] / mean:.2f}× the mean"
    assert browser.text("#experts-here") == expected


def test_a_server_that_is_gone(browser: Browser, server: ScriptedServer) -> None:
    server.refuse = (503, "the server is stopping")
    browser.press("3", alt=True)
    browser.wait("!document.getElementById('trouble').hidden")
    assert browser.text("#trouble") == "the server is stopping"
    assert browser.text("#model-name") == "no answer"
    server.refuse = None
    browser.wait("document.getElementById('trouble').hidden")
    assert browser.text("#model-name") == "nano"
    browser.problems.clear()


# --------------------------------------------------------------------------------------------------
# For everybody


def test_shortcuts_work_outside_of_the_input_field_only(browser: Browser) -> None:
    browser.run("document.getElementById('message').focus()")
    browser.press("?")
    browser.press("t")
    assert browser.run("document.getElementById('message').value") == "?t"
    browser.press("Escape")
    browser.press("?")
    browser.wait("document.getElementById('shortcuts').open")
    browser.press("Escape")
    browser.wait("!document.getElementById('shortcuts').open")
    browser.press("2", alt=True)
    assert browser.run("location.hash") == "#complete"
    browser.run("document.getElementById('tab-complete').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.activeElement.id") == "tab-server"
    assert not browser.run("document.getElementById('server').hidden")


def test_light_and_dark(browser: Browser) -> None:
    def paper() -> str:
        return str(browser.run("getComputedStyle(document.body).backgroundColor"))

    light = paper()
    browser.dark(True)
    dark = paper()
    assert light != dark
    browser.run("document.activeElement.blur()")
    browser.press("t")
    assert paper() == light
    browser.open(browser.run("location.origin") + "/?again")
    assert paper() == light  # it is remembered


@pytest.mark.parametrize("view", ["chat", "complete", "server"])
def test_on_a_phone(browser: Browser, view: str) -> None:
    browser.size(*PHONE, mobile=True)
    say(browser, "a_very_long_word_" * 20)
    browser.wait("document.querySelector('.facts')")
    browser.run(f"location.hash = {view!r}")
    browser.wait(f"!document.getElementById({view!r}).hidden")
    assert browser.run("document.documentElement.scrollWidth") == PHONE[0]
    outside = f"""[...document.querySelectorAll('button, input, select, textarea, .tile')]
        .filter((element) => element.offsetParent)
        .filter((element) => element.getBoundingClientRect().right > {PHONE[0]})
        .map((element) => element.id)"""
    assert browser.run(outside) == []


def test_a_model_that_only_completes_is_met_there(
    browser: Browser, running: tuple[Browser, Running], server: ScriptedServer
) -> None:
    hidden = "document.getElementById({!r}).hidden"
    assert browser.run(hidden.format("chat")) is False
    assert browser.run(hidden.format("cannot-converse")) is True
    server.converses = False
    browser.open(f"{running[1].url}/?base")
    browser.wait(f"!{hidden.format('complete')}")
    assert browser.run(hidden.format("cannot-converse")) is False
    browser.open(f"{running[1].url}/?base#chat")  # a view that is asked for stays
    browser.wait(f"!{hidden.format('cannot-converse')}")
    assert browser.run(hidden.format("chat")) is False


@pytest.mark.parametrize("view", ["chat", "complete", "server"])
def test_every_control_has_a_name(browser: Browser, view: str) -> None:
    browser.run(f"location.hash = {view!r}")
    browser.run("document.getElementById('settings').hidden = false")
    browser.wait(f"!document.getElementById({view!r}).hidden")
    controls = ("button", "textbox", "combobox", "checkbox", "spinbutton", "tab", "meter", "image")
    nodes = browser.command("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in controls
    ]
    assert len(named) > 5
    assert all(name for _, name in named), named
