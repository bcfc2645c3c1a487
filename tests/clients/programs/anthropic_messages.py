"""The `anthropic` package: a conversation, a tool, an answer left, and one that is lost."""

import sys
import time
from typing import Any

from anthropic import Anthropic

url, scenario, words = sys.argv[1:]
client: Any = Anthropic(base_url=url, api_key="any")
messages: list[Any] = [{"role": "user", "content": words}]
TOOLS = [{"name": "sounding_line", "input_schema": {"type": "object", "properties": {}}}]
HOW: dict[str, Any] = {"model": "nano", "max_tokens": 4096}


def told() -> Any:
    with client.messages.stream(messages=messages, **HOW) as stream:
        return stream.get_final_message()


if scenario == "conversation":
    messages += [{"role": "assistant", "content": told().content}, messages[0]]
    print(told().content[0].text)
elif scenario == "tool":
    done = client.messages.create(messages=messages, tools=TOOLS, **HOW)
    (call,) = [block for block in done.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "4711 fathoms"}
    messages += [
        {"role": "assistant", "content": done.content},
        {"role": "user", "content": [result]},
    ]
    print(client.messages.create(messages=messages, tools=TOOLS, **HOW).content[0].text)
elif scenario == "cancel":
    with client.messages.stream(messages=messages, **HOW) as stream:
        for count, _ in enumerate(stream.text_stream):
            if count == 20:
                break
    time.sleep(30)  # the connection is closed, the process is not
else:
    try:
        print(told().content[0].text)
    except Exception as error:  # the HTTP library's own, of a stream that broke off
        print("lost:", error)
