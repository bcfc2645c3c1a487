"""The tolerant parser inside of one call: name, parameters, values, and their repair.

tolerant.py parses the text around calls, and their block.
"""

import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from sounding.text.dsml.broken_markup import (
    HALF_IN_BLOCK,
    HALF_VALUE_END,
    IN_BLOCK,
    KEY,
    LONGEST_ATTRIBUTES,
    LONGEST_HALF,
    NAME,
    STRICT_KEY,
    STRICT_NAME,
    VALUE_END,
)
from sounding.text.dsml.parser import Parser
from sounding.text.dsml.values import STRING, Schemas, read_value
from sounding.text.events import Repair
from sounding.text.markup import to_json

_SPACE = re.compile(r"\s*")
_END_OF_ATTRIBUTES = re.compile(r"<|(?<=\S)\s*\n")


class TolerantCalls(Parser):
    """The states inside of a call; a subclass has those outside, `_between_calls` among them."""

    def __init__(self, thinking_mode: str, tools: Sequence[Any] | None = None) -> None:
        super().__init__(thinking_mode)
        self._schemas = Schemas(tools)
        self._reported: set[str] = set()
        self._gap: list[str] = []  # white space, and a tag's ">", before what comes next
        self._gap_has_bracket = False
        self._tool = ""
        self._keys: set[str] = set()
        self._has_parameters = False  # in the text, whatever became of them
        self._brace = "{}"  # what closes the arguments
        self._key = ""
        self._flag: bool | None = None
        self._raw: list[str] = []  # the value read so far, unless it streams
        self._streams = False  # the value is passed on while it is read
        self._dropped = False  # the value is of no use
        self._closing = ""  # the tag that closed the value, as long as that may be undone

    @abstractmethod
    def _between_calls(self) -> bool: ...

    @abstractmethod
    def _finish(self, reason: str) -> None: ...

    def _report(self, kind: str, detail: str, once: bool = False) -> None:
        if once and kind in self._reported:
            return
        self._reported.add(kind)
        self._events.append(Repair(kind, detail))

    def _note(self, tag: str) -> None:
        """Report bars and names that differ from the format's, once for each kind."""
        if "|" in tag:
            self._report("ascii_bars", "ASCII bars were read as ｜", once=True)
        if re.search("[｜|]{2}", tag):
            self._report("doubled_bars", "several bars were read as one", once=True)
        if "function_calls" in tag:
            self._report("block_name", "function_calls was read as tool_calls", once=True)

    # -- text between tags --------------------------------------------------------------------

    def _next(self) -> re.Match[str] | str | None:
        """The token or tag after the gap, "" for other text, None if more text is needed."""
        while True:
            space = _SPACE.match(self._buffer)
            self._gap.append(self._take(space.end() if space else 0))
            if self._gap_has_bracket or not self._buffer.startswith(">"):
                break
            self._gap.append(self._take(1))
            self._gap_has_bracket = True
        if not self._final and (not self._buffer or HALF_IN_BLOCK.match(self._buffer)):
            return None
        return IN_BLOCK.match(self._buffer) or ""

    def _set_gap(self, gap: str) -> None:
        self._gap, self._gap_has_bracket = [gap], ">" in gap

    def _take_gap(self) -> str:
        gap = "".join(self._gap)
        self._set_gap("")
        return gap

    def _space(self, *expected: str) -> None:
        gap = self._take_gap()
        if gap not in expected:
            self._report("spacing", f"{gap!r} between tags was read as {expected[0]!r}", once=True)

    def _take_tag(self, found: re.Match[str]) -> None:
        self._note(self._take(found.end()))

    def _cut(self, found: re.Match[str]) -> None:
        self._report("stray_markup", f"cut {self._take(found.end())[:60]!r}")

    def _last_half(self, pattern: re.Pattern[str], found: re.Match[str] | None = None) -> int:
        """Start of a possible partial tag at the text's end; the text's length if there is none.

        Skipped if an earlier tag makes it irrelevant.
        """
        length = len(self._buffer)
        start = max(0, length - LONGEST_HALF)
        if self._final or (found is not None and found.start() < start):
            return length
        half = pattern.search(self._buffer, start)
        return length if half is None else half.start()

    # -- names --------------------------------------------------------------------------------

    def _attributes(self, pattern: re.Pattern[str]) -> re.Match[str] | str | None:
        """The attributes of a tag, "" if they make no sense, None if they are not all there."""
        # No further than where they must have ended, or the answer would depend on the piece.
        end = _END_OF_ATTRIBUTES.search(self._buffer)
        limit = min(end.start() if end else len(self._buffer), LONGEST_ATTRIBUTES)
        found = pattern.match(self._buffer, 0, limit)
        if found is not None:
            return found
        return "" if self._final or limit < len(self._buffer) else None

    def _named(self, found: re.Match[str], strict: re.Pattern[str]) -> str:
        """The name in a tag, reporting any way of writing it that is not the format's."""
        if found["quoted"] is not None:
            self._report("smart_quotes", "other quotes in a tag were read as straight ones")
        elif strict.fullmatch(found.group()) is None:
            self._report("attribute", f"{found.group().strip()[:60]!r} was read as attributes")
        self._take(found.end())
        return next(text for text in found.group("exact", "quoted", "bare") if text is not None)

    def _invoke(self) -> bool:
        found = self._attributes(NAME)
        if found is None:
            return False
        if isinstance(found, str):
            self._step = self._nameless
            return True
        self._tool = self._named(found, STRICT_NAME)
        self._keys, self._brace, self._closing = set(), "{}", ""
        self._has_parameters = False
        self._begin_call(self._tool)
        self._set_gap("")
        self._step = self._inside
        if found["empty"]:
            self._close_call()
            self._set_gap(">\n")
        return True

    def _nameless(self) -> bool:
        """Drop a call that cannot be made."""
        half = self._last_half(HALF_IN_BLOCK)
        for found in IN_BLOCK.finditer(self._buffer):
            if found.start() >= half:
                break
            if found["eos"] or (found["tag"] and found["name"] != "parameter"):
                self._report("nameless_call", "dropped a call that has no name")
                closes = found["name"] == "invoke" and found["slash"]
                self._take(found.end() if closes else found.start())
                self._set_gap("" if closes else ">\n")
                self._step = self._between_calls
                return True
        self._take(half)
        if self._final:
            self._report("truncated", "dropped a call that breaks off before its name")
            self._finish("length")
        return False

    # -- parameters ---------------------------------------------------------------------------

    def _inside(self) -> bool:
        """Between the parameters of a call, where the last value may turn out not to be over."""
        found = self._next()
        if found is None:
            return False
        if isinstance(found, str):
            self._step = self._loose_text
            return True
        tag, opens = found["name"] if found["tag"] else "", not found["slash"]
        if tag == "parameter" and not opens:
            self._step = self._loose_text
        elif tag == "parameter":
            self._settle(last=False)
            self._space(*((">\n",) if self._has_parameters else ("\n", "\n\n")))
            self._take_tag(found)
            self._has_parameters = True
            self._step = self._parameter
        elif tag == "invoke" and not opens:
            self._settle(last=True)
            self._space(*((">\n",) if self._has_parameters else ("\n\n", "\n")))
            self._take_tag(found)
            self._close_call()
        elif tag in ("invoke", "tool_calls", "function_calls") or found["eos"] or found["turn"]:
            self._settle(last=True)
            self._report("missing_end", "a call is not closed")
            self._close_call()
            self._set_gap(">\n")
        else:
            self._cut(found)
        return True

    def _loose_text(self) -> bool:
        """Handle text in place of a parameter: more of the last value, bare JSON, or noise."""
        found = VALUE_END.search(self._buffer)
        half = self._last_half(HALF_VALUE_END, found)
        if found is None or found.start() >= half:
            self._held.append(self._take(half))
            if self._final:
                self._held = []
                self._break_call(keep_value=True)
            return False
        text = "".join([*self._held, self._take(found.start())])
        self._held = []
        self._step = self._inside
        if found["close"] is None:
            self._read_loose(text)
        elif self._closing:
            self._report("unescaped_value", "a value contains its own closing tag")
            self._add(self._closing + self._take_gap() + text)
            self._closing = self._take(len(found["close"]))
        else:
            self._report("stray_markup", f"cut {self._take(len(found['close']))!r}")
        return True

    def _read_loose(self, text: str) -> None:
        if self._brace == "{}" and not self._closing:
            whole, _ = read_value(text.strip(), False, frozenset({"object"}))
            if whole.startswith("{"):
                self._report("arguments_wrapper", "the arguments were one JSON object")
                self._argue(whole)
                self._brace = ""
                self._set_gap("\n")
                return
        self._report("stray_text", f"dropped {text.strip()[:60]!r} between parameters")
        self._set_gap(">\n" if self._has_parameters else "\n")

    def _parameter(self) -> bool:
        found = self._attributes(KEY)
        if found is None:
            return False
        if isinstance(found, str):
            self._report("attribute", "dropped a parameter whose attributes make no sense")
            self._dropped = True
        else:
            self._flag = None if found["flag"] is None else found["flag"].lower() == "true"
            self._open_value(self._named(found, STRICT_KEY))
        self._step = self._value
        return True

    def _open_value(self, key: str) -> None:
        self._dropped = key in self._keys or not self._brace
        if self._dropped:
            self._report("duplicate_parameter", f"kept the first value of {key!r}")
            return
        types = self._schemas.types(self._tool, key)
        plain = types is None or "string" in types if self._flag else types == STRING
        self._key, self._raw = key, []
        self._streams = plain and self._flag is not False and not self._may_wrap()
        if self._streams:
            self._argue(self._before_value() + '"')

    def _may_wrap(self) -> bool:
        """True if the parameter may hold all arguments, as one JSON object."""
        first = self._key == "arguments" and not self._keys
        return first and not self._schemas.defines(self._tool, self._key)

    def _before_value(self) -> str:
        text = ("{" if not self._keys else ", ") + to_json(self._key) + ": "
        self._keys.add(self._key)
        self._brace = "}"
        return text

    def _add(self, text: str) -> None:
        if self._dropped:
            return
        if self._streams:
            self._argue(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._raw.append(text)

    def _value(self) -> bool:
        found = VALUE_END.search(self._buffer)
        half = self._last_half(HALF_VALUE_END, found)
        if found is None or found.start() >= half:
            self._add(self._take(half if not self._final else self._without_half_tag()))
            if self._final:
                self._break_call(keep_value=self._streams)
            return False
        self._add(self._take(found.start()))
        self._step = self._inside
        self._set_gap("")
        if found["close"]:
            self._closing = self._take(len(found["close"]))
            self._note(self._closing)
            if not self._closing.startswith("<"):
                self._report("attribute", "a closing tag lacks its bracket")
        else:
            self._closing = "</"  # any: only its existence matters
            self._take(self._buffer.startswith("\n"))
            self._set_gap(">\n")
            self._report("missing_end", "a parameter is not closed")
            self._settle(last=not found.group().lstrip("\n<").endswith("parameter"))
        return True

    def _without_half_tag(self) -> int:
        """The length of the text without the beginning of a tag at its very end."""
        half = HALF_VALUE_END.search(self._buffer, max(0, len(self._buffer) - LONGEST_HALF))
        if half is None or len(half.group().lstrip("\n")) < 2:
            return len(self._buffer)
        return half.start()

    def _settle(self, last: bool) -> None:
        """End the value, and emit its JSON."""
        if not self._closing:
            return
        self._closing = ""
        if self._dropped:
            return
        if self._streams:
            self._argue('"')
            return
        raw, self._raw = "".join(self._raw), []
        if last and self._may_wrap():
            whole, _ = read_value(raw.strip(), False, frozenset({"object"}))
            if whole.startswith("{"):
                self._report("arguments_wrapper", "took the arguments out of their wrapper")
                self._argue(whole)
                self._brace = ""
                return
        types = self._schemas.types(self._tool, self._key)
        value, kind = read_value(raw, self._flag, types)
        if kind:
            self._report(kind, f"{self._key!r} was read as {value[:60]}")
        self._argue(self._before_value() + value)

    def _close_call(self) -> None:
        self._argue(self._brace)
        self._end_call(complete=True)
        self._step = self._between_calls

    def _break_call(self, keep_value: bool) -> None:
        """The text ends inside of the call: close its JSON; a value that may be half is dropped."""
        if self._closing and keep_value:
            self._settle(last=True)
        elif self._step == self._value and self._streams and not self._dropped:
            self._argue('"')
        self._report("truncated", f"a call of {self._tool} breaks off")
        self._argue(self._brace)
        self._take(len(self._buffer))
        self._end_call(complete=False)
        self._finish("length")
