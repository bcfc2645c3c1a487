// The AI SDK: a conversation, a tool, an answer left, and one that is lost.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const [url, scenario, words] = process.argv.slice(2);
const model = createOpenAICompatible({ name: "sounding", baseURL: `${url}/v1`, apiKey: "any" })("nano");
const messages = [{ role: "user", content: words }];

async function told(more = {}) {
  let text = "";
  let failed;
  const onError = ({ error }) => (failed = error);
  for await (const piece of streamText({ model, messages, onError, ...more }).textStream) text += piece;
  if (failed) throw failed;
  return text;
}

if (scenario === "conversation") {
  messages.push({ role: "assistant", content: await told() }, messages[0]);
  console.log(await told());
} else if (scenario === "tool") {
  const inputSchema = jsonSchema({ type: "object", properties: {} });
  const sounding_line = tool({ inputSchema, execute: async () => "4711 fathoms" });
  const done = await generateText({ model, messages, tools: { sounding_line }, stopWhen: stepCountIs(3) });
  console.log(done.text);
} else if (scenario === "cancel") {
  const left = new AbortController();
  let count = 0;
  const { textStream } = streamText({ model, messages, abortSignal: left.signal });
  for await (const _ of textStream) if (++count === 20) left.abort();
  await new Promise((done) => setTimeout(done, 30000)); // left, while the process goes on
} else {
  try {
    console.log(await told());
  } catch (error) {
    console.log("lost:", error.message);
  }
}
