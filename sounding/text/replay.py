"""Exact replay: calls rendered as the model sampled them, so the next prompt extends the last.

A server issues call ids and receives only name and arguments; re-rendering those can differ
from the sampled text (`[1,2]` becomes `[1, 2]`), and then every cached token after it is lost.
The sampled text is stored by id, bounded, and reused as long as the call is equivalent.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sounding.text.dsml.calls import call_fields, render_block, render_call
from sounding.text.events import ParsedCompletion, split_sampled


@dataclass(slots=True, frozen=True)
class _Kept:
    name: str
    arguments: str
    call: str  # the call alone, from its opening tag to its closing one; "" without that
    block: str | None  # the whole block it was sampled in, if that ended the message
    company: tuple[str, ...]  # ids of all calls of that block, in order


class Replay:
    """Sampled calls by id; the least recently used go first when there are more than `capacity`."""

    def __init__(self, capacity: int = 4096) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; keep at least 1 call")
        self._capacity = capacity
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()  # a server renders in several threads

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, ids: Sequence[str], completion: ParsedCompletion) -> None:
        """Store the calls of a parsed completion under their ids, in order.

        A completion with a call that was cut off is not stored: the next turn would be inside of
        its open tags. Raises ValueError if the number of ids is not the number of calls.
        """
        calls = completion.calls
        if len(ids) != len(calls):
            raise ValueError(f"{len(ids)} ids for {len(calls)} calls; give one for each")
        if not all(call.complete for call in calls):
            return
        block = None
        if completion.tail is not None and completion.finish_reason != "length":
            block = "".join(call.sampled for call in calls) + completion.tail
        kept = [
            _Kept(call.name, call.arguments, split_sampled(call.sampled)[1], block, tuple(ids))
            for call in calls
        ]
        with self._lock:
            for call_id, one in zip(ids, kept, strict=True):
                self._kept[call_id] = one
                self._kept.move_to_end(call_id)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)

    def block(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Render the calls of one assistant message, each from its sampled text where that holds.

        The whole block comes back byte for byte when it is complete and unchanged; otherwise each
        known and unchanged call keeps its own text and the rest is rendered anew.
        """
        rendered: list[str] = []
        known: list[_Kept | None] = []
        for index, call in enumerate(calls):
            name, arguments = call_fields(call, f"tool_calls[{index}]")
            kept = self._lookup(call.get("id"), name, arguments)
            known.append(kept)
            text = kept.call if kept is not None else ""
            rendered.append(text or render_call(name, arguments))
        first = known[0] if known else None
        ids = tuple(call.get("id") for call in calls)
        if first is not None and first.block is not None and all(known) and first.company == ids:
            return first.block
        return render_block(rendered)

    def _lookup(self, call_id: Any, name: str, arguments: str) -> _Kept | None:
        kept = self._kept.get(call_id) if isinstance(call_id, str) else None
        if kept is None or kept.name != name or not _same_json(kept.arguments, arguments):
            return None
        with self._lock:
            if call_id in self._kept:  # another thread may have made room meanwhile
                self._kept.move_to_end(call_id)
        return kept


def _same_json(a: str, b: str) -> bool:
    """True if two argument strings are equal as JSON; clients reformat arguments."""
    if a == b:
        return True
    try:
        return _same(json.loads(a), json.loads(b))
    except (ValueError, RecursionError):
        return False


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    # 1 and 1.0 are one number in JSON, but True is no number.
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)
