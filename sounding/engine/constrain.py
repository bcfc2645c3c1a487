"""Structured output: a logits processor that keeps text within a grammar, by llguidance.

A JSON grammar applies to the answer. After a prompt that opened a thought it begins behind the
token that closes it, and until then stop tokens are masked. A Lark grammar applies to all
generated tokens, thought included (`text/grammar.py` writes such).
"""

import json
import threading
from collections.abc import Collection, Sequence

import llguidance
import numpy as np

from sounding.engine.requests import Grammar
from sounding.engine.sampling import Logits
from sounding.text.grammar import constraint_tokenizer, matcher, schema_grammar
from sounding.text.markup import END_THINK, THINK
from sounding.text.tokenizer import Tokenizer


class Constraints:
    """Makes constraints over one vocabulary, which is read for the first one."""

    def __init__(self, tokenizer: Tokenizer, stop_tokens: Collection[int]) -> None:
        self._tokenizer, self._stop_tokens = tokenizer, frozenset(stop_tokens)
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def start(self, grammar: Grammar, prompt: Sequence[int]) -> "Constraint":
        """Return the constraint on the tokens generated after a prompt.

        Raises ValueError for a grammar that cannot be followed, naming what in it is not supported.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = constraint_tokenizer(self._tokenizer)
        if grammar.kind == "lark":
            return Constraint(matcher(self._vocabulary, grammar.text), None, ())
        schema = '{"type": "object"}' if grammar.kind == "json_object" else grammar.text
        made = matcher(self._vocabulary, f"start: %json {_schema_of(schema)}\n")
        begins_behind = self._end_of_thought() if self._thinks(prompt) else None
        return Constraint(made, begins_behind, self._stop_tokens)

    def _thinks(self, prompt: Sequence[int]) -> bool:
        """True if the prompt leaves a thought open."""
        named = self._tokenizer.named
        marks = {named.get(THINK), named.get(END_THINK)} - {None}
        last = next((token for token in reversed(prompt) if token in marks), None)
        return last is not None and last == named.get(THINK)

    def _end_of_thought(self) -> int:
        return self._tokenizer.id_of(END_THINK)


class Constraint:
    """The position of one sequence in its grammar."""

    def __init__(
        self,
        follows: llguidance.LLMatcher,
        begins_behind: int | None,
        forbidden: Collection[int],
    ) -> None:
        """The grammar begins behind the token `begins_behind`, or immediately if that is None;
        until then the `forbidden` tokens are masked."""
        self._matcher = follows
        self._begins_behind = begins_behind
        self._forbidden = sorted(forbidden)

    def mask(self, logits: Logits) -> Logits:
        """Return a copy of the logits with forbidden tokens at -inf.

        Raises RuntimeError when the grammar has become too costly to follow.
        """
        logits = logits.copy()
        if self._begins_behind is not None:
            logits[[token for token in self._forbidden if token < len(logits)]] = -np.inf
            return logits
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little")
        logits[allowed == 0] = -np.inf
        return logits

    def push(self, token: int) -> bool:
        """Advance by one token; return True if another may follow."""
        if self._begins_behind is not None:
            if token == self._begins_behind:
                self._begins_behind = None
            return True
        self._matcher.consume_token(token)
        self._check()
        return not self._matcher.is_stopped()

    def count_valid(self, tokens: Sequence[int]) -> int:
        """Number of leading `tokens` that the grammar accepts in a row."""
        behind = self._begins_behind
        if behind is None:
            return int(self._matcher.validate_tokens(list(tokens)))
        return tokens.index(behind) + 1 if behind in tokens else len(tokens)

    def forced(self) -> list[int]:
        """Tokens that must come next, up to the first place with a choice."""
        if self._begins_behind is not None:
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()
        return tokens

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar could not be followed: {self._matcher.get_error()}")


def _schema_of(text: str) -> str:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the JSON schema is not JSON: {error}") from None
    return schema_grammar(schema)
