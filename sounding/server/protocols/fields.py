"""What several protocols have in common on the wire: fields, what is refused, and checks."""

from collections import Counter
from typing import ClassVar, Literal

from sounding.server.conversation import Choice, Message
from sounding.server.http.errors import Refusal
from sounding.server.http.wire import Refused, Wire

MOST_CHOICES = 16
MOST_TOOLS = 1024
_SHOWN_TOOLS = 20
_MOST_STOPS, _LONGEST_STOP = 64, 1000  # each is looked for at every token

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]
ONLY_TEXT = "this model reads and writes text alone"


class StreamOptions(Wire):
    accepted: ClassVar = {"include_obfuscation": "nothing is obfuscated"}

    include_usage: bool | None = None
    """Send the usage in a chunk of its own before the end."""


UNSUPPORTED_SAMPLING: dict[str, Refused] = {
    "frequency_penalty": Refused("tokens are not penalised", (0, 0.0)),
    "presence_penalty": Refused("tokens are not penalised", (0, 0.0)),
    "logit_bias": Refused("tokens are not biased one by one", ({},)),
}
METADATA: dict[str, str] = {
    "user": "metadata",
    "metadata": "metadata",
    "safety_identifier": "metadata",
    "service_tier": "there is one tier",
    "prompt_cache_key": "prefixes are found by their tokens",
    "prompt_cache_retention": "prefixes stay while there is room",
    "prompt_cache_options": "prefixes are found by their tokens",
    "prediction": "a hint for speed; drafts are looked up in the prompt anyway",
    "cache_prompt": "prefixes are always cached",
    "id_slot": "every slot finds every prefix",
    "samplers": "the parameters say which run; their order is fixed",
    "response_fields": "the protocol has its own; /infill sends those that are asked for",
    "timings_per_token": "times are in the trace",
}


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """Raises Refusal for one that would stop everything, and for more than can be looked for."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > _MOST_STOPS or any(len(one) > _LONGEST_STOP for one in stops):
        raise Refusal(
            400,
            f"stop: give at most {_MOST_STOPS} stop strings of at most {_LONGEST_STOP} characters",
            param="stop",
            code="invalid_value",
        )
    if not all(stops):
        raise Refusal(400, "stop: a stop string is empty", param="stop", code="invalid_value")
    return stops


def arguments_of(text: str | None) -> str:
    """A call's arguments as clients send them back: blank ones and null are those of a call that
    takes none, as some clients add them up from a stream."""
    return "{}" if text is None or text.strip() in ("", "null") else text


def most_tokens(*asked: int | None) -> int | None:
    """The least of the limits that are given; -1 is none."""
    return min((most for most in asked if most is not None and most >= 0), default=None)


def check_choice(
    word: Choice, names: tuple[str, ...] | None, tools: list[Message]
) -> tuple[Choice, tuple[str, ...] | None]:
    """Whether to call, and which tools may be called (None: all).

    Raises Refusal for a call that is due without a tool that could be called.
    """
    known = [tool["function"]["name"] for tool in tools]
    twice = next((name for name, count in Counter(known).items() if count > 1), None)
    if twice is not None:
        raise _refused_tool("tools", f"there are two tools named {twice!r}")
    offered = set(known)
    missing = next((name for name in names or () if name not in offered), None)
    if missing is not None:
        among = f"{known[:_SHOWN_TOOLS]}" + (" and others" if known[_SHOWN_TOOLS:] else "")
        raise _refused_tool("tool_choice", f"there is no tool {missing[:128]!r} among {among}")
    if word == "required" and not tools:
        raise _refused_tool("tool_choice", "a call is required, but there are no tools")
    return word, names


def _refused_tool(param: str, message: str) -> Refusal:
    return Refusal(400, f"{param}: {message}", param=param, code="invalid_value")
