// The `openai` package: a conversation, a tool, an answer left, and one that is lost.
import OpenAI from "openai";

const [url, scenario, words] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any" });
const messages = [{ role: "user", content: words }];
const tools = [
  { type: "function", function: { name: "sounding_line", parameters: { type: "object", properties: {} } } },
];
const chat = (more) => client.chat.completions.create({ model: "nano", messages, ...more });

async function told() {
  let text = "";
  for await (const chunk of await chat({ stream: true })) text += chunk.choices[0]?.delta.content ?? "";
  return text;
}

if (scenario === "conversation") {
  messages.push({ role: "assistant", content: await told() }, messages[0]);
  console.log(await told());
} else if (scenario === "tool") {
  const { message } = (await chat({ tools })).choices[0];
  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "4711 fathoms" };
  messages.push(message, result);
  console.log((await chat({ tools })).choices[0].message.content);
} else if (scenario === "cancel") {
  const stream = await chat({ stream: true });
  let count = 0;
  for await (const _ of stream) if (++count === 20) break;
  await new Promise((done) => setTimeout(done, 30000)); // left, while the process goes on
} else {
  try {
    console.log(await told());
  } catch (error) {
    console.log("lost:", error.message);
  }
}
