"""`chat`: the conversation by itself, through a pseudo-terminal, and with a model over a pipe."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sounding.cli import cli
from sounding.cli.chat_session import ChatSession
from sounding.text import ContentDelta, End, Event, ReasoningDelta, coalesce
from sounding.text.markup import END_THINK, EOS
from tests.cli.test_completion import model  # noqa: F401  (a random network in a folder)

SECONDS = 60.0


class Script:
    """Writes the given answers, and remembers the prompts."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.prompts = list(answers), list[str]()
        self.closed = 0

    def __call__(self, prompt: str) -> Iterator[str]:
        self.prompts.append(prompt)
        try:
            yield from self.answers.pop(0)
        finally:
            self.closed += 1


def ask(conversation: ChatSession, text: str) -> list[Event]:
    return coalesce(conversation.ask(text))


BOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"


def test_a_conversation_grows() -> None:
    script = Script(["Hel", "lo." + EOS], ["Yes." + EOS])
    conversation = ChatSession(script, system="Be brief.")
    assert ask(conversation, "Hi") == [ContentDelta("Hello."), End("stop", None)]
    ask(conversation, "Sure?")
    first = f"{BOS}Be brief.{USER}Hi{ASSISTANT}</think>"
    assert script.prompts == [first, f"{first}Hello.{EOS}{USER}Sure?{ASSISTANT}</think>"]


def test_thinking_is_told_apart_and_kept() -> None:
    script = Script(["One", f" moment.{END_THINK}4", EOS])
    conversation = ChatSession(script, effort="max")
    assert ask(conversation, "2+2?")[:2] == [ReasoningDelta("One moment."), ContentDelta("4")]
    assert script.prompts[0].endswith(f"2+2?{ASSISTANT}<think>")
    assert "Reasoning Effort" in script.prompts[0]
    assert conversation.messages[-1]["reasoning_content"] == "One moment."
    conversation.effort = "off"
    script.answers.append([EOS])
    ask(conversation, "Again?")
    assert script.prompts[1].endswith(f"Again?{ASSISTANT}{END_THINK}")


def test_an_answer_that_is_cut_off_is_kept() -> None:
    script = Script(["One, two", ", three" + EOS], ["Four." + EOS])
    conversation = ChatSession(script)
    events = conversation.ask("Count.")
    assert next(events) == ContentDelta("One, two")
    events.close()
    assert script.closed == 1
    ask(conversation, "Go on.")
    assert script.prompts[1].endswith(f"Count.{ASSISTANT}</think>One, two{EOS}{USER}Go on."
                                      f"{ASSISTANT}</think>")  # fmt: skip


def test_a_question_without_an_answer_is_taken_back(tmp_path: Path) -> None:
    def fail(prompt: str) -> Iterator[str]:
        raise ValueError("too long")
        yield

    conversation = ChatSession(fail)
    (tmp_path / "a.py").write_text("x = 1\n")
    conversation.read(tmp_path / "a.py")
    with pytest.raises(ValueError, match="too long"):
        ask(conversation, "Hi")
    assert conversation.messages == []
    script = Script([EOS], ["Ok." + EOS], ["Fine." + EOS])
    conversation._write = script
    for question in ("One", "Two", "Three"):
        ask(conversation, question)
    # The file waits for a question that is answered, and is then not sent again.
    assert ["x = 1" in prompt.rpartition(USER)[2] for prompt in script.prompts] == [
        True,
        True,
        False,
    ]
    assert "One" not in script.prompts[2]


def test_files_are_fenced_by_more_than_they_contain(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("````\ncode\n````\n")
    script = Script(["Ok." + EOS])
    conversation = ChatSession(script)
    conversation.read(path)
    ask(conversation, "What is it?")
    shown = f"{path}:\n`````\n````\ncode\n````\n`````\n\nWhat is it?"
    assert conversation.messages[0]["content"] == shown
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"notes.md is not UTF-8 text"):
        conversation.read(path)


def test_saved_conversations_encode_to_their_prompt(tmp_path: Path) -> None:
    script = Script([f"Hm.{END_THINK}4{EOS}"], [f"{END_THINK}5{EOS}"])
    conversation = ChatSession(script, system="Be brief.", effort="max")
    ask(conversation, "2+2?")
    conversation.save(tmp_path / "saved.json")
    row = json.loads((tmp_path / "saved.json").read_text())
    ask(conversation, "And 2+3?")
    row["messages"].append({"role": "user", "content": "And 2+3?"})
    (tmp_path / "rows").write_text(json.dumps(row))
    encoded = CliRunner().invoke(cli, ["encode", str(tmp_path / "rows")])
    assert json.loads(encoded.stdout)["prompt"] == script.prompts[1]
    with pytest.raises(ValueError, match="exists already"):
        conversation.save(tmp_path / "saved.json")


# --------------------------------------------------------------------------------------------------
# In a terminal


class Terminal:
    """A program in a pseudo-terminal, and what it shows."""

    def __init__(self, *command: str) -> None:
        self.fd, child = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(child)
        self.shown = ""

    def type(self, keys: str) -> None:
        """Press keys at the next prompt."""
        self.wait_for("\x1b[?2004h")  # the editor asks for pastes to be marked
        self.press(keys)

    def press(self, keys: str) -> None:
        """Press keys now."""
        os.write(self.fd, keys.encode())

    def wait_for(self, text: str) -> str:
        """What was shown up to and with `text`, since the last call."""
        deadline = time.monotonic() + SECONDS
        while text not in self.shown:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.fd], [], [], left)[0]
            assert ready, f"{text!r} is not in {self.shown!r}"
            self.shown += os.read(self.fd, 4096).decode("utf-8", "replace")
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which whoever runs the tests may ignore


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    running = Terminal("-m", "tests.cli.scripted_chat", str(tmp_path / "settings" / "history"))
    running.wait_for("/help lists the commands")
    yield running
    running.close()


def test_talking_in_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("hello\r")
    terminal.wait_for("You said 'hello'.")
    terminal.type("two\\\rlines\x1b\rand a third\r")
    terminal.wait_for(r"You said 'two\nlines\nand a third'.")
    terminal.type("/think high\r")
    terminal.wait_for("(thinking is high)")
    terminal.type("deep\r")
    shown = terminal.wait_for("You said 'deep'.")
    assert re.search(r"\x1b\[2mHm, deep\.\x1b\[0m\r\n\r\n", shown)
    terminal.type("/thnik\r")
    terminal.wait_for("unknown command /thnik; did you mean /think?")
    terminal.type("/usr/bin is where?\r")
    terminal.wait_for("You said '/usr/bin is where?'.")
    terminal.type("\x1b[A\x1b[A\x1b[A\r")  # three lines up
    terminal.wait_for("You said 'deep'.")
    terminal.type("\x04")
    assert terminal.process.wait(SECONDS) == 0
    history = tmp_path / "settings" / "history"
    assert "+hello" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_an_interrupt_ends_the_answer_alone(terminal: Terminal) -> None:
    terminal.type("endless\r")
    terminal.wait_for(" 5 ")
    terminal.press("\x03")
    terminal.wait_for("(stopped")
    terminal.type("half a li\x03")
    terminal.type("still there?\r")
    terminal.wait_for("You said 'still there?'.")
    terminal.type("/exit\r")
    assert terminal.process.wait(SECONDS) == 0


def test_a_model_gives_no_orders_to_the_terminal(terminal: Terminal) -> None:
    terminal.type("red\r")
    terminal.wait_for("You said 'red'�[31m!")


def test_chat_commands_change_the_conversation(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    terminal.type("/help\r")
    for name in ("/think", "/read", "/system", "/clear", "/save", "/exit", "Alt-Enter"):
        terminal.wait_for(name)
    terminal.type(f"/read {tmp_path}/a.py\r")
    terminal.wait_for("1 lines, sent with the next message")
    terminal.type("and?\r")
    terminal.wait_for("x = 1")
    terminal.type("/read /nowhere\r")
    terminal.wait_for("No such file")
    terminal.type("/system Be brief.\r")
    terminal.wait_for("(system: Be brief.)")
    terminal.type(f"/save {tmp_path}/saved.json\r")
    terminal.wait_for("(saved to")
    row = json.loads((tmp_path / "saved.json").read_text())
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    terminal.type("/clear\r")
    terminal.wait_for("(cleared)")
    terminal.type(f"/save {tmp_path}/empty.json\r")
    terminal.wait_for("(saved to")
    assert len(json.loads((tmp_path / "empty.json").read_text())["messages"]) == 1


# --------------------------------------------------------------------------------------------------
# With a model


def run(question: str, *arguments: object) -> Result:
    return CliRunner().invoke(cli, ["chat", *map(str, arguments)], input=question)


def test_a_piped_question(model: Path) -> None:  # noqa: F811
    arguments = (model, "--max-tokens", 6, "--seed", 1)
    first, second = run("Hi\n", *arguments), run("Hi\n", *arguments)
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    thinking = run("Hi\n", *arguments, "--think", "high")
    assert thinking.stdout.strip() == ""  # it had no time for an answer
    assert "the answer was cut off" in thinking.stderr
    assert "the answer was cut off" in first.stderr


def test_questions_and_models_that_are_none(model: Path, tmp_path: Path) -> None:  # noqa: F811
    assert "stdin is empty" in str(run("", model).exception)
    assert "nor a folder" in str(run("Hi", "/nowhere").exception)
    base = tmp_path / "Random-Base"
    base.symlink_to(model)
    # The name is that of the folder itself.
    assert "base model" not in run("Hi", base, "--max-tokens", 1).stderr
    card = model / "README.md"
    card.write_text("# Random Base\n")
    assert "this is a base model" in run("Hi", model, "--max-tokens", 1).stderr
    told = model / "training.json"
    told.write_text('{"step": 1, "converses": true}')
    assert "base model" not in run("Hi", model, "--max-tokens", 1).stderr
    card.unlink()
    told.write_text('{"step": 1, "converses": false}')
    assert "is not trained to chat" in run("Hi", model, "--max-tokens", 1).stderr
    told.unlink()
