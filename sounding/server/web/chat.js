// The chat view: sends messages and streams the answer, with its reasoning folded.

import { call, events } from "./api.js";
import { show } from "./text.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
const message = $("message");
const send = $("send");
const hello = $("hello");

let messages = [];
let running = null; // AbortController of the running answer
let modelName = () => "";

export function start(name) {
  modelName = name;
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) stop();
    else ask(message.value.trim());
  });
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!running) ask(message.value.trim());
    }
  });
  message.addEventListener("input", grow);
  $("anew").addEventListener("click", anew);
  $("settings-open").addEventListener("click", () => {
    const shown = !$("settings").toggleAttribute("hidden");
    $("settings-open").setAttribute("aria-expanded", String(shown));
    if (shown) $("system").focus();
  });
}

export function focus() {
  message.focus();
}

// Stop the running answer; returns true if there was one.
export function stop() {
  if (!running) return false;
  running.abort();
  return true;
}

export function anew() {
  stop();
  messages = [];
  log.replaceChildren(hello);
  focus();
}

function grow() {
  const most = innerHeight * 0.4;
  message.style.height = "auto";
  const height = message.scrollHeight + message.offsetHeight - message.clientHeight;
  message.style.height = `${Math.min(height, most)}px`;
  message.style.overflowY = height > most ? "auto" : "hidden";
}

async function ask(text) {
  if (!text) return;
  hello.remove();
  message.value = "";
  grow();
  const own = add("user");
  own.textContent = text;
  const question = { role: "user", content: text };
  messages.push(question);
  const answer = new Answer(add("assistant"));
  begin();
  try {
    const response = await call("/v1/chat/completions", { body: body(), signal: running.signal });
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      answer.take(event);
    }
  } catch (error) {
    if (error.name === "AbortError") answer.stopped = true;
    else answer.fail(error.message);
  }
  end();
  answer.finish();
  if (answer.content || answer.reasoning) messages.push(answer.message());
  else {
    // Without an answer, move the message back to the text field.
    messages = messages.filter((each) => each !== question);
    if (!message.value) message.value = text;
    grow();
  }
}

function body() {
  const think = $("think").value;
  const system = $("system").value.trim();
  const request = {
    model: modelName(),
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
    thinking: { type: think === "off" ? "disabled" : "enabled" },
    temperature: $("temperature").valueAsNumber,
    max_tokens: $("max-tokens").valueAsNumber,
  };
  if (think !== "off") request.reasoning_effort = think;
  // An empty field uses the server's default.
  for (const name of ["temperature", "max_tokens"]) if (Number.isNaN(request[name])) delete request[name];
  return request;
}

function begin() {
  running = new AbortController();
  send.textContent = "Stop";
  send.classList.add("stop");
  log.setAttribute("aria-busy", "true");
}

function end() {
  running = null;
  send.textContent = "Send";
  send.classList.remove("stop");
  log.setAttribute("aria-busy", "false");
}

function add(role) {
  const article = document.createElement("article");
  article.className = role;
  article.setAttribute("aria-label", role === "user" ? "You" : "The model");
  log.append(article);
  log.scrollTop = log.scrollHeight;
  return article;
}

// A running answer. New text is drawn at most once per frame.
class Answer {
  constructor(article) {
    this.article = article;
    this.content = "";
    this.reasoning = "";
    this.usage = null;
    this.reason = null;
    this.stopped = false;
    this.began = performance.now();
    this.first = 0;
    this.thought = 0;
    this.text = document.createElement("div");
    this.text.className = "text waiting";
    article.append(this.text);
  }

  take(event) {
    const choice = event.choices?.[0];
    if (event.usage) this.usage = event.usage;
    if (!choice) return;
    if (choice.finish_reason) this.reason = choice.finish_reason;
    const { content, reasoning_content: reasoning } = choice.delta ?? {};
    if (!content && !reasoning) return;
    this.first ||= performance.now();
    this.reasoning += reasoning ?? "";
    if (content && this.reasoning && !this.thought) this.thought = performance.now() - this.began;
    this.content += content ?? "";
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = null;
    const below = log.scrollHeight - log.scrollTop - log.clientHeight;
    if (this.reasoning) this.drawReasoning();
    show(this.text, this.content);
    this.text.classList.toggle("waiting", !this.content && !this.reasoning);
    if (below < 80) log.scrollTop = log.scrollHeight; // keep the position of users who scrolled up
  }

  drawReasoning() {
    if (!this.details) {
      this.details = document.createElement("details");
      this.summary = document.createElement("summary");
      this.thoughts = document.createElement("p");
      this.details.append(this.summary, this.thoughts);
      this.article.prepend(this.details);
    }
    const seconds = (this.thought / 1000).toFixed(1);
    this.summary.textContent = this.thought ? `Thought for ${seconds} s` : "Thinking …";
    this.thoughts.textContent = this.reasoning;
  }

  fail(reason) {
    const trouble = document.createElement("p");
    trouble.className = "trouble";
    trouble.setAttribute("role", "alert");
    trouble.textContent = reason;
    this.article.append(trouble);
  }

  finish() {
    if (this.frame) cancelAnimationFrame(this.frame);
    if (this.reasoning && !this.thought) this.thought = performance.now() - this.began;
    this.draw();
    this.text.classList.remove("waiting");
    const facts = this.facts();
    if (!facts.length) return;
    const note = document.createElement("p");
    note.className = "facts";
    note.textContent = facts.join(" · ");
    this.article.append(note);
    log.scrollTop = log.scrollHeight;
  }

  facts() {
    const facts = [];
    const { usage } = this;
    if (usage) {
      facts.push(`${usage.completion_tokens.toLocaleString()} tokens`);
      const seconds = (performance.now() - this.first) / 1000;
      if (usage.completion_tokens > 1 && seconds > 0.05) {
        facts.push(`${((usage.completion_tokens - 1) / seconds).toFixed(0)} per second`);
      }
      const hits = usage.prompt_cache_hit_tokens;
      if (hits) facts.push(`${Math.round((100 * hits) / usage.prompt_tokens)} % of the prompt from the cache`);
    }
    if (this.stopped) facts.push("stopped");
    else if (this.reason === "length") facts.push("cut off at the token limit");
    else if (this.reason && !["stop", "tool_calls"].includes(this.reason)) facts.push(this.reason);
    return facts;
  }

  message() {
    const message = { role: "assistant", content: this.content };
    if (this.reasoning) message.reasoning_content = this.reasoning;
    return message;
  }
}
