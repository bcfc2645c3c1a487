// The live server view: polls `/status` once a second while it is shown, and seldom otherwise.

import { call } from "./api.js";
import { HeatMap } from "./heatmap.js";
import { drawLine } from "./line.js";

const $ = (id) => document.getElementById(id);
const OFTEN_MS = 1000;
const SELDOM_MS = 15000; // only for the model's name
const KEPT = 120;

const rates = [];
let heat = null;
let timer = 0;
let polling = null;
let looking = false;
let name = "";

export function modelName() {
  return name;
}

export function start() {
  heat = new HeatMap($("experts"), $("experts-here"), $("experts-text"));
  document.addEventListener("visibilitychange", poll);
  addEventListener("resize", redraw);
  poll();
}

// Set whether the view is shown.
export function look(at) {
  looking = at;
  if (at) redraw();
  poll();
}

export function redraw() {
  if (!looking) return;
  heat.draw();
  drawLine($("rate-line"), rates, KEPT);
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  polling ??= ask().finally(() => (polling = null));
  await polling;
  clearTimeout(timer);
  timer = setTimeout(poll, looking ? OFTEN_MS : SELDOM_MS);
}

let whenKnown = null;

// Register `tell`, which is called with the server's first status.
export function onFirstStatus(tell) {
  whenKnown = tell;
}

async function ask() {
  const trouble = $("trouble");
  try {
    const status = await (await call("/status")).json();
    name = status.model;
    whenKnown?.(status);
    whenKnown = null;
    $("model-name").textContent = status.draining ? `${name}, shutting down` : name;
    $("model").className = status.draining ? "model draining" : "model up";
    trouble.hidden = true;
    tell(status);
  } catch (error) {
    $("model-name").textContent = "no answer";
    $("model").className = "model down";
    trouble.textContent = error.message;
    trouble.hidden = false;
  }
}

function tell(status) {
  const { engine, cache } = status;
  $("running").textContent = engine.running;
  $("waiting").textContent = engine.waiting;
  const rate = status.tokens_per_second;
  $("rate").textContent = rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString();
  rates.push(rate);
  if (rates.length > KEPT) rates.shift();
  share("hits", cache.hit_tokens, cache.prompt_tokens, "prompt tokens");
  share("accepted", engine.accepted_tokens, engine.drafted_tokens, "drafted tokens");
  tellMemory(engine);
  $("uptime").textContent = duration(status.uptime_seconds);
  const trained = status.trained_context_tokens;
  $("uptime-sub").textContent = trained
    ? `trained on up to ${trained.toLocaleString()} tokens, accepts ${status.context_tokens.toLocaleString()}`
    : `context of ${status.context_tokens.toLocaleString()} tokens`;
  heat.set(engine.expert_load);
  tellSessions(status.sessions);
  redraw();
}

// Memory of running sequences and cached prefixes together.
function tellMemory(engine) {
  const used = engine.state_bytes + (engine.prefix_bytes ?? 0);
  const limit = engine.state_limit_bytes + (engine.prefix_limit_bytes ?? 0);
  $("memory").textContent = bytes(used);
  $("memory-bar").value = limit ? used / limit : 0;
  const stored = engine.stored_prefixes ? `, ${bytes(engine.stored_bytes)} on disk` : "";
  $("memory-sub").textContent =
    `of ${bytes(limit)}, ${engine.cached_prefixes} prefixes${stored}${expertReads(engine.experts)}`;
}

// What experts on disk have cost so far; nothing if all are in memory.
function expertReads(experts) {
  if (!experts) return "";
  const needed = experts.hits + experts.ahead + experts.misses;
  const rate = needed ? Math.round((100 * experts.hits) / needed) : 0;
  return `; experts: ${rate} % hits, ${bytes(experts.bytes_read)} read, waited ${duration(experts.waited_seconds)}`;
}

function share(id, part, whole, what) {
  $(id).textContent = whole ? `${Math.round((100 * part) / whole)} %` : "–";
  $(`${id}-bar`).value = whole ? part / whole : 0;
  $(`${id}-sub`).textContent = whole ? `of ${whole.toLocaleString()} ${what}` : "nothing yet";
}

function tellSessions(sessions) {
  $("sessions-none").hidden = sessions.length > 0;
  const rows = sessions.slice(0, 30).map((session) => {
    const row = document.createElement("tr");
    const cells = [
      session.state,
      session.route,
      session.prompt_tokens.toLocaleString(),
      session.hit_tokens.toLocaleString(),
      session.completion_tokens.toLocaleString(),
      session.first_token_seconds == null ? "–" : `${Math.round(session.first_token_seconds * 1000)} ms`,
      session.seconds.toFixed(1),
    ];
    for (const text of cells) row.insertCell().textContent = text;
    row.cells[0].className = "state";
    row.cells[0].dataset.state = session.state;
    if (session.miss_reason) row.cells[3].title = session.miss_reason;
    return row;
  });
  $("sessions").replaceChildren(...rows);
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.floor(seconds)} s`;
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}
