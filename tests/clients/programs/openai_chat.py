"""The `openai` package's chat: a conversation, a tool, an answer left, and one that is lost."""

import sys
import time
from typing import Any

from openai import OpenAI, OpenAIError

url, scenario, words = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key="any")
create: Any = client.chat.completions.create
messages: list[Any] = [{"role": "user", "content": words}]
LINE = {"name": "sounding_line", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": LINE}]


def told() -> str:
    chunks = create(model="nano", messages=messages, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


if scenario == "conversation":
    messages += [{"role": "assistant", "content": told()}, messages[0]]
    print(told())
elif scenario == "tool":
    (choice,) = create(model="nano", messages=messages, tools=TOOLS).choices
    (call,) = choice.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "4711 fathoms"}
    messages += [choice.message, result]
    print(create(model="nano", messages=messages, tools=TOOLS).choices[0].message.content)
elif scenario == "cancel":
    with create(model="nano", messages=messages, stream=True) as stream:
        for count, _ in enumerate(stream):
            if count == 20:
                break
    time.sleep(30)  # the connection is closed, the process is not
else:
    try:
        print(told())
    except OpenAIError as error:
        print("lost:", error)
