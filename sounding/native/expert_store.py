"""Routed experts in a fixed amount of memory, read from disk when a step needs them.

The kernels ask through `ExpertSource`: `need` announces the experts of a layer, of which those in
memory are computed while the others are read; `next` gives what has arrived. Each result has its
own place and is summed in the order of experts, so that neither the order of arrival nor what was
in memory changes a bit.

Memory is a number of slots of one expert each. A layer keeps at most its quota of them from step to
step; the rest are for reads in transit, so that a step gets through with any number of slots.
"""

import ctypes
import mmap
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sounding.native.describe import LARGEST_SCALE, LEAST_SCALE
from sounding.native.expert_policy import ExpertPolicy, LeastRecentlyUsed
from sounding.native.structs import NativeExpertSource, NativeWeight, NeedExperts, NextExperts
from sounding.weights.expert_files import PARTS, ExpertFiles, ExpertReadError
from sounding.weights.memory_plan import MemoryPlan

Key = tuple[int, int]
"""Layer and expert."""

STALL_SECONDS = 60.0
_LOOK_SECONDS = 0.25  # between two looks whether a step that waits was cancelled
_DENSE_STEP = 0.75  # a step that needs this share of a layer's experts will need the next layer's
_HUGE_PAGE = 2 << 20


class StepCancelled(RuntimeError):
    """A step was ended because nobody waits for its results."""


@dataclass(frozen=True, kw_only=True)
class ExpertStats:
    """Counters of a store since its start, and its sizes."""

    slots: int
    slot_bytes: int
    hits: int
    """Experts that a step needed and found in memory, from earlier steps."""
    ahead: int
    """Those that were being read already, or had been read ahead."""
    misses: int
    """Those of which reading began when they were needed."""
    bytes_read: int
    waited_seconds: float
    """Time in which a step had nothing to compute."""
    read_seconds: float
    """Sum over all reads, which overlap each other."""
    failed_reads: int


def sum_of_stats(parts: Sequence[ExpertStats]) -> ExpertStats | None:
    """Several stores as one; None for none."""
    if not parts:
        return None
    sums = {each.name: sum(getattr(part, each.name) for part in parts) for each in fields(parts[0])}
    return ExpertStats(**sums | {"slot_bytes": parts[0].slot_bytes})


class ExpertStore:
    """The experts of some layers; one thread runs steps, a few others read."""

    def __init__(
        self,
        files: ExpertFiles,
        *,
        slots: int,
        readers: int = 4,
        quotas: Sequence[int] | None = None,
        policy: ExpertPolicy | None = None,
        stall_seconds: float = STALL_SECONDS,
        plan: MemoryPlan | None = None,
    ) -> None:
        """`slots` experts fit in memory; layer i keeps quotas[i] from step to step, by default an
        equal share of what reads in transit leave. `plan` says where `slots` comes from. Raises
        ValueError for fewer than one slot."""
        self.plan = plan
        if slots < 1:
            raise ValueError(f"slots = {slots} must be at least 1")
        self.files, self._policy = files, policy or LeastRecentlyUsed()
        self.quotas = list(
            quotas if quotas is not None else share_slots(files.counts, slots, readers)
        )
        if sum(self.quotas) >= slots:
            raise ValueError(
                f"layers keep {sum(self.quotas)} experts and there are {slots} slots; one at least "
                "must be left for reads"
            )
        self._most_ahead = (slots - sum(self.quotas)) // 2
        self.num_slots, self._stall_seconds = slots, stall_seconds
        self._memory = mmap.mmap(-1, max(slots * files.slot_bytes, 1))
        if hasattr(mmap, "MADV_HUGEPAGE") and len(self._memory) >= _HUGE_PAGE:
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._view = memoryview(self._memory)
        self._address = np.frombuffer(self._memory, dtype=np.uint8).ctypes.data
        self._weights: dict[Key, tuple[NativeWeight, ...]] = {}

        self.cancelled: Callable[[], bool] | None = None
        """Asked within a step; True ends it with `StepCancelled`."""
        self._lock = threading.Lock()
        self._work, self._arrived = threading.Condition(self._lock), threading.Condition(self._lock)
        self._free = list(range(slots))
        self._held: list[dict[int, int]] = [{} for _ in files.counts]  # expert: slot
        self._reading: set[Key] = set()
        self._demand: deque[Key] = deque()  # to read for the layer that is computed
        self._guesses: deque[Key] = deque()  # to read ahead
        self._ahead: set[Key] = set()  # read ahead, or being read, and not yet needed
        self._layer, self._keep = 0, set[int]()
        self._pending: set[int] = set()  # needed of the layer and not given to the kernels
        self._given: list[int] = []
        self._fresh = False
        self._errors: dict[Key, Exception] = {}
        self._error: BaseException | None = None
        self._closed = False
        self._hits = self._hits_ahead = self._misses = self._bytes = self._failed = 0
        self._waited = self._read_seconds = 0.0

        self.source = NativeExpertSource(NeedExperts(self._on_need), NextExperts(self._on_next))
        self._threads = [
            threading.Thread(target=self._read_for_ever, name=f"experts-{n}", daemon=True)
            for n in range(readers)
        ]
        for thread in self._threads:
            thread.start()

    def attach(self, layer: int, parts: Sequence["ctypes.Array[NativeWeight]"]) -> None:
        """The descriptions of w1, w2 and w3 of a layer's experts, whose pointers the store sets."""
        for expert in range(len(parts[0])):
            self._weights[layer, expert] = tuple(part[expert] for part in parts)

    def expect(self, layer: int, experts: Collection[int]) -> None:
        """Read experts ahead that the next step will need, as far as there is room."""
        with self._lock:
            self._guess(layer, experts)

    def begin_step(self) -> None:
        """Forget what was read ahead for a step that did not come."""
        with self._lock:
            self._guesses.clear()
            self._drop_ahead(self._ahead)

    def take_error(self) -> BaseException:
        """Why the last step was ended."""
        error, self._error = self._error, None
        assert error is not None
        return error

    def kept(self) -> list[set[int]]:
        """The experts in memory, by layer."""
        with self._lock:
            return [set(held) for held in self._held]

    def stats(self) -> ExpertStats:
        """The counters now."""
        with self._lock:
            return ExpertStats(
                slots=self.num_slots,
                slot_bytes=self.files.slot_bytes,
                hits=self._hits,
                ahead=self._hits_ahead,
                misses=self._misses,
                bytes_read=self._bytes,
                waited_seconds=self._waited,
                read_seconds=self._read_seconds,
                failed_reads=self._failed,
            )

    def close(self) -> None:
        """Stop the readers; one in a read that does not return is left behind. Safe to call
        twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join(timeout=1.0)
        if not any(thread.is_alive() for thread in self._threads):
            self.files.close()

    # ----------------------------------------------------------------------------------------------
    # Called by the kernels, within a step

    def _on_need(self, layer: int, experts: Any, last: Any, count: int) -> int:
        try:
            needed = experts[:count]
            order = [expert for _, expert in sorted(zip(last[:count], needed, strict=True))]
            with self._lock:
                self._need(layer, needed, order)
            return 0
        except BaseException as error:  # must not pass through the kernels
            self._error = error
            return -1

    def _on_next(self, layer: int, out: Any) -> int:
        try:
            self._require_wanted()
            with self._lock:
                ready = self._next(layer)
            for number, expert in enumerate(ready):
                out[number] = expert
            return len(ready)
        except BaseException as error:
            self._error = error
            with self._lock:
                self._demand.clear()  # what arrives all the same is not kept
                self._pending.clear()
            return -1

    def _need(self, layer: int, needed: list[int], order: list[int]) -> None:
        coming = {expert for other, expert in self._ahead if other == self._layer}
        self._release(self._layer, set(self._held[self._layer]) - self._keep - coming)
        held, self._given = self._held[layer], []
        self._policy.use(layer, order)
        keep = self._policy.keep(layer, held.keys() | set(needed), self.quotas[layer])
        self._layer, self._keep, self._pending, self._fresh = layer, keep, set(needed), True
        self._errors.clear()
        known = {expert for expert in needed if expert in held or (layer, expert) in self._reading}
        ahead = sum((layer, expert) in self._ahead for expert in known)
        self._hits_ahead += ahead
        self._hits += len(known) - ahead
        self._misses += len(needed) - len(known)
        self._guesses = deque(key for key in self._guesses if key[0] != layer)
        self._ahead = {key for key in self._ahead if key[0] != layer}
        self._release(layer, set(held) - keep - self._pending)
        missing = [(layer, expert) for expert in needed if expert not in known]
        self._demand = deque(sorted(missing, key=lambda key: self.files.order(*key)))
        following = layer + 1
        dense = len(needed) > _DENSE_STEP * self.files.counts[layer]
        if dense and following < len(self._held) and self.files.in_sequence(layer):
            self._guess(following, range(self.files.counts[following]))
        self._work.notify_all()

    def _next(self, layer: int) -> list[int]:
        self._release(layer, set(self._given) - self._keep)
        first, self._fresh = self._fresh, False
        held = self._held[layer]
        began = progressed = time.perf_counter()
        while True:
            for expert in self._pending:
                if (layer, expert) in self._errors:
                    raise self._errors[layer, expert]
            ready = [expert for expert in self._pending if expert in held]
            if ready or first:
                break
            self._require_wanted()
            if self._closed:
                raise ExpertReadError("the model was closed, and its experts are not read any more")
            if self._arrived.wait(_LOOK_SECONDS):
                progressed = time.perf_counter()
            elif time.perf_counter() - progressed > self._stall_seconds:
                raise self._stalled(layer)
        self._waited += time.perf_counter() - began
        self._pending.difference_update(ready)
        self._given = ready
        return ready

    def _require_wanted(self) -> None:
        if self.cancelled is not None and self.cancelled():
            raise StepCancelled("the step was cancelled")

    def _stalled(self, layer: int) -> ExpertReadError:
        expert = min(self._pending)
        path = self.files.path(layer, expert)
        return ExpertReadError(
            f"{path}: no read has returned for {self._stall_seconds:g} seconds (expert {expert} of "
            f"{self.files.names[layer]}); check the disk, then send the request again"
        )

    def _release(self, layer: int, experts: Collection[int]) -> None:
        """Give back the slots of experts of a layer."""
        held = self._held[layer]
        for expert in experts:
            self._free.append(held.pop(expert))
        if experts:
            self._work.notify_all()

    # ----------------------------------------------------------------------------------------------
    # Reading ahead

    def _guess(self, layer: int, experts: Collection[int]) -> None:
        room = self._most_ahead - len(self._ahead) - len(self._guesses)
        for expert in experts:
            key = (layer, expert)
            if room <= 0:
                break
            if expert not in self._held[layer] and key not in self._reading:
                self._guesses.append(key)
                room -= 1
        self._work.notify_all()

    def _drop_ahead(self, keys: Collection[Key]) -> None:
        for layer, expert in tuple(keys):
            if expert in self._held[layer]:
                self._release(layer, [expert])
        self._ahead = set()

    # ----------------------------------------------------------------------------------------------
    # The threads that read

    def _read_for_ever(self) -> None:
        for key, slot in iter(self._take, None):
            before = time.perf_counter()
            error = self._read(key, slot)
            seconds = time.perf_counter() - before
            with self._lock:
                self._deliver(key, slot, seconds, error)

    def _take(self) -> tuple[Key, int] | None:
        """What to read next, demand before guesses, and a slot for it; None at the end."""
        with self._lock:
            while True:
                if self._closed:
                    return None
                if self._free and (self._demand or self._guesses):
                    key = self._demand.popleft() if self._demand else self._guesses.popleft()
                    if key[0] != self._layer or key[1] not in self._pending:
                        self._ahead.add(key)
                    self._reading.add(key)
                    return key, self._free.pop()
                self._work.wait()

    def _read(self, key: Key, slot: int) -> Exception | None:
        try:
            size = self.files.slot_bytes
            self.files.read(*key, self._view[slot * size : (slot + 1) * size])
            self._require_scales(key, slot)
        except ExpertReadError as error:
            return error
        except Exception as error:  # a bug, or no memory: the step must hear of it too
            return ExpertReadError(f"{self.files.path(*key)}: {error!r}")
        return None

    def _deliver(self, key: Key, slot: int, seconds: float, error: Exception | None) -> None:
        layer, expert = key
        self._reading.discard(key)
        self._read_seconds += seconds
        needed = layer == self._layer and expert in self._pending
        if error is None:
            self._bytes += self.files.nbytes(*key)
        else:
            self._failed += 1
            if needed:
                self._errors[key] = error
        if error is None and (needed or key in self._ahead):
            self._held[layer][expert] = slot
            self._point(key, slot)
        else:
            self._ahead.discard(key)
            self._free.append(slot)
            self._work.notify()
        self._arrived.notify_all()

    def _point(self, key: Key, slot: int) -> None:
        place, base = self.files.place(*key), self._address + slot * self.files.slot_bytes
        for number, weight in enumerate(self._weights.get(key, ())):
            weight.values = base + place.values[number]
            weight.scales = base + place.scales[number] if place.scales else None

    def _require_scales(self, key: Key, slot: int) -> None:
        """Raise ExpertReadError for scales that the kernels do not read."""
        place, base = self.files.place(*key), slot * self.files.slot_bytes
        for part, offset in zip(PARTS, place.scales, strict=False):
            source = self.files.sources[key[0]][f"{part}.scale"]
            scales = np.frombuffer(self._memory, np.uint8, source.num_bytes, base + offset)
            low, high = int(scales.min()), int(scales.max())
            if low < LEAST_SCALE or high > LARGEST_SCALE:
                raise ExpertReadError(
                    f"{self.files.path(*key)}: the scales of {part} of expert {key[1]} of "
                    f"{self.files.names[key[0]]} are from code {low} to {high}; the kernels read "
                    f"{LEAST_SCALE} to {LARGEST_SCALE}, so the file is damaged: get it again"
                )


def share_slots(counts: Sequence[int], slots: int, readers: int) -> list[int]:
    """Experts that each layer keeps: equal shares of what reads in transit leave."""
    spare = min(max(1, slots // 2), max(2 * readers, min(slots // 8, 6 * readers)))
    quotas = [0] * len(counts)
    left = min(slots - spare, sum(counts))
    while left > 0:
        open_layers = [n for n, count in enumerate(counts) if quotas[n] < count]
        share = max(1, left // len(open_layers))
        for n in open_layers:
            more = min(share, counts[n] - quotas[n], left)
            quotas[n] += more
            left -= more
    return quotas
