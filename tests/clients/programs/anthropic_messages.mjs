// `@anthropic-ai/sdk`: a conversation, a tool, an answer left, and one that is lost.
import Anthropic from "@anthropic-ai/sdk";

const [url, scenario, words] = process.argv.slice(2);
const client = new Anthropic({ baseURL: url, apiKey: "any" });
const messages = [{ role: "user", content: words }];
const tools = [{ name: "sounding_line", input_schema: { type: "object", properties: {} } }];
const how = { model: "nano", max_tokens: 4096, messages };
const text = (message) => message.content.map((block) => block.text ?? "").join("");

if (scenario === "conversation") {
  const first = await client.messages.stream(how).finalMessage();
  messages.push({ role: "assistant", content: first.content }, messages[0]);
  console.log(text(await client.messages.stream(how).finalMessage()));
} else if (scenario === "tool") {
  const done = await client.messages.create({ ...how, tools });
  const call = done.content.find((block) => block.type === "tool_use");
  const result = { type: "tool_result", tool_use_id: call.id, content: "4711 fathoms" };
  messages.push({ role: "assistant", content: done.content }, { role: "user", content: [result] });
  console.log(text(await client.messages.create({ ...how, tools })));
} else if (scenario === "cancel") {
  const stream = await client.messages.create({ ...how, stream: true });
  let count = 0;
  for await (const _ of stream) if (++count === 20) break;
  await new Promise((done) => setTimeout(done, 30000)); // left, while the process goes on
} else {
  try {
    console.log(text(await client.messages.stream(how).finalMessage()));
  } catch (error) {
    console.log("lost:", error.message);
  }
}
