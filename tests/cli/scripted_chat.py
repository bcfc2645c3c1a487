"""A chat whose model answers by rote: `python -m tests.cli.scripted_chat HISTORY`.

It repeats the question, and thinks about it first if it may; the question "endless" has no end.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sounding.cli.chat import talk
from sounding.cli.chat_session import ChatSession
from sounding.text.markup import ASSISTANT, END_THINK, EOS, USER


def write(prompt: str) -> Iterator[str]:
    """Answer the last question of a prompt."""
    question, _, mode = prompt.rpartition(USER)[2].partition(ASSISTANT)
    if mode != END_THINK:
        yield f"Hm, {question}." + END_THINK
    if question == "endless":
        for number in itertools.count():
            yield f"{number} "
            time.sleep(0.001)
    yield f"You said {question!r}" + ("\x1b[31m!" if question == "red" else ".") + EOS


if __name__ == "__main__":
    talk(ChatSession(write), Path(sys.argv[1]))
