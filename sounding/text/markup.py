"""The literals of the prompt format: special tokens, tool markup and the texts the encoder inserts.

Encoder, parser, grammar and tokenizer all take them from here, so that none can drift. The vertical
bars are U+FF5C and the blocks U+2581, never their ASCII look-alikes. Source: docs/prompt.md 1 to 6.
"""

import json
from typing import Any

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
REMINDER = "<｜latest_reminder｜>"
THINK = "<think>"
END_THINK = "</think>"
DSML = "｜DSML｜"

FIM_HOLE, FIM_BEGIN, FIM_END = "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"
REPO_NAME, END_REPO_NAME = "<｜begin▁of▁repo▁name｜>", "<｜end▁of▁repo▁name｜>"
FILE_NAME, END_FILE_NAME = "<｜begin▁of▁file▁name｜>", "<｜end▁of▁file▁name｜>"
FILE, END_FILE = "<｜begin▁of▁file｜>", "<｜end▁of▁file｜>"

TASKS = {
    "action": "<｜action｜>",
    "query": "<｜query｜>",
    "authority": "<｜authority｜>",
    "domain": "<｜domain｜>",
    "title": "<｜title｜>",
    "read_url": "<｜read_url｜>",
}

# Ids 0, 1, 2 whatever the vocabulary's size.
FIRST_TOKENS = (BOS, EOS, PAD)

# The tokens with a name and a meaning, in the order of their published ids (128800 to 128846).
NAMED_TOKENS = (
    FIM_HOLE,
    FIM_BEGIN,
    FIM_END,
    USER,
    ASSISTANT,
    "<|EOT|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
    REPO_NAME,
    END_REPO_NAME,
    FILE_NAME,
    END_FILE_NAME,
    FILE,
    END_FILE,
    THINK,
    END_THINK,
    "<｜place▁holder▁for▁copy｜>",
    "<｜place▁holder▁for▁pointer▁replace｜>",
    DSML,
    "<｜begin▁sys｜>",
    "<｜end▁sys｜>",
    REMINDER,
    TASKS["action"],
    TASKS["query"],
    TASKS["authority"],
    TASKS["domain"],
    "<｜task｜>",
    "<｜political｜>",
    "<｜entity｜>",
    TASKS["title"],
    "<｜safety｜>",
    "<｜answer｜>",
    "<｜search｜>",
    "<dsml:",
    "</dsml:",
    "<｜search▁begin｜>",
    "<｜search▁end｜>",
    "<｜extracted_url｜>",
    TASKS["read_url"],
    "<｜end_of_query｜>",
)

# Among them the only one the published file marks special.
END_OF_QUERY = NAMED_TOKENS[-1]

# The structural tokens of an answer: its end, thoughts, and tool calls.
IN_ANSWERS = (EOS, THINK, END_THINK, DSML, "<dsml:", "</dsml:")

# Neither content nor reasoning may contain these: the parser could not tell text from structure.
FORBIDDEN_IN_TEXT = (BOS, EOS, THINK, END_THINK, DSML)

CALLS_OPEN = f"\n\n<{DSML}tool_calls"
CALLS_CLOSE = f"</{DSML}tool_calls>"
INVOKE_OPEN = f"<{DSML}invoke"
INVOKE_CLOSE = f"</{DSML}invoke"
PARAMETER_OPEN = f"<{DSML}parameter"
# Without its angle bracket: the published parser looks for this and then for a "<" before it.
PARAMETER_CLOSE = f"/{DSML}parameter"

_MAX_APRIL = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
    "resolve the root cause, rigorously stress-testing your logic against all potential paths, "
    "edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, "
    "considered alternative, and rejected hypothesis to ensure absolutely no assumption is left "
    "unchecked.\n\n"
)
_MAX_0731 = (
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: "
    "exhaustively decompose the problem into its most fundamental components, trace every causal "
    "chain to its root, and resolve the underlying cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple "
    "angles and are certain that no assumption remains unchecked and no error remains "
    "undiscovered.\n\n"
)

# scheme: effort: text put before everything in thinking mode. The scheme cannot be read off a
# checkpoint's config (docs/prompt.md 9), so a caller names it.
EFFORT_TEXTS: dict[str, dict[str | None, str]] = {
    "april": {None: "", "high": "", "max": _MAX_APRIL},
    "0731": {None: "", "low": "", "high": _MAX_APRIL, "max": _MAX_0731},
}

RESPONSE_FORMAT = (
    "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
)

_TOOLS_BEFORE = f"""\


## Tools

You have access to a set of tools to help answer the user's question. \
You can invoke tools by writing a "<{DSML}tool_calls>" block like the following:

<{DSML}tool_calls>
<{DSML}invoke name="$TOOL_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$TOOL_NAME2">
...
</{DSML}invoke>
</{DSML}tool_calls>

String parameters should be specified as is and set `string="true"`. \
For all other types (numbers, booleans, arrays, objects), \
pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by {THINK}), \
you MUST output your complete reasoning inside {THINK}...{END_THINK} \
BEFORE any tool calls or final response.

Otherwise, output directly after {END_THINK} with tool calls or final response.

### Available Tool Schemas

"""
_TOOLS_AFTER = """

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""


def to_json(value: Any) -> str:
    """Serialise a value as in the format: ", " and ": " between items, non-ASCII kept as is.

    Raises ValueError for a value JSON has no form for. Source: docs/prompt.md 2.2.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"{value!r:.80} cannot be written as JSON ({error})") from None


def tools_block(functions: list[Any]) -> str:
    """Describe the tools to the model, one JSON line each. Source: docs/prompt.md 5.1."""
    return _TOOLS_BEFORE + "\n".join(to_json(function) for function in functions) + _TOOLS_AFTER
