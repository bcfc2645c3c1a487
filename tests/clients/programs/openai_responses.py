"""The `openai` package's responses: talk, a tool, an answer left, and one that is lost."""

import sys
import time
from typing import Any

from openai import OpenAI, OpenAIError

url, scenario, words = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key="any")
create: Any = client.responses.create
items: list[Any] = [{"role": "user", "content": words}]
SCHEMA = {"type": "object", "properties": {}}
TOOLS = [{"type": "function", "name": "sounding_line", "parameters": SCHEMA, "strict": False}]

if scenario == "conversation":
    items += [*create(model="nano", input=items).output, items[0]]
    print(create(model="nano", input=items).output_text)
elif scenario == "tool":
    done = create(model="nano", input=items, tools=TOOLS)
    (call,) = [item for item in done.output if item.type == "function_call"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "4711 fathoms"}
    print(create(model="nano", input=[*items, *done.output, result], tools=TOOLS).output_text)
elif scenario == "cancel":
    with create(model="nano", input=items, stream=True) as stream:
        for count, _ in enumerate(stream):
            if count == 20:
                break
    time.sleep(30)  # the connection is closed, the process is not
else:
    try:
        with client.responses.stream(model="nano", input=items) as events:
            print(events.get_final_response().output_text)
    except (OpenAIError, RuntimeError) as error:
        print("lost:", error)
