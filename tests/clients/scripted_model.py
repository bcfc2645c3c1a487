"""A model for trials of real clients: its answers follow from the prompt's words alone."""

import json
import re
from typing import Any

# What a trial says to its client; no client's own prompt has these words.
TOOL_WORDS = "Use the sounding line now and tell me the depth."
STORY_WORDS = "Tell me the tale of the sounding line."
TALK_WORDS = "Greet the harbour master."
TOOL_OUTPUT = "4711 fathoms"
STORY_END = "and there the tale of the line ends."
_STORY = "The line went down. " * 100 + STORY_END
_SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"  # how mini-swe-agent's model ends its task
_TOOLS = (  # those of the clients that run a command, and the one of our own programs
    "sounding_line",
    "exec_command",
    "shell_command",
    "shell",
    "Bash",
    "bash",
    "run_shell_command",
    "run_terminal_command",
)


def answer(prompt: str) -> str:
    """The turn that follows a prompt in the model's own format, reasoning included."""
    thought = "I see.</think>" if prompt.endswith("<think>") else ""
    asked, called = prompt.rfind(TOOL_WORDS), prompt.rfind("<tool_result>")
    tool = _shell(prompt)  # some ask for a title beside, without tools
    if tool is not None and asked > max(prompt.rfind(STORY_WORDS), prompt.rfind(TALK_WORDS)):
        return thought + _with_tool(prompt, tool, called > asked)
    if prompt.rfind(STORY_WORDS) > prompt.rfind(TALK_WORDS):
        ends = tool is not None and _SUBMIT in prompt
        return thought + _STORY + (_call(tool, f"echo {_SUBMIT}") if tool and ends else "")
    return thought + f"This is greeting {greetings(prompt) + 1}."


def greetings(prompt: str) -> int:
    """How many answers of a conversation the prompt holds."""
    return max((int(number) for number in re.findall(r"This is greeting (\d+)", prompt)), default=0)


def _with_tool(prompt: str, tool: dict[str, Any], has_result: bool) -> str:
    if has_result and TOOL_OUTPUT in prompt[prompt.rfind("<tool_result>") :]:
        if _SUBMIT not in prompt:
            return f"The tool said {TOOL_OUTPUT}."
        return _call(tool, f"echo {_SUBMIT}; echo The tool said {TOOL_OUTPUT}.")
    return _call(tool, f"echo {TOOL_OUTPUT}")


def _shell(prompt: str) -> dict[str, Any] | None:
    """The tool of the prompt that runs a command."""
    shown = [json.loads(line) for line in prompt.splitlines() if line.startswith('{"name": ')]
    by_name = {tool["name"]: tool for tool in shown}
    return next((by_name[name] for name in _TOOLS if name in by_name), None)


def _call(tool: dict[str, Any], command: str) -> str:
    """A call in the markup of the prompt format, with all that the tool requires."""
    schema = tool.get("parameters", {})
    given: dict[str, Any] = {}
    for name, of in schema.get("properties", {}).items():
        if name in ("command", "cmd"):
            given[name] = ["bash", "-c", command] if of.get("type") == "array" else command
        elif name in schema.get("required", ()):
            given[name] = False if of.get("type") == "boolean" else "Print a depth"
    lines = [
        f'<｜DSML｜parameter name="{name}" string="{str(isinstance(value, str)).lower()}">'
        f"{value if isinstance(value, str) else json.dumps(value)}</｜DSML｜parameter>\n"
        for name, value in given.items()
    ]
    invoke = f'<｜DSML｜invoke name="{tool["name"]}">\n{"".join(lines)}</｜DSML｜invoke>\n'
    return f"\n\n<｜DSML｜tool_calls>\n{invoke}</｜DSML｜tool_calls>"
