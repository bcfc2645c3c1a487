"""The tolerant parser: malformed completions become messages, and each repair is reported.

It never raises, always ends, and passes no markup on as text. Where the strict parser accepts a
text that was not cut off, this one returns the same and reports nothing, save for names and values
that contain tags or quotes, and for repairs of meaning (`arguments` wrapper, `string` flag).
The table of shapes, repairs and results is in docs/prompt.md.
"""

import re

from sounding.text.dsml.broken_markup import HALF_IN_BLOCK, HALF_IN_TEXT, IN_TEXT, LONGEST_HALF
from sounding.text.dsml.tolerant_call import TolerantCalls
from sounding.text.markup import END_THINK, EOS

_BLOCK = ("tool_calls", "function_calls")
_JOINT = 64  # characters around a cut that could form a tag together


class TolerantParser(TolerantCalls):
    """Reads completions as models emit them; `tools` (OpenAI shape) settle the types of values."""

    _tail = ""  # the end of the text passed on, by channel: here the content's
    _reasoning_tail = ""
    _cut_before = False  # markup was cut out before the text that comes next
    _one_block = True  # the calls are one block at the end of the message

    def _say(self, text: str) -> None:
        if not text:
            return
        tail = self._reasoning_tail if self._reasoning else self._tail
        if self._cut_before:
            self._cut_before = False
            # What is left around a cut could be the halves of another tag.
            half = HALF_IN_TEXT.search(tail)
            if half is not None and half.group().strip("\n"):
                text = " " + text
        tail = text[-_JOINT:] if len(text) >= _JOINT else (tail + text)[-_JOINT:]
        if self._reasoning:
            self._reasoning_tail = tail
        else:
            self._tail = tail
        super()._say(text)

    def _text(self) -> bool:
        length = len(self._buffer)
        last = max(0, length - LONGEST_HALF)
        found, half = IN_TEXT.search(self._buffer), None
        if found is None or found.start() >= last:
            half = HALF_IN_TEXT.search(self._buffer, last)
        end = half.start() if half else length
        opens = found is not None and found["open"] is not None
        if found is not None and (found.start() < end or (self._final and opens)):
            self._say(self._take(found.start()))
            self._marker(found)
            return True
        if self._final:
            self._break_off(half.group() if half else "")
        else:
            self._say(self._take(end))
        return False

    def _break_off(self, half: str) -> None:
        """End a text without EOS; half a tag at its end is cut, white space and a "<" are not."""
        cut = half if len(half.lstrip("\n")) > 1 else ""
        self._say(self._take(len(self._buffer) - len(cut)))
        if self._take(len(cut)):
            self._report("truncated", f"cut {cut.lstrip()[:60]!r}, half a tag at the end")
        self._report("missing_end", f"the text ends without {EOS}")
        self._finish("length")

    def _marker(self, found: re.Match[str]) -> None:
        """Act on a marker met in text, now at the front of what is left."""
        length = found.end() - found.start()
        self._cut_before = True
        if found["open"] is not None:
            self._open_block(found["open"], direct=found["direct"] is not None)
        elif found["eos"] or found["turn"]:
            self._take(length)
            self._over(found)
        elif found["end_think"] and self._reasoning:
            self._take(length)
            self._reasoning = False
        elif found["think"] and not self._reasoning:
            self._take(length)
            self._report("think_in_content", "moved reasoning out of the content")
            self._reasoning = True
        else:
            self._report("stray_markup", f"cut {self._take(length)[:60]!r}")

    def _over(self, found: re.Match[str]) -> None:
        """The turn ends at a token: EOS, or one that opens the next turn."""
        if found["turn"]:
            self._report("missing_end", f"the text ends where {found['turn']} opens another turn")
        elif found["eos"] != EOS:
            self._report("ascii_bars", f"{found['eos']} was read as {EOS}", once=True)
        if self._reasoning and "call_in_reasoning" not in self._reported:
            self._report("missing_end", f"the reasoning ends without {END_THINK}")
        self._finish("tool_calls" if self._calls else "stop")

    def _finish(self, reason: str) -> None:
        if not self._one_block:
            self._sampled = None
        self._end(reason)
        self._sampled = None
        self._step = self._done

    def _done(self) -> bool:
        if self._take(len(self._buffer)):
            self._report("text_after_end", "dropped what followed the end of the turn", once=True)
        return False

    # -- blocks of calls ----------------------------------------------------------------------

    def _open_block(self, tag: str, direct: bool) -> None:
        if self._calls:
            self._one_block = False
        self._sampled = []
        newlines = len(tag) - len(tag.lstrip("\n"))
        if direct:
            self._take(newlines)
            self._report("block_not_opened", "a call stands outside of a block")
            self._set_gap(">\n")
        else:
            self._note(self._take(len(tag)))
            if newlines < 2 and self._one_block:
                self._report("spacing", "the block does not follow two line ends", once=True)
            self._set_gap("")
        self._step = self._between_calls

    def _between_calls(self) -> bool:
        found = self._next()
        if found is None:
            return False
        if isinstance(found, str):
            self._leave_block()
        elif found["name"] == "invoke" and not found["slash"]:
            if self._reasoning:
                self._report("call_in_reasoning", f"a call was made before {END_THINK}")
            self._space(">\n")
            self._take_tag(found)
            self._step = self._invoke
        elif found["name"] in _BLOCK and found["slash"]:
            self._space(">\n")
            self._take_tag(found)
            self._step = self._after_block
        elif found["eos"] or found["turn"]:
            self._report("missing_end", "the block of calls is not closed")
            self._end_at(found)
        elif found["end_think"] and self._reasoning:
            self._take(found.end())
            self._report("call_in_reasoning", f"the block began before {END_THINK}")
            self._reasoning = False
            self._set_gap(">\n")
        else:
            self._cut(found)
            self._set_gap(">\n")
        return True

    def _end_at(self, found: re.Match[str]) -> None:
        """End at a token that does not belong to the sampled calls."""
        tail, self._sampled = self._take_sampled(), None
        self._take(found.end())
        self._sampled = [tail]
        self._over(found)

    def _only_half_a_tag(self) -> bool:
        """True if the buffer ends here, with nothing or the beginning of a tag."""
        return self._final and (not self._buffer or HALF_IN_BLOCK.match(self._buffer) is not None)

    def _leave_block(self) -> None:
        if self._only_half_a_tag():
            self._take(len(self._buffer))
            self._report("truncated", "the text breaks off in the block of calls")
            self._finish("length")
            return
        gap = self._take_gap()
        self._report("missing_end", "the block of calls is not closed before the text")
        self._back_to_text(gap if self._calls else "")

    def _back_to_text(self, gap: str) -> None:
        self._one_block = self._one_block and not self._calls
        self._sampled = None
        self._cut_before = True
        self._say(gap.removeprefix(">"))
        self._step = self._text

    def _after_block(self) -> bool:
        found = self._next()
        if found is None:
            return False
        if isinstance(found, str) and self._only_half_a_tag():
            if self._take(len(self._buffer)) or self._take_gap() != ">":
                self._report("missing_end", "the text breaks off after the calls")
            self._finish("tool_calls" if self._calls else "length")
        elif isinstance(found, str):
            self._report("text_after_calls", "kept the text that follows the calls")
            self._back_to_text(self._take_gap())
        elif found["eos"] or found["turn"]:
            self._space(">")
            self._end_at(found)
        elif found["tag"] and found["name"] in ("invoke", *_BLOCK) and not found["slash"]:
            self._take_gap()
            self._report("second_block", "more calls follow the block")
            self._step = self._text
        elif found["end_think"] and self._reasoning:
            self._take(found.end())
            self._report("stray_markup", f"{END_THINK} follows the calls")
            self._reasoning = False
        else:
            self._cut(found)
        return True
