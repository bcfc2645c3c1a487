"""A language server whose model writes by rote: `python -m tests.editor.scripted_language_server`.

The first line of a document says what is written at a cursor in it, and how:
`# says TEXT` (with \\n for a newline), `# endless`, `# fails TEXT`.
"""

import itertools
import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from sounding.completion.prompt import CompletionSettings
from sounding.editor.language_server import CodeServer
from sounding.editor.suggest import FromModel
from sounding.engine.batch import Request
from sounding.text.fim_format import FimFormat
from tests.engine.scripted import Author, prefix_shown, small_tokenizer

_FIRST_LINE = re.compile(r"^# (says|endless|fails) ?(.*)$", re.MULTILINE)


def generate(requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
    """What the last such line in the prompt says."""
    text = prefix_shown(requests[0].prompt)
    print("asked:", json.dumps(text, ensure_ascii=False), file=sys.stderr, flush=True)
    print("this must not reach the editor")
    match = list(_FIRST_LINE.finditer(text))[-1]
    if match[1] == "fails":
        raise ValueError(match[2])
    if match[1] == "endless":
        yield from _endless(requests[0])
    else:
        author = Author(text, match[2].replace("\\n", "\n"))
        yield from author(requests)


def _endless(request: Request) -> Iterator[tuple[int, bool]]:
    tokenizer = small_tokenizer()
    try:
        for _ in itertools.count():
            request.answer.push(tokenizer.encode(" x")[0], 0.0)
            yield 0, False
            time.sleep(0.001)
    finally:
        print("ended", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Without healing the prompt is what stands before the cursor.
    settings, fim = CompletionSettings(heal=False), FimFormat()
    server = CodeServer(
        lambda: FromModel(small_tokenizer(), fim, lambda stop: generate, settings, seconds=0.0)
    )
    sys.exit(server.run())
