"""The prompt format as a Jinja template, for programs that render prompts by one.

It renders what `encode` renders for conversations of system, user, assistant and tool messages
with results in the order of their calls. `tools` belong to the first system message, as our server
puts them; `enable_thinking` (false unless given) chooses the mode. Source: docs/prompt.md 2 to 5.
"""

from sounding.text.markup import (
    ASSISTANT,
    BOS,
    CALLS_CLOSE,
    CALLS_OPEN,
    END_THINK,
    EOS,
    INVOKE_CLOSE,
    INVOKE_OPEN,
    PARAMETER_CLOSE,
    PARAMETER_OPEN,
    THINK,
    USER,
    tools_block,
)

_SPLIT = "\0"
_TOOLS_BEFORE, _TOOLS_AFTER = tools_block([_SPLIT]).split('"\\u0000"')

_LINES = """\
{%- set thinking = enable_thinking is defined and enable_thinking -%}
{%- set asking = ['user', 'tool'] -%}
{%- set seen = namespace(user=-1) -%}
{%- for message in messages -%}
{%- if message.role in asking -%}{%- set seen.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- macro described() -%}
{{- TOOLS_BEFORE -}}
{%- for tool in tools -%}{{- tool.function | tojson -}}{%- if not loop.last -%}{{- NEWLINE -}}\
{%- endif -%}{%- endfor -%}
{{- TOOLS_AFTER -}}
{%- endmacro -%}
{{- BOS -}}
{%- if tools and messages[0].role != 'system' -%}{{- described() -}}{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- message.content or '' -}}
{%- if tools and loop.first -%}{{- described() -}}{%- endif -%}
{%- elif message.role in asking -%}
{{- PAUSE if not loop.first and loop.previtem.role in asking else USER -}}
{%- if message.role == 'tool' -%}
{{- '<tool_result>' -}}{{- message.content or '' -}}{{- '</tool_result>' -}}
{%- else -%}{{- message.content or '' -}}{%- endif -%}
{%- if loop.last or loop.nextitem.role == 'assistant' -%}
{%- if not loop.last or add_generation_prompt -%}
{{- ASSISTANT -}}{{- THINK if thinking and (tools or loop.index0 >= seen.user) else END_THINK -}}
{%- endif -%}
{%- endif -%}
{%- elif message.role == 'assistant' -%}
{%- if thinking and (tools or loop.index0 > seen.user) -%}
{{- message.reasoning_content or '' -}}{{- END_THINK -}}
{%- endif -%}
{{- message.content or '' -}}
{%- if message.tool_calls -%}
{{- CALLS_OPEN -}}
{%- for call in message.tool_calls -%}
{{- NEWLINE -}}{{- INVOKE_OPEN -}}{{- call.function.name -}}{{- QUOTE_CLOSE -}}{{- NEWLINE -}}
{%- for key, value in call.function.arguments.items() -%}
{{- PARAMETER_OPEN -}}{{- key -}}
{%- if value is string -%}{{- IS_STRING -}}{{- value -}}
{%- else -%}{{- IS_JSON -}}{{- value | tojson -}}{%- endif -%}
{{- PARAMETER_CLOSE -}}{%- if not loop.last -%}{{- NEWLINE -}}{%- endif -%}
{%- endfor -%}
{{- NEWLINE -}}{{- INVOKE_CLOSE -}}
{%- endfor -%}
{{- NEWLINE -}}{{- CALLS_CLOSE -}}
{%- endif -%}
{{- EOS -}}
{%- else -%}
{{- raise_exception('the roles are system, user, assistant and tool, not ' + message.role) -}}
{%- endif -%}
{%- endfor -%}
"""

_LITERALS = {
    "TOOLS_BEFORE": _TOOLS_BEFORE,
    "TOOLS_AFTER": _TOOLS_AFTER,
    "NEWLINE": "\n",
    "PAUSE": "\n\n",
    "BOS": BOS,
    "EOS": EOS,
    "USER": USER,
    "ASSISTANT": ASSISTANT,
    "THINK": THINK,
    "END_THINK": END_THINK,
    "CALLS_OPEN": f"{CALLS_OPEN}>",
    "CALLS_CLOSE": CALLS_CLOSE,
    "INVOKE_OPEN": f'{INVOKE_OPEN} name="',
    "INVOKE_CLOSE": f"{INVOKE_CLOSE}>",
    "QUOTE_CLOSE": '">',
    "PARAMETER_OPEN": f'{PARAMETER_OPEN} name="',
    "PARAMETER_CLOSE": f"<{PARAMETER_CLOSE}>",
    "IS_STRING": '" string="true">',
    "IS_JSON": '" string="false">',
}


def _quoted(text: str) -> str:
    """A text as a Jinja string."""
    for mark, escaped in (("\\", "\\\\"), ("\n", "\\n"), ("'", "\\'")):
        text = text.replace(mark, escaped)
    return f"'{text}'"


CHAT_TEMPLATE = (
    "".join(f"{{%- set {name} = {_quoted(text)} -%}}\n" for name, text in _LITERALS.items())
    + _LINES
)
