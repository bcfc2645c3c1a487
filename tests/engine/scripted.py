"""A model that writes what it is told: for testing what is made of its tokens."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import sounding
from sounding.engine.batch import Request
from sounding.text.markup import FIM_BEGIN, FIM_END, FIM_HOLE
from sounding.text.tokenizer import Tokenizer, train


@cache
def small_tokenizer() -> Tokenizer:
    """A vocabulary of 800 for Python."""
    folder = Path(sounding.__file__).parent / "text"
    return train([path.read_text() for path in sorted(folder.rglob("*.py"))], 800)


class Author:
    """Continues each prompt so that the text before the cursor is followed by its script.

    Like a network it takes one allowed token after the other, the longest that fits, and knows
    nothing of healing but what is left of the prompt.
    """

    def __init__(self, prefix: str, *scripts: str) -> None:
        self.prefix, self.scripts = prefix, scripts
        self.requests: list[Request] = []
        self.pushed = 0

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
        for index, request in enumerate(requests):
            script = self.scripts[len(self.requests) % len(self.scripts)]
            self.requests.append(request)
            yield from self._write(index, request, script)

    def _write(self, index: int, request: Request, script: str) -> Iterator[tuple[int, bool]]:
        tokenizer = small_tokenizer()
        shown = prefix_shown(request.prompt)
        at = next(  # the prompt may begin later, or with other files
            count
            for count in range(len(self.prefix) if shown else 0, -1, -1)
            if self.prefix[:count].endswith(shown) or shown.endswith(self.prefix[:count])
        )
        left = (self.prefix[at:] + script).encode()
        for count in range(1, request.max_tokens + 1):
            allowed = request.answer.allowed()
            fitting = [
                token
                for token, text in enumerate(tokenizer.token_bytes)
                if text and left.startswith(text) and (allowed is None or token in allowed)
            ]
            if not fitting:  # the end of the text
                assert not left, f"nothing allowed continues {left!r}"
                yield index, True
                return
            token = max(fitting, key=lambda token: len(tokenizer.token_bytes[token]))
            left = left[len(tokenizer.token_bytes[token]) :]
            self.pushed += 1
            more = request.answer.push(token, 0.0)
            yield index, not more or count == request.max_tokens
            if not more:
                return


def prefix_shown(prompt: Sequence[int]) -> str:
    """The text before the cursor as a prompt has it."""
    tokenizer = small_tokenizer()
    text = tokenizer.decode(prompt[1:])
    if FIM_BEGIN not in text:
        return text
    before = text.partition(FIM_BEGIN)[2].partition(FIM_HOLE)[0]
    return before or text.partition(FIM_END)[2]  # what follows is the prefix of suffix-first
