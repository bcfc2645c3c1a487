"""`litellm`: a conversation, a tool, an answer left, and one that is lost."""

import asyncio
import sys
from typing import Any

import litellm

url, scenario, words = sys.argv[1:]
HOW = {"model": "openai/nano", "api_base": f"{url}/v1", "api_key": "any"}
messages: list[Any] = [{"role": "user", "content": words}]
LINE = {"name": "sounding_line", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": LINE}]


def told() -> str:
    chunks = litellm.completion(messages=messages, stream=True, **HOW)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


async def leave() -> None:
    stream = await litellm.acompletion(messages=messages, stream=True, **HOW)
    count = 0
    async for _ in stream:
        count += 1
        if count == 20:
            break
    await stream.aclose()
    await asyncio.sleep(30)  # the connection is closed, the process is not


if scenario == "conversation":
    messages += [{"role": "assistant", "content": told()}, messages[0]]
    print(told())
elif scenario == "tool":
    message = litellm.completion(messages=messages, tools=TOOLS, **HOW).choices[0].message
    (call,) = message.tool_calls
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "4711 fathoms"}]
    print(litellm.completion(messages=messages, tools=TOOLS, **HOW).choices[0].message.content)
elif scenario == "cancel":
    asyncio.run(leave())
else:
    try:
        print(told())
    except Exception as error:  # each provider has its own
        print("lost:", error)
