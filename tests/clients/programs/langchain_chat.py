"""LangChain's `ChatOpenAI`: a conversation, a tool, an answer left, and one that is lost."""

import sys
import time
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

url, scenario, words = sys.argv[1:]
model = ChatOpenAI(model="nano", base_url=f"{url}/v1", api_key="any")
messages: list[Any] = [HumanMessage(words)]


def sounding_line() -> str:
    """Tell the depth."""
    return "4711 fathoms"


def told() -> str:
    return "".join(str(part.content) for part in model.stream(messages))


if scenario == "conversation":
    messages += [model.invoke(messages), messages[0]]
    print(told())
elif scenario == "tool":
    bound = model.bind_tools([tool(sounding_line)])
    asked = bound.invoke(messages)
    (call,) = asked.tool_calls
    messages += [asked, ToolMessage("4711 fathoms", tool_call_id=call["id"])]
    print(bound.invoke(messages).content)
elif scenario == "cancel":
    stream: Any = model.stream(messages)
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
