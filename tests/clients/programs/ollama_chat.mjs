// `ollama`: a conversation, a tool, an answer left, and one that is lost.
import { Ollama } from "ollama";

const [url, scenario, words] = process.argv.slice(2);
const client = new Ollama({ host: url });
const messages = [{ role: "user", content: words }];
const chat = (more) => client.chat({ model: "nano", messages, think: false, ...more });
const parameters = { type: "object", properties: {} };
const tools = [{ type: "function", function: { name: "sounding_line", parameters } }];

async function told() {
  let text = "";
  for await (const part of await chat({ stream: true })) text += part.message.content;
  return text;
}

if (scenario === "conversation") {
  messages.push({ role: "assistant", content: await told() }, messages[0]);
  console.log(await told());
} else if (scenario === "tool") {
  const { message } = await chat({ tools });
  const { name } = message.tool_calls[0].function;
  messages.push(message, { role: "tool", tool_name: name, content: "4711 fathoms" });
  console.log((await chat({ tools })).message.content);
} else if (scenario === "cancel") {
  const stream = await chat({ stream: true });
  let count = 0;
  try {
    for await (const _ of stream) if (++count === 20) stream.abort();
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
  await new Promise((done) => setTimeout(done, 30000)); // left, while the process goes on
} else {
  try {
    console.log(await told());
  } catch (error) {
    console.log("lost:", error.message);
  }
}
