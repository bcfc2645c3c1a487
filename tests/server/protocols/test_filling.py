"""What is shown of a line while it is being written, where others compete with it."""

import asyncio
import types

import pytest

from sounding.completion.completer import Completer
from sounding.completion.gap import Gap
from sounding.completion.prompt import CompletionSettings
from sounding.engine.requests import Event, Finished, TokenEvent
from sounding.engine.sampling import SamplingParams
from sounding.server.conversation import Sampling
from sounding.server.options import ServerOptions
from sounding.server.protocols.filling import Filling, Newlines, _with_newlines
from sounding.server.service import Service
from sounding.server.work_threads import Threads
from sounding.text.fim_format import FimFormat
from sounding.text.markup import FIM_HOLE
from tests.engine.scripted import Author, small_tokenizer
from tests.server.scripted import ScriptedEngine

GAP = Gap("def area(self):\n    return self.x\n\ndef area(self):\n    ", "\n\nprint(1)\n")


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_nothing_is_shown_of_a_line_that_others_compete_with(temperature: float) -> None:
    tokenizer = small_tokenizer()
    completer = Completer(tokenizer, FimFormat(), Author(""))
    plan = completer.plan(GAP, "line", CompletionSettings())
    sampling = Sampling(params=SamplingParams(temperature=temperature), max_tokens=20)
    filling = Filling(completer, plan, Newlines(""), {}, sampling)
    answer = filling.request(None).answer
    assert answer is not None
    shown, stream = [], tokenizer.stream()
    for token in tokenizer.encode(plan.healed + "return self.y\n"):
        more = answer.push(token, -0.1)
        event: Event = TokenEvent(token, stream.push(token))
        shown.append(filling.feed(event))
        if not more:
            break
    assert any(shown) == bool(temperature)
    shown.append(filling.feed(Finished(reason="stop")))
    assert "".join(shown) == "return self.y"


def test_where_the_engine_takes_no_more_the_line_stands() -> None:
    tokenizer = small_tokenizer()
    completer = Completer(tokenizer, FimFormat(), Author(""))
    plan = completer.plan(GAP, "line", CompletionSettings())
    filling = Filling(completer, plan, Newlines(""), {}, Sampling(max_tokens=20))
    answer = filling.request(None).answer
    assert answer is not None
    for token in tokenizer.encode(plan.healed + "return self.y\n"):
        answer.push(token, -0.1)
        filling.feed(TokenEvent(token, ""))
    service = types.SimpleNamespace(engine=ScriptedEngine(capacity=0), threads=Threads())
    end = Finished(reason="stop")
    asyncio.run(filling.settle(end, service))  # type: ignore[arg-type]
    assert filling.feed(end) == "return self.y"


def test_a_byte_order_mark_is_no_text_of_the_file() -> None:
    assert _with_newlines(Gap("\ufeffa = 1\r\n", "\r\n")) == Gap("a = 1\n", "\n")


def test_a_served_model_is_asked_in_the_order_that_it_learned() -> None:
    engine = ScriptedEngine()
    hole = engine.tokenizer.id_of(FIM_HOLE)
    for fim_format in (FimFormat(), FimFormat(suffix_first=True)):
        service = Service(engine, engine.tokenizer, ServerOptions(), fim_format=fim_format)
        fill = service.require_completer().plan(Gap("y = ", "\nx"), "line", CompletionSettings())
        assert (fill.prompt[2] == hole) == fim_format.suffix_first
    engine.close()
