"""Traces: one JSON file per generation with its tokens, cache hits and times."""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sounding.engine.requests import Usage
from sounding.files import write_file
from sounding.server.content_stops import StopRule
from sounding.server.exchange import EngineRun

log = logging.getLogger(__name__)


class Trace:
    """Writes to a folder from its own thread; a full disk loses the trace, not the answer."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError when the folder cannot be made or written to."""
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
        self._folder = folder
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="trace")

    def keep(self, run: EngineRun) -> None:
        """Write a finished run, including the exact tokens of its prompt."""
        self._writer.submit(self._write, run)

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._writer.shutdown(wait=True)

    def _write(self, run: EngineRun) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(run.began_unix))
        path = self._folder / f"{stamp}-{run.run_id}.json"
        try:
            write_file(path, json.dumps(record(run), ensure_ascii=False, indent=1).encode())
        except OSError as error:
            log.warning("no trace of %s: %s", run.run_id, error)


def record(run: EngineRun) -> dict[str, Any]:
    """The content of a trace."""
    finished, request = run.finished, run.request
    usage = finished.usage if finished is not None else Usage()
    grammar, rule = request.grammar, request.answer
    stop, found = request.stop, finished.stop if finished is not None else None
    if isinstance(rule, StopRule):
        stop, found = rule.stops, rule.found
    return {
        "id": run.run_id,
        "route": run.route,
        "began": run.began_unix,
        "prompt_token_ids": list(request.prompt),
        "completion_token_ids": run.tokens,
        "params": asdict(request.params),
        "max_tokens": request.max_tokens,
        "stop": list(stop),
        "grammar": None if grammar is None else asdict(grammar),
        "priority": request.priority.name.lower(),
        "finish_reason": run.state,
        "found_stop": found,
        "error": finished.error if finished is not None else None,
        "usage": asdict(usage),
        "seconds": {
            "first_token": run.first_token_seconds,
            "total": run.seconds,
            "tokens": [at - run.began_at for at in run.token_times],
        },
    }
