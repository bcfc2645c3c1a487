"""Tokens that structure a prompt are never part of an answer, however likely a network finds them.

Catches: barring them for some doors only, and barring what answers of conversations consist of.
"""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from sounding.completion.completer import Completer
from sounding.completion.gap import Gap
from sounding.completion.prompt import CompletionSettings
from sounding.engine.batch import Batch
from sounding.engine.engine import Engine
from sounding.engine.requests import GenerationRequest, Grammar
from sounding.engine.runner import Runner
from sounding.engine.sampling import Logits, SamplingParams
from sounding.server.conversation import Sampling
from sounding.server.protocols.filling import Filling, Newlines
from sounding.text.fim_format import FimFormat
from sounding.text.markup import (
    ASSISTANT,
    BOS,
    DSML,
    END_THINK,
    EOS,
    FIM_BEGIN,
    FIM_HOLE,
    NAMED_TOKENS,
    PAD,
    THINK,
    USER,
)
from tests.engine.running import collect, request, small_vocabulary_config
from tests.engine.scripted import small_tokenizer
from tests.networks import as_network, make_network
from tests.text.vectors import published_tokenizer

TOKENIZER = small_tokenizer()
NETWORK = make_network(small_vocabulary_config(TOKENIZER.num_tokens))
LIKELY = 12.0  # added to logits: nearly sure


@pytest.fixture
def prefer(monkeypatch: pytest.MonkeyPatch) -> "Prefer":
    return Prefer(monkeypatch)


class Prefer:
    """Makes the network love some tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: Sequence[str] = ()
        known = Runner._known

        def loving(runner: Runner, logits: Logits) -> Logits:
            changed = known(runner, logits).copy()
            changed[:, [TOKENIZER.id_of(name) for name in self.names]] += LIKELY
            return changed

        monkeypatch.setattr(Runner, "_known", loving)


def names_in(tokens: Sequence[int]) -> set[str]:
    names = {number: name for name, number in TOKENIZER.named.items()}
    return {names[token] for token in tokens if token in names}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_has_no_structure(prefer: Prefer, temperature: float) -> None:
    engine = Engine(as_network(NETWORK), TOKENIZER)
    every = (BOS, PAD, *(set(NAMED_TOKENS) - {THINK, END_THINK, DSML}))
    for prefer.names in [(name,) for name in (BOS, PAD, FIM_BEGIN, USER, ASSISTANT)] + [every]:
        asked = request(40, temperature=temperature, max_tokens=12)
        tokens, end = collect(engine.submit(asked))
        assert len(tokens) == 12 and end.reason == "length"
        assert not names_in(tokens) - {"<dsml:", "</dsml:"}
    engine.close()


def test_a_conversation_keeps_its_markup_and_plain_text_has_none(prefer: Prefer) -> None:
    engine = Engine(as_network(NETWORK), TOKENIZER)
    prefer.names = (THINK, END_THINK, DSML)
    tokens, _ = collect(engine.submit(request(40, max_tokens=9)))
    assert names_in(tokens)
    tokens, _ = collect(engine.submit(request(40, max_tokens=9, markup=False)))
    assert len(tokens) == 9 and not names_in(tokens)
    prefer.names = (EOS,)
    tokens, end = collect(engine.submit(request(40, max_tokens=9, markup=False)))
    assert (tokens, end.reason) == ([], "stop")
    engine.close()


def test_within_a_grammar_too(prefer: Prefer) -> None:
    engine = Engine(as_network(NETWORK), TOKENIZER)
    prefer.names = (FIM_HOLE, USER)
    prompt = TOKENIZER.encode(f"x{THINK}")
    asked = request(prompt, max_tokens=20, grammar=Grammar(kind="json_object"))
    tokens, _ = collect(engine.submit(asked))  # in the thought, any text may come
    assert len(tokens) == 20 and not names_in(tokens)
    engine.close()


def test_what_is_drawn_instead_has_the_network_s_distribution(prefer: Prefer) -> None:
    """As if the others had been taken out beforehand."""
    engine = Engine(as_network(NETWORK), TOKENIZER)
    prefer.names = (FIM_BEGIN, USER)
    counts: Counter[int] = Counter()
    for seed in range(300):
        params = SamplingParams(temperature=0.3, seed=seed)
        asked = GenerationRequest(prompt=request(5).prompt, params=params, max_tokens=1)
        counts.update(collect(engine.submit(asked))[0])
    engine.close()
    with torch.inference_mode():
        streams = NETWORK(torch.tensor(request(5).prompt)).streams
        logits = NETWORK.logits(NETWORK.hidden(streams))[-1, : TOKENIZER.num_tokens].double()
    logits = logits.clone()
    logits[sorted(TOKENIZER.structural)] = float("-inf")
    expected = (logits / 0.3).softmax(-1)
    likely = expected.topk(3)
    for probability, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
        spread = 4 * (300 * probability * (1 - probability)) ** 0.5
        assert abs(counts[token] - 300 * probability) <= spread + 1


def test_nothing_is_barred_without_a_tokenizer() -> None:
    """Ids are just numbers there: raw generation of any weights."""
    plain, named = Engine(as_network(NETWORK)), Engine(as_network(NETWORK), TOKENIZER)
    tokens = [collect(engine.submit(request(30, max_tokens=3)))[0] for engine in (plain, named)]
    assert len(tokens[0]) == 3
    for engine in (plain, named):
        engine.close()


def test_code_is_completed_without_markers(prefer: Prefer) -> None:
    engine = Engine(as_network(NETWORK), TOKENIZER)
    completer = Completer(TOKENIZER, FimFormat(), Batch(engine))
    prefer.names = (FIM_BEGIN, THINK)
    settings = CompletionSettings(max_tokens=8, context_tokens=300)
    for how in (SamplingParams(), SamplingParams(temperature=1.0)):
        found = completer.complete(
            completer.plan(Gap("x = 1\ny = "), "line", settings), how, alternatives=3
        )
        written = "".join(completer.write("x = ", settings, how, until=None))
        for text in [written, *(one.text for one in found)]:
            assert not any(name in text for name in TOKENIZER.named)
    engine.close()


def test_in_an_empty_file_there_is_nothing_to_complete() -> None:
    engine = Engine(as_network(NETWORK), TOKENIZER)
    completer = Completer(TOKENIZER, FimFormat(), Batch(engine))
    settings = CompletionSettings(max_tokens=8, context_tokens=300)
    for gap in (Gap(""), Gap("\n"), Gap("", "\n"), Gap("  \n", "\n\n")):
        fill = completer.plan(gap, "block", settings)
        assert completer.complete(fill, SamplingParams()) == []
        assert fill.blank
        filling = Filling(completer, fill, Newlines(""), {}, Sampling(max_tokens=8))
        assert filling.request(None).max_tokens == 0
    assert not completer.plan(Gap("x"), "block", settings).blank
    engine.close()


def test_which_tokens_of_the_published_vocabulary_are_structure() -> None:
    tokenizer = published_tokenizer()
    barred = {name for name, number in tokenizer.named.items() if number in tokenizer.structural}
    answers = {EOS, THINK, END_THINK, DSML, "<dsml:", "</dsml:"}
    assert barred >= {*NAMED_TOKENS, BOS, PAD} - answers
    assert not barred & (answers | {"<｜table｜>", "<｜/td｜>"})  # what tables are written with
    assert sum("holder" in name for name in barred) > 1200
