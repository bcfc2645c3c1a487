"""Checks, and running them one by one within a budget of requests and time."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sounding.bench.conformance.remote_server import BadAnswer, OutOfBudget, RemoteServer


class Protocol(StrEnum):
    """The protocols, with the names that the command accepts."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    INFILL = "infill"
    OLLAMA = "ollama"


TITLES = {
    Protocol.CHAT: "OpenAI chat completions",
    Protocol.COMPLETIONS: "OpenAI completions",
    Protocol.RESPONSES: "OpenAI responses",
    Protocol.MESSAGES: "Anthropic messages",
    Protocol.INFILL: "llama.cpp infill",
    Protocol.OLLAMA: "Ollama",
}
# If the first check of a protocol, which every server of that protocol answers, gets one of these
# statuses, the server does not support it.
ABSENT = (404, 405, 501)


class Deviation(Exception):
    """A server deviated from the documentation; the message says what it did."""


@dataclass(frozen=True)
class Check:
    """One rule of a protocol, and the function that tests a server for it."""

    protocol: Protocol
    name: str
    rule: str
    """The rule that the documentation states."""
    required: bool
    """False if clients work as well without it."""
    run: Callable[[RemoteServer], None]


class CheckVerdict(StrEnum):
    """Outcome of a check."""

    PASSED = "passed"
    DEVIATES = "deviates"
    SKIPPED = "not asked"


@dataclass(frozen=True)
class Result:
    """Result of one check."""

    check: Check
    verdict: CheckVerdict
    message: str = ""
    """How the server deviated, or why it was not asked."""
    sent: str = ""
    got: str = ""
    """The check's last request and its response, shortened."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The result as a JSON object, with the check's name, its rule and `required`."""
        found = asdict(self)
        del found["check"]
        check = self.check
        named = {"protocol": str(check.protocol), "name": check.name, "rule": check.rule}
        return named | {"required": check.required} | found


def rule(
    protocol: Protocol, says: str, *, required: bool = True
) -> Callable[[Callable[[RemoteServer], None]], Check]:
    """Turn a function that raises Deviation, or returns, into a check with the function's name."""

    def wrap(run: Callable[[RemoteServer], None]) -> Check:
        return Check(protocol, run.__name__.replace("_", " "), says, required, run)

    return wrap


def expect(holds: bool, otherwise: str) -> None:
    """Raise Deviation with the message `otherwise` unless `holds`."""
    if not holds:
        raise Deviation(otherwise)


def run_checks(server: RemoteServer, checks: Iterable[Check]) -> Iterator[Result]:
    """Run checks one after the other; skip the rest once the budget is spent.

    Raises ConnectionRefusedError if no server is running, or it stopped.
    """
    absent: dict[Protocol, str] = {}
    asked: set[Protocol] = set()
    for check in checks:
        if check.protocol in absent:
            yield Result(check, CheckVerdict.SKIPPED, absent[check.protocol])
            continue
        server.forget()
        start = time.monotonic()
        verdict, message = CheckVerdict.PASSED, ""
        try:
            check.run(server)
        except Deviation as deviation:
            verdict, message = CheckVerdict.DEVIATES, str(deviation)
        except BadAnswer as bad:
            if bad.status in ABSENT and check.protocol not in asked:
                absent[check.protocol] = f"the server has no such route ({bad.status})"
                yield Result(check, CheckVerdict.SKIPPED, absent[check.protocol])
                continue
            verdict, message = CheckVerdict.DEVIATES, str(bad)
        except OutOfBudget as spent:
            verdict, message = CheckVerdict.SKIPPED, str(spent)
        except TimeoutError:
            verdict, message = CheckVerdict.DEVIATES, "the server did not answer in time"
        except ConnectionRefusedError:
            raise
        except OSError as error:
            verdict, message = CheckVerdict.DEVIATES, f"the connection failed: {error}"
        except StopIteration:
            verdict, message = (
                CheckVerdict.DEVIATES,
                "the answer lacks an element that the rule requires",
            )
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            verdict, message = CheckVerdict.DEVIATES, f"the answer has another shape: {error!r}"
        asked.add(check.protocol)
        seconds = time.monotonic() - start
        yield Result(check, verdict, message, *server.last, seconds)
