"""Pydantic AI: a conversation, a tool, an answer left, and one that is lost."""

import asyncio
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url, scenario, words = sys.argv[1:]
provider = OpenAIProvider(base_url=f"{url}/v1", api_key="any")
agent = Agent(OpenAIChatModel("nano", provider=provider))


def sounding_line() -> str:
    """Tell the depth."""
    return "4711 fathoms"


async def leave() -> None:
    async with agent.run_stream(words) as run:
        count = 0
        async for _ in run.stream_text(delta=True, debounce_by=None):
            count += 1
            if count == 20:
                break
    await asyncio.sleep(30)  # the connection is closed, the process is not


async def told() -> str:
    async with agent.run_stream(words) as run:
        return await run.get_output()


if scenario == "conversation":
    first = agent.run_sync(words)
    print(agent.run_sync(words, message_history=first.all_messages()).output)
elif scenario == "tool":
    agent.tool_plain(sounding_line)
    print(agent.run_sync(words).output)
elif scenario == "cancel":
    asyncio.run(leave())
else:
    try:
        print(asyncio.run(told()))
    except Exception as error:  # the HTTP library's own
        print("lost:", error)
