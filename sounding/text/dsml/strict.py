"""The strict parser: it accepts and refuses the same texts as the published parser.

Source: docs/prompt.md 7.
"""

import json
import re

from sounding.text.dsml.parser import Malformed, Parser
from sounding.text.markup import (
    BOS,
    CALLS_CLOSE,
    CALLS_OPEN,
    DSML,
    END_THINK,
    EOS,
    INVOKE_CLOSE,
    INVOKE_OPEN,
    PARAMETER_CLOSE,
    PARAMETER_OPEN,
    THINK,
    to_json,
)


class Markers:
    """Literals to look for, and the knowledge when the end of a text may be the start of one."""

    def __init__(self, *literals: str) -> None:
        self._search = re.compile("|".join(map(re.escape, literals)))
        self._starts = re.compile("[" + re.escape("".join({text[0] for text in literals})) + "]")
        self._prefixes = {text[:n] for text in literals for n in range(1, len(text))}
        self._reach = max(map(len, literals)) - 1

    def find(self, text: str) -> tuple[int, str]:
        """Position and text of the first marker; "" if `text` ends in a possible part of one."""
        end = len(text)
        first = self._starts.search(text)
        if first is None:  # most pieces
            return end, ""
        for start in self._starts.finditer(text, max(first.start(), end - self._reach)):
            if text[start.start() :] in self._prefixes:
                end = start.start()
                break
        # A marker inside a longer one that is still open does not count: `end` is before it.
        found = self._search.search(text)
        if found is not None and found.start() < end:
            return found.start(), found.group()
        return end, ""


# The last three catch markup out of place before its angle bracket is passed on as text.
_IN_TEXT = Markers(CALLS_OPEN, EOS, END_THINK, BOS, THINK, f"<{DSML}", f"</{DSML}", DSML)
_AFTER_NAME = Markers(PARAMETER_OPEN, INVOKE_CLOSE)
_AFTER_KEY = Markers('" string="true">', '" string="false">', PARAMETER_CLOSE)
# A line end may come before the slash: the published expression accepts it.
_AFTER_VALUE = Markers(f"<{PARAMETER_CLOSE}", f"<\n{PARAMETER_CLOSE}", PARAMETER_CLOSE)
_NAME = re.compile(r'\s*name="(.*?)">\n\n?', re.DOTALL)


class StrictParser(Parser):
    """Accepts exactly what the published parser accepts; raises Malformed for everything else.

    One of its habits is to accept a text that breaks off right after the opening tag of the block
    or of a call, after a parameter's line or a call's closing tag; such a call is not `complete`.
    """

    def __init__(self, thinking_mode: str) -> None:
        super().__init__(thinking_mode)
        self._keys: set[str] = set()
        self._string = False  # True if the current value is raw text

    def _fail(self, reason: str) -> Malformed:
        self._final = True
        return Malformed(reason, self._drain())

    def _text(self) -> bool:
        end, marker = _IN_TEXT.find(self._buffer)
        self._say(self._take(end))
        if not marker:
            if self._final:
                raise self._fail(f"the text ends without {END_THINK if self._reasoning else EOS}")
            return False
        if marker == (END_THINK if self._reasoning else EOS):
            self._take(len(marker))
            self._step = self._text if self._reasoning else self._done
            self._reasoning = False
        elif marker == CALLS_OPEN and not self._reasoning:
            self._sampled = []
            self._take(len(marker))
            self._step = self._between_calls
        else:
            where = "reasoning" if self._reasoning else "content"
            raise self._fail(f"{marker.strip()!r} does not belong into the {where}")
        return True

    def _between_calls(self) -> bool:
        for literal, step in (
            (f">\n{INVOKE_OPEN}", self._name),
            (f">\n{CALLS_CLOSE}", self._after_calls),
        ):
            if self._buffer.startswith(literal):
                self._take(len(literal))
                self._step = step
                return True
            if not self._final and literal.startswith(self._buffer):
                return False
        if self._final and not self._buffer:
            return self._stop()
        raise self._fail(f"a call or the end of the calls is due, not {self._buffer[:40]!r}")

    def _wait_for(self, markers: Markers) -> tuple[str, str] | None:
        """The text up to a marker and the marker, or None as long as there is none."""
        end, marker = markers.find(self._buffer)
        self._held.append(self._take(end))
        if not marker and not self._final:
            return None
        if not marker:
            self._held.append(self._take(len(self._buffer)))
        text = "".join(self._held)
        self._held = []
        self._take(len(marker))
        return text, marker

    def _name(self) -> bool:
        found = self._wait_for(_AFTER_NAME)
        if found is None:
            return False
        name = _NAME.fullmatch(found[0])
        if name is None:
            raise self._fail(f'name="..." and a line end are due, not {found[0][:80]!r}')
        self._begin_call(name[1])
        self._keys = set()
        return self._next_parameter(found[1])

    def _next_parameter(self, marker: str) -> bool:
        """Continue behind the marker that follows a name or a parameter."""
        if marker == PARAMETER_OPEN:
            self._step = self._before_key
            return True
        self._argue("}" if self._keys else "{}")
        self._end_call(complete=marker == INVOKE_CLOSE)
        self._step = self._between_calls
        return True

    def _before_key(self) -> bool:
        expected = ' name="'
        if self._buffer.startswith(expected):
            self._take(len(expected))
            self._step = self._key
            return True
        if self._final or not expected.startswith(self._buffer):
            raise self._fail(f'a parameter\'s name="..." is due, not {self._buffer[:40]!r}')
        return False

    def _key(self) -> bool:
        found = self._wait_for(_AFTER_KEY)
        if found is None:
            return False
        key, marker = found
        if "string" not in marker:
            raise self._fail(f'string="true" or "false" is due after {key[:80]!r}')
        if key in self._keys:
            raise self._fail(f"the parameter {key!r} is given twice")
        self._string = "true" in marker
        self._argue(
            ("{" if not self._keys else ", ") + to_json(key) + (': "' if self._string else ": ")
        )
        self._keys.add(key)
        self._step = self._value
        return True

    def _value(self) -> bool:
        end, marker = _AFTER_VALUE.find(self._buffer)
        text = self._take(end)
        self._argue(json.dumps(text, ensure_ascii=False)[1:-1] if self._string else text)
        if not marker and not self._final:
            return False
        if not marker.startswith("<"):
            raise self._fail("a parameter is not closed")
        self._take(len(marker))
        if self._string:
            self._argue('"')
        self._step = self._after_value
        return True

    def _after_value(self) -> bool:
        for marker in (PARAMETER_OPEN, INVOKE_CLOSE):
            if self._buffer.startswith(f">\n{marker}"):
                self._take(2 + len(marker))
                return self._next_parameter(marker)
            if not self._final and f">\n{marker}".startswith(self._buffer):
                return False
        if self._final and self._buffer == ">\n":
            self._take(2)
            return self._next_parameter("")
        raise self._fail(f"a parameter or the call's end is due, not {self._buffer[:40]!r}")

    def _after_calls(self) -> bool:
        if self._buffer.startswith(EOS):
            tail, self._sampled = self._take_sampled(), None
            self._take(len(EOS))
            self._sampled = [tail]
            self._step = self._done
            return True
        if not EOS.startswith(self._buffer) or (self._final and self._buffer):
            raise self._fail(f"only {EOS} may follow the calls, not {self._buffer[:40]!r}")
        return self._final and self._stop()

    def _done(self) -> bool:
        if self._buffer:
            raise self._fail(f"nothing may follow {EOS}, not {self._buffer[:40]!r}")
        return self._final and self._stop()

    def _stop(self) -> bool:
        self._end("tool_calls" if self._calls else "stop")
        return False
