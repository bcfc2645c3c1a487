"""The front door: what `sounding.load` returns does what the pages say.

Catches: a public call that fails or differs from the command behind it, and an import of the
package that pulls in PyTorch before a model is loaded.
"""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import sounding
from sounding.api import Model

PREFIX = "def area(width, height):\n    return "


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with sounding.load("nano") as model:
        yield model


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, sounding; print([m for m in ('torch', 'numpy', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_completion_is_its_text(model: Model) -> None:
    done = model.complete(PREFIX, "\n")
    assert done.parses and str(done) == done.text
    compile(PREFIX + done.text + "\n", "completed", "exec")


def test_streaming_and_generating_give_the_same_text(model: Model) -> None:
    done = model.generate("import ", max_tokens=8)
    assert "".join(model.stream("import ", max_tokens=8)) == str(done) == done.text
    assert (done.finish_reason, done.completion_tokens) == ("length", 8)


def test_a_closed_stream_leaves_the_model_usable(model: Model) -> None:
    pieces = model.stream("import ", max_tokens=500)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert model.generate("import ", max_tokens=1).text


def test_logits_are_rows_of_the_vocabulary_that_depend_on_what_is_before(model: Model) -> None:
    rows = model.logits([0, 5, 6])
    assert rows.shape == (3, 8192) and rows.dtype == np.float32
    np.testing.assert_allclose(model.logits([0, 5])[1], rows[1], atol=0.05)
    assert not np.allclose(model.logits([0, 9, 6])[2], rows[2])
    with pytest.raises(ValueError, match="no tokens"):
        model.logits([])
    with pytest.raises(ValueError, match="8192"):
        model.logits([8192])


def test_a_chat_with_tools_comes_back_in_parts(model: Model) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    reply = model.chat([{"role": "user", "content": "hi"}], tools=[tool], max_tokens=4)
    assert str(reply) == reply.text and reply.finish_reason in ("length", "stop")
    with pytest.raises(ValueError, match="messages"):
        model.chat([{"role": "nobody", "content": "hi"}])


def test_models_that_are_none_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="shape without weights"):
        sounding.load("flash")
    with pytest.raises(ValueError, match="nor a folder"):
        sounding.load("/nowhere")
