"""The `ollama` package: a conversation, a tool, an answer left, and one that is lost."""

import sys
import time
from typing import Any

from ollama import Client

url, scenario, words = sys.argv[1:]
client = Client(host=url)
messages: list[Any] = [{"role": "user", "content": words}]


def sounding_line() -> str:
    """Tell the depth."""
    return "4711 fathoms"


def told() -> str:
    return "".join(
        part.message.content or ""
        for part in client.chat("nano", messages, think=False, stream=True)
    )


if scenario == "conversation":
    messages += [{"role": "assistant", "content": told()}, messages[0]]
    print(told())
elif scenario == "tool":
    asked: Any = client.chat("nano", messages, tools=[sounding_line], think=False).message
    (call,) = asked.tool_calls
    messages += [
        asked,
        {"role": "tool", "tool_name": call.function.name, "content": sounding_line()},
    ]
    print(client.chat("nano", messages, tools=[sounding_line], think=False).message.content)
elif scenario == "cancel":
    stream: Any = client.chat("nano", messages, think=False, stream=True)
    for count, _ in enumerate(stream):
        if count == 20:
            break
    stream.close()
    time.sleep(30)  # the connection is closed, the process is not
else:
    try:
        print(told())
    except Exception as error:  # the HTTP library's own
        print("lost:", error)
