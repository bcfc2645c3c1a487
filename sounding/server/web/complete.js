// Completion at the cursor: the suggestion is shown as ghost text until it is accepted.

import { call } from "./api.js";

const $ = (id) => document.getElementById(id);
const code = $("code");
const ghost = $("ghost");
const note = $("complete-note");

const PAUSE_MS = 250;
const EXAMPLE = ["def mean(numbers):\n    total = ", "\n    return total / len(numbers)\n\n\nprint(mean([1, 2, 3]))\n"];

let suggestion = "";
let running = null;
let pause = 0;

export function start() {
  code.value = EXAMPLE.join("");
  code.setSelectionRange(EXAMPLE[0].length, EXAMPLE[0].length);
  code.addEventListener("keydown", key);
  code.addEventListener("beforeinput", typeAlong);
  code.addEventListener("input", () => {
    if (suggestion) return draw(); // the typed text matches the suggestion
    cancel();
    if ($("while-typing").checked) pause = setTimeout(suggest, PAUSE_MS);
  });
  code.addEventListener("scroll", follow);
  document.addEventListener("selectionchange", () => {
    if (suggestion && document.activeElement === code && !atCursor()) dismiss();
  });
  $("suggest").addEventListener("click", () => {
    code.focus();
    suggest();
  });
  $("accept").addEventListener("click", accept);
  $("dismiss").addEventListener("click", () => {
    dismiss();
    code.focus();
  });
}

export function focus() {
  code.focus();
}

export async function suggest() {
  dismiss();
  const { selectionStart: at, selectionEnd: end, value } = code;
  if (at !== end) return;
  running = new AbortController();
  const { signal } = running;
  note.textContent = "…";
  const began = performance.now();
  try {
    const asked = { input_prefix: value.slice(0, at), input_suffix: value.slice(at), stream: false };
    const response = await call("/infill", { body: asked, signal });
    const { content, tokens_predicted: tokens } = await response.json();
    if (signal.aborted) return;
    note.textContent = content.trim()
      ? `${tokens ?? "?"} tokens in ${Math.round(performance.now() - began)} ms`
      : "no suggestion here";
    if (content.trim()) offer(content, at);
  } catch (error) {
    if (error.name !== "AbortError") note.textContent = error.message;
  } finally {
    if (running?.signal === signal) running = null;
  }
}

// Dismiss the suggestion or the request for one; returns true if there was one.
export function dismiss() {
  const busy = cancel() || suggestion !== "";
  suggestion = "";
  draw();
  return busy;
}

function cancel() {
  clearTimeout(pause);
  if (!running) return false;
  running.abort();
  running = null;
  note.textContent = "";
  return true;
}

let place = 0;

function offer(text, at) {
  suggestion = text;
  place = at;
  draw();
}

function atCursor() {
  return code.selectionStart === place && code.selectionEnd === place;
}

function accept() {
  const text = suggestion;
  dismiss();
  note.textContent = "";
  insert(text);
}

function insert(text) {
  code.focus();
  // Deprecated, but the only way to insert text that Ctrl+Z can undo.
  if (!document.execCommand("insertText", false, text)) {
    code.setRangeText(text, code.selectionStart, code.selectionEnd, "end");
  }
  clearTimeout(pause);
}

function key(event) {
  if (event.key === "Tab" && !event.shiftKey && suggestion) {
    event.preventDefault();
    accept();
  } else if (event.key === " " && event.ctrlKey) {
    event.preventDefault();
    suggest();
  }
}

// If the user types the suggested text, keep the rest of the suggestion.
function typeAlong(event) {
  if (!suggestion) return;
  const typed = event.inputType === "insertLineBreak" ? "\n" : event.data;
  if (event.inputType.startsWith("insert") && typed && suggestion.startsWith(typed) && atCursor()) {
    suggestion = suggestion.slice(typed.length);
    place += typed.length;
    if (!suggestion) setTimeout(draw);
  } else {
    dismiss();
  }
}

// With a suggestion, the layer below draws the text and leaves room for it; the field itself is
// then transparent except for the caret.
function draw() {
  code.classList.toggle("see-through", suggestion !== "");
  $("touch").hidden = suggestion === "";
  $("spoken").textContent = suggestion && `Suggestion: ${suggestion}`;
  ghost.replaceChildren();
  if (!suggestion) return;
  const inner = document.createElement("span");
  inner.className = "suggestion";
  inner.textContent = suggestion;
  const rest = code.value.slice(place);
  ghost.append(code.value.slice(0, place), inner, rest, "\n");
  follow();
}

function follow() {
  ghost.scrollTop = code.scrollTop;
  ghost.scrollLeft = code.scrollLeft;
}
