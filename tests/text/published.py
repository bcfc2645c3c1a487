"""The published parser's rules as a whole-text definition, the oracle of the strict parser.

The rules are docs/prompt.md 7. Where that is silent, on texts that break off right after a tag and
on line ends that `$` lets pass, they are the published parser's behaviour as read in its code;
so this checks the incremental parser, not the understanding of the format. The golden messages do
that. Slow, plain, whole texts only.
"""

import json
import re
from typing import Any

EOS = "<｜end▁of▁sentence｜>"
SPECIAL = ("<｜begin▁of▁sentence｜>", EOS, "<think>", "</think>", "｜DSML｜")
CALLS = "\n\n<｜DSML｜tool_calls"


class Refused(Exception):
    """The published parser raises."""


def until(text: str, start: int, *stops: str) -> tuple[str, str, int]:
    """The text up to the first stop, that stop ("" if none comes), and where it ends."""
    found = [(text.find(stop, start), stop) for stop in stops]
    found = [(at, stop) for at, stop in found if at >= 0]
    if not found:
        return text[start:], "", len(text)
    at, stop = min(found)
    return text[start:at], stop, at + len(stop)


def check(condition: object) -> None:
    if not condition:
        raise Refused


def definition(text: str, thinking_mode: str) -> dict[str, Any]:
    """The message of a completion, or Refused."""
    reasoning, at = "", 0
    if thinking_mode == "thinking":
        reasoning, stop, at = until(text, at, "</think>", CALLS)
        check(stop == "</think>")
    content, stop, at = until(text, at, EOS, CALLS)
    check(stop)
    calls: list[Any] = []
    if stop == CALLS:
        at, calls = read_calls(text, at)
        rest, stop, at = until(text, at, EOS)
        check(not rest)
    check(at == len(text))
    check(not any(token in part for token in SPECIAL for part in (content, reasoning)))
    return {
        "role": "assistant",
        "content": content,
        "reasoning_content": reasoning,
        "tool_calls": [
            {"type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in calls
        ],
    }


def read_calls(text: str, at: int) -> tuple[int, list[tuple[str, str]]]:
    calls: list[tuple[str, str]] = []
    while at < len(text):
        gap, stop, at = until(text, at, "<｜DSML｜invoke", "</｜DSML｜tool_calls>")
        check(gap == ">\n" and stop)
        if stop == "</｜DSML｜tool_calls>":
            break
        head, stop, at = until(text, at, "<｜DSML｜parameter", "</｜DSML｜invoke")
        name = re.fullmatch(r'\s*name="(.*?)">\n\n?', head, re.DOTALL)
        check(name)
        assert name is not None
        values: dict[str, str] = {}
        while stop == "<｜DSML｜parameter":
            body, stop, at = until(text, at, "/｜DSML｜parameter")
            found = re.fullmatch(r' name="(.*?)" string="(true|false)">(.*?)<\n?', body, re.DOTALL)
            check(found)
            assert found is not None
            key, flag, value = found.groups()
            check(key not in values)
            values[key] = json.dumps(value, ensure_ascii=False) if flag == "true" else value
            gap, stop, at = until(text, at, "<｜DSML｜parameter", "</｜DSML｜invoke")
            check(gap == ">\n")
        pairs = (f"{json.dumps(key, ensure_ascii=False)}: {v}" for key, v in values.items())
        calls.append((name[1], "{" + ", ".join(pairs) + "}"))
    return at, calls
