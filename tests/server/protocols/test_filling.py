"""What is shown of a line while it is being written, where lines of the file compete with it."""

import pytest

from sounding.completion.completer import Completer
from sounding.completion.endings import Gap
from sounding.completion.prompt import CompletionSettings
from sounding.engine.requests import Event, Finished, TokenEvent
from sounding.server.options import ServerOptions
from sounding.server.protocols.filling import Filling, Newlines, _with_newlines
from sounding.server.service import Service
from sounding.text.fim_format import FimFormat
from sounding.text.markup import FIM_HOLE
from tests.engine.scripted import Author, small_tokenizer
from tests.server.scripted import ScriptedEngine

GAP = Gap("def area(self):\n    return self.x\n\ndef area(self):\n    ", "\n\nprint(1)\n")
SURE, AT_A_LOSS = -0.1, -50.0


@pytest.mark.parametrize(
    ("logprob", "copying", "expected"),
    [
        (SURE, True, "return self.y"),
        (AT_A_LOSS, True, "return self.x"),
        (AT_A_LOSS, False, "return self.y"),
    ],
)
def test_a_copy_takes_the_place_of_an_unlikely_line(
    logprob: float, copying: bool, expected: str
) -> None:
    tokenizer = small_tokenizer()
    completer = Completer(tokenizer, FimFormat(), Author(""))
    fill = completer.begin(GAP, "line", CompletionSettings(copying=copying))
    filling = Filling(GAP, "line", fill, Newlines(""), {})
    shown, stream = [], tokenizer.stream()
    for token in tokenizer.encode(fill.healed + "return self.y\n"):
        more = fill.answer.push(token, logprob)
        event: Event = TokenEvent(token, stream.push(token))
        shown.append(filling.feed(event))
        if not more:
            break
    if copying:
        assert not any(shown)
    shown.append(filling.feed(Finished(reason="stop")))
    assert "".join(shown) == expected


def test_a_byte_order_mark_is_no_text_of_the_file() -> None:
    assert _with_newlines(Gap("\ufeffa = 1\r\n", "\r\n")) == Gap("a = 1\n", "\n")


def test_a_served_model_is_asked_in_the_order_that_it_learned() -> None:
    engine = ScriptedEngine()
    hole = engine.tokenizer.id_of(FIM_HOLE)
    for fim_format in (FimFormat(), FimFormat(suffix_first=True)):
        service = Service(engine, engine.tokenizer, ServerOptions(), fim_format=fim_format)
        fill = service.require_completer().begin(Gap("y = ", "\nx"), "line", CompletionSettings())
        assert (fill.prompt[2] == hole) == fim_format.suffix_first
    engine.close()
