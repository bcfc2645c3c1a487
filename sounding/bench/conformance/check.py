"""What a check is, and running them: each by itself, within a budget of requests and time."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sounding.bench.conformance.remote_server import BadAnswer, OutOfBudget, RemoteServer


class Protocol(StrEnum):
    """The protocols, by the names that the command takes."""

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
# Where the first check of a protocol, which any server of it answers, gets one of these statuses,
# the server does not speak it.
ABSENT = (404, 405, 501)


class Deviation(Exception):
    """A server did otherwise than the documentation says; the message says what it did."""


@dataclass(frozen=True)
class Check:
    """One rule of a protocol, and how a server is asked about it."""

    protocol: Protocol
    name: str
    rule: str
    """What the documentation says."""
    required: bool
    """False where a client is served as well without."""
    run: Callable[[RemoteServer], None]


class CheckVerdict(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    DEVIATES = "deviates"
    SKIPPED = "not asked"


@dataclass(frozen=True)
class Result:
    """The end of one check."""

    check: Check
    verdict: CheckVerdict
    message: str = ""
    """What the server did otherwise, or why it was not asked."""
    sent: str = ""
    got: str = ""
    """The last request of the check and its answer, shortened."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON, with the check's name, rule and whether it is required."""
        found = asdict(self)
        del found["check"]
        check = self.check
        named = {"protocol": str(check.protocol), "name": check.name, "rule": check.rule}
        return named | {"required": check.required} | found


def rule(
    protocol: Protocol, says: str, *, required: bool = True
) -> Callable[[Callable[[RemoteServer], None]], Check]:
    """Turn a function into a check named like it. It raises Deviation, or returns."""

    def wrap(run: Callable[[RemoteServer], None]) -> Check:
        return Check(protocol, run.__name__.replace("_", " "), says, required, run)

    return wrap


def expect(holds: bool, otherwise: str) -> None:
    """Raise Deviation saying what was found unless something holds."""
    if not holds:
        raise Deviation(otherwise)


def run_checks(server: RemoteServer, checks: Iterable[Check]) -> Iterator[Result]:
    """Run checks one after the other; none is asked once the budget is spent.

    Raises ConnectionRefusedError where there is no server, or no longer one.
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
            verdict, message = CheckVerdict.DEVIATES, "no answer came in time"
        except ConnectionRefusedError:
            raise
        except OSError as error:
            verdict, message = CheckVerdict.DEVIATES, f"the connection broke: {error}"
        except StopIteration:
            verdict, message = CheckVerdict.DEVIATES, "the answer lacks what the rule names"
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            verdict, message = CheckVerdict.DEVIATES, f"the answer has another shape: {error!r}"
        asked.add(check.protocol)
        seconds = time.monotonic() - start
        yield Result(check, verdict, message, *server.last, seconds)
