"""Fields, refusals and checks that several protocols share."""

from collections import Counter
from typing import ClassVar, Literal

from sounding.server.conversation import Choice, Message
from sounding.server.http.errors import Refusal
from sounding.server.http.wire import Refused, Wire

MOST_CHOICES = 16
MOST_TOOLS = 1024
_SHOWN_TOOLS = 20
_MOST_STOPS, _LONGEST_STOP = 64, 1000  # each is searched for at every token

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]
ONLY_TEXT = "this model reads and writes text only"


class StreamOptions(Wire):
    accepted: ClassVar = {"include_obfuscation": "streams are not obfuscated"}

    include_usage: bool | None = None
    """Send usage in a separate last chunk."""


UNSUPPORTED_SAMPLING: dict[str, Refused] = {
    "frequency_penalty": Refused("penalties are not supported", (0, 0.0)),
    "presence_penalty": Refused("penalties are not supported", (0, 0.0)),
    "logit_bias": Refused("token biases are not supported", ({},)),
}
METADATA: dict[str, str] = {
    "user": "metadata",
    "metadata": "metadata",
    "safety_identifier": "metadata",
    "service_tier": "there is only one tier",
    "prompt_cache_key": "ignored: prefixes are matched by tokens",
    "prompt_cache_retention": "prefixes are kept until they are evicted",
    "prompt_cache_options": "ignored: prefixes are matched by tokens",
    "prediction": "a hint for speed; drafts come from prompt lookup anyway",
    "cache_prompt": "prefixes are always cached",
    "id_slot": "the prefix cache is shared by all slots",
    "samplers": "parameters select samplers; their order is fixed",
    "response_fields": "only /infill selects fields",
    "timings_per_token": "times are in traces",
}


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """Raises Refusal for an empty stop string, and for too many or too long ones."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > _MOST_STOPS or any(len(one) > _LONGEST_STOP for one in stops):
        raise Refusal(
            400,
            f"stop: give at most {_MOST_STOPS} stop strings of at most {_LONGEST_STOP} characters",
            param="stop",
            code="invalid_value",
        )
    if not all(stops):
        raise Refusal(
            400, "stop: stop strings must not be empty", param="stop", code="invalid_value"
        )
    return stops


def arguments_of(text: str | None) -> str:
    """The arguments of a call that a client sends back. Blank and null mean `{}`: some clients
    assemble them so from a stream."""
    return "{}" if text is None or text.strip() in ("", "null") else text


def most_tokens(*asked: int | None) -> int | None:
    """The smallest of the given limits; -1 means no limit."""
    return min((most for most in asked if most is not None and most >= 0), default=None)


def check_choice(
    word: Choice, names: tuple[str, ...] | None, tools: list[Message]
) -> tuple[Choice, tuple[str, ...] | None]:
    """Whether to call, and which tools may be called (None: all).

    Raises Refusal for a required call without a tool to call.
    """
    known = [tool["function"]["name"] for tool in tools]
    twice = next((name for name, count in Counter(known).items() if count > 1), None)
    if twice is not None:
        raise _refused_tool("tools", f"two tools are named {twice!r}; names must be unique")
    offered = set(known)
    missing = next((name for name in names or () if name not in offered), None)
    if missing is not None:
        among = f"{known[:_SHOWN_TOOLS]}" + (" and others" if known[_SHOWN_TOOLS:] else "")
        raise _refused_tool("tool_choice", f"tool {missing[:128]!r} is not in tools: {among}")
    if word == "required" and not tools:
        raise _refused_tool("tool_choice", "a call is required, but tools is empty")
    return word, names


def _refused_tool(param: str, message: str) -> Refusal:
    return Refusal(400, f"{param}: {message}", param=param, code="invalid_value")
