"""Tool calls as DSML markup in the prompt; values it cannot represent are refused.

The format has no escaping, so a call that would be read back as something else is an error here
rather than a corrupt prompt. parse.py parses it. Source: docs/prompt.md 5.2.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from sounding.text.markup import (
    CALLS_CLOSE,
    CALLS_OPEN,
    DSML,
    INVOKE_CLOSE,
    INVOKE_OPEN,
    PARAMETER_CLOSE,
    PARAMETER_OPEN,
    to_json,
)

_END_OF_KEY = re.compile(r'" string="(?:true|false)">')


def call_fields(call: Any, where: str) -> tuple[str, str]:
    """Take name and arguments (a JSON string) out of one call of OpenAI shape.

    Raises ValueError, opening with `where`, when either is missing or of another type.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise ValueError(
            f"{where} is {call!r:.80}; a call is "
            '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'
        )
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        raise ValueError(f"{where} names its function {name!r:.80}; a name is a string")
    if not isinstance(arguments, str):
        raise ValueError(
            f"{where} ({name}) has arguments {arguments!r:.80}; they are a JSON string, "
            "so write an object with json.dumps first"
        )
    return name, arguments


def render_call(name: str, arguments: str) -> str:
    """Write one call: `<｜DSML｜invoke name=...>`, a line per parameter, the closing tag.

    Arguments that are no JSON at all become one raw parameter called `arguments`, as the published
    encoder does. Raises ValueError for JSON that is not an object, and for a name, key or value
    that could not be read back.
    """
    check_name(name)
    values: Any
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        values = {"arguments": arguments}
    if not isinstance(values, dict):
        raise ValueError(
            f"the arguments of {name} are {arguments!r:.80}; "
            "they must be a JSON object such as '{}' or '{\"path\": \"a.py\"}'"
        )
    lines = "\n".join(_parameter(name, key, value) for key, value in values.items())
    return f'{INVOKE_OPEN} name="{name}">\n{lines}\n{INVOKE_CLOSE}>'


def render_block(rendered: list[str]) -> str:
    """Join rendered calls into the block that follows the content."""
    return f"{CALLS_OPEN}>\n" + "\n".join(rendered) + f"\n{CALLS_CLOSE}"


def check_name(name: str) -> None:
    """Raise ValueError for a tool name that could not be read back."""
    if PARAMETER_OPEN in name or INVOKE_CLOSE in name:
        raise ValueError(
            f"the tool name {name!r:.80} contains tool markup and could not be read back; "
            "rename the tool"
        )


def parameter_head(name: str, key: str, string: bool) -> str:
    """The opening tag of a parameter. Raises ValueError for a key that cannot be read back."""
    head = f'{key}" string="{"true" if string else "false"}">'
    found = _END_OF_KEY.search(head)
    if PARAMETER_CLOSE in key or found is None or found.start() != len(key):
        raise ValueError(
            f"the parameter name {key!r:.80} of {name} contains tool markup "
            "and could not be read back; rename the parameter"
        )
    return f'{PARAMETER_OPEN} name="{head}'


def _parameter(name: str, key: str, value: Any) -> str:
    text = value if isinstance(value, str) else to_json(value)
    head = parameter_head(name, key, isinstance(value, str))
    if PARAMETER_CLOSE in text:
        at = text.index(PARAMETER_CLOSE)
        raise ValueError(
            f"the value of {key!r} in a call of {name} contains its own closing tag, "
            f"{PARAMETER_CLOSE!r} at character {at}; the format has no escape for it, "
            f"so write {DSML} in another way, for instance with ASCII bars"
        )
    return f"{head}{text}<{PARAMETER_CLOSE}>"
