"""The text of a gap during generation."""

import codecs
from collections.abc import Collection, Sequence

from sounding.completion.healing import Healing
from sounding.completion.opening import Opening
from sounding.completion.stopping import BlockEnding, LineEnding
from sounding.engine.stop import StopStrings
from sounding.text.tokenizer import Tokenizer


class Middle:
    """Decodes one answer token by token and stops at its ending."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        healing: Healing | None,
        ending: LineEnding | BlockEnding | None,
        max_tokens: int,
        *,
        opening: Opening | None = None,
        stop: Sequence[str] = (),
    ) -> None:
        """The text ends before any string in `stop`; healed text is not searched."""
        self.text = ""
        self.certain = ""
        """The part of the text that no later token changes; another thread may read it."""
        self.count = 0
        self.logprob = 0.0
        """Log probability of all tokens under the network."""
        self._max_tokens, self._opening = max_tokens, opening
        self._tokenizer, self._healing, self._ending = tokenizer, healing, ending
        self._skip = len(healing.rest) if healing is not None else 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._end: int | None = None
        self.stops: Sequence[str] = tuple(stop)
        self._strings = StopStrings(stop)
        self._passed = ""  # text that the stop strings have released

    @property
    def cut_short(self) -> bool:
        """True if the token limit cut it off."""
        return self._end is None and self.count >= self._max_tokens

    @property
    def found(self) -> str | None:
        """The stop string that ended it."""
        return self._strings.found

    def allowed(self) -> Collection[int] | None:
        """The tokens that may come next during healing or a required beginning of the line; None
        permits any."""
        healing = self._healing
        if self._opening is not None:
            rest = healing.rest if healing is not None else b""
            allowed = self._opening.allowed(rest, self.text)
            if allowed is not None:
                return allowed
        return healing.allowed() if healing is not None else None

    def push(self, token: int, logprob: float = 0.0) -> bool:
        """Append a token; returns True to continue."""
        self.count += 1
        self.logprob += logprob
        if self._healing is not None and self._healing.rest:
            self._healing.advance(token)
        data = self._tokenizer.bytes_of(token)
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        more = self._decoder.decode(data[skipped:])
        self.text += more
        self._passed += self._strings.feed(more)
        if self._ending is not None:
            self._end = self._ending.find(self.text)
        if self._end is not None:
            self.certain = self.text[: self._end]
        elif isinstance(self._ending, BlockEnding) and self._ending.undecided:
            self.certain = self.text[: self._ending.at].rstrip()
        else:
            self.certain = self.text.rstrip()
        self.certain = self.certain[: len(self._passed)]
        return self._end is None and self.found is None

    def finish(self) -> str:
        """The text up to its end, after the last token."""
        if self.found is not None:
            return self._passed[: self._end]
        if self._end is not None:
            return self.text[: self._end]
        return self.text + self._decoder.decode(b"", final=True)
