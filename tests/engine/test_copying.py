"""Lines of the file beside the network: the mixture is the one of probability theory."""

import math

import pytest
import torch

from sounding.engine.copying import Copies
from sounding.text.similar import similar_lines
from tests.engine.scripted import small_tokenizer

TOKENIZER = small_tokenizer()
ABOVE = """def first(path):
    with open(path) as file:
        text = file.read()
    return text


def second(path):
    with open(path) as file:
        """
BELOW = """
    return text


print(first)
"""


def even() -> torch.Tensor:
    return torch.zeros(TOKENIZER.num_tokens)


def written(copies: Copies, logits: torch.Tensor, count: int) -> str:
    """What greedy decoding writes, EOS included."""
    ids = []
    for _ in range(count):
        token = int(copies.mix(logits).argmax())
        ids.append(token)
        if token == TOKENIZER.eos_id:
            break
        copies.push(token)
    return TOKENIZER.decode(ids)


def test_lines_with_the_same_neighbours_are_the_most_similar() -> None:
    lines = list(similar_lines(ABOVE, BELOW))
    assert max(lines, key=lambda line: line[1])[0] == "text = file.read()"
    assert max(likeness for _, likeness in lines) <= 2 * (1 + 1 / 2 + 1 / 3) + 1e-9
    typed = list(similar_lines(ABOVE + "te", BELOW))
    assert [text for text, _ in typed] == ["xt = file.read()"]
    near = [text for text, _ in similar_lines(ABOVE, BELOW, most=2)]
    assert "def first(path):" not in near and "with open(path) as file:" in near


def test_a_network_that_knows_nothing_lets_the_file_speak() -> None:
    end = TOKENIZER.eos_id
    copies = Copies(TOKENIZER, ABOVE, BELOW, again="", end=end)
    assert written(copies, even(), 30) == "text = file.read()" + TOKENIZER.decode([end])
    healed = Copies(TOKENIZER, ABOVE + "te", BELOW, again="        te", end=end)
    assert written(healed, even(), 30).startswith("        text = file.read()")


def test_a_network_that_is_sure_has_its_way() -> None:
    logits = even()
    word = TOKENIZER.encode("class", named=False)[0]
    logits[word] = 30.0
    copies = Copies(TOKENIZER, ABOVE, "\nprint(1)\n", again="", end=TOKENIZER.eos_id)
    assert int(copies.mix(logits).argmax()) == word
    copies.push(word)
    assert copies.mix(logits) is logits  # no line goes on like that


def test_probabilities_are_those_of_the_mixture() -> None:
    torch.manual_seed(0)
    logits = torch.randn(TOKENIZER.num_tokens)
    chance = logits.double().softmax(-1)
    above, below = "a = 1\nb = 2\n", "\nb = 2\n"
    copies = Copies(TOKENIZER, above, below, again="", end=TOKENIZER.eos_id)
    weights: dict[str, float] = {}
    for text, likeness in similar_lines(above, below):
        weights[text] = weights.get(text, 0.0) + math.exp(3.0 * likeness)
    total = sum(weights.values()) + math.exp(9.4)
    expected = chance * math.exp(9.4) / total
    for text, weight in weights.items():
        expected[TOKENIZER.encode(text, named=False)[0]] += weight / total
    assert torch.allclose(copies.mix(logits).softmax(-1), expected, rtol=1e-9, atol=0)
    # One token later every alternative is weighted by what it said of that token.
    token = TOKENIZER.encode("b = 2", named=False)[0]
    copies.push(token)
    weight = weights["b = 2"] / (weights["b = 2"] + math.exp(9.4) * float(chance[token]))
    following = TOKENIZER.encode("b = 2", named=False)[1]
    found = float(copies.mix(logits).softmax(-1)[following])
    assert found == pytest.approx(weight + (1 - weight) * float(chance[following]), rel=1e-9)


def test_without_an_end_the_network_says_how_it_goes_on() -> None:
    copies = Copies(TOKENIZER, ABOVE, BELOW, again="", end=None)
    logits = even()
    newline = TOKENIZER.encode("\n", named=False)[0]
    logits[newline] = 1.0
    assert written(copies, logits, 12).startswith("text = file.read()\n")
    empty = Copies(TOKENIZER, "", "", again="", end=None)
    assert empty.mix(logits) is logits
