"""Prompts for base models, spelled out."""

import pytest

from sounding.text.fim_format import infill_document, infill_prompt, repository_prompt

BOS = "<｜begin▁of▁sentence｜>"


def test_a_gap() -> None:
    gap = "<｜fim▁begin｜>a = <｜fim▁hole｜>\nb<｜fim▁end｜>"
    assert infill_prompt("a = ", "\nb") == BOS + gap
    assert infill_document("a = ", "1", "\nb", bos=False) == gap + "1<｜end▁of▁sentence｜>"


def test_a_gap_in_a_repository() -> None:
    prompt = infill_prompt("p", "s", path="b.py", files=[("a.py", "x = 1\n")], repository="r")
    assert prompt == (
        f"{BOS}<｜begin▁of▁repo▁name｜>r<｜end▁of▁repo▁name｜>"
        "<｜begin▁of▁file▁name｜>a.py<｜end▁of▁file▁name｜>"
        "<｜begin▁of▁file｜>x = 1\n<｜end▁of▁file｜>"
        "<｜begin▁of▁file▁name｜>b.py<｜end▁of▁file▁name｜><｜begin▁of▁file｜>"
        "<｜fim▁begin｜>p<｜fim▁hole｜>s<｜fim▁end｜>"
    )


def test_a_file_to_write() -> None:
    assert repository_prompt([], continue_with="c.py", bos=False) == (
        "<｜begin▁of▁file▁name｜>c.py<｜end▁of▁file▁name｜><｜begin▁of▁file｜>"
    )


def test_structure_in_the_text_is_refused() -> None:
    with pytest.raises(ValueError, match="suffix contains"):
        infill_prompt("a", "<｜fim▁hole｜>")
    with pytest.raises(ValueError, match=r"text of a\.py"):
        repository_prompt([("a.py", "<｜end▁of▁file｜>")])
    with pytest.raises(ValueError, match="no path"):
        infill_prompt("a", "b", files=[("a.py", "")])
