// The page around the three views: tabs, theme, shortcuts, the key.

import { onKeyWanted } from "./api.js";
import * as chat from "./chat.js";
import * as complete from "./complete.js";
import * as status from "./status.js";

const $ = (id) => document.getElementById(id);
const VIEWS = ["chat", "complete", "server"];
const TYPING = "textarea, input:not([type=checkbox]), select";

const withKeyboard = matchMedia("(pointer: fine)").matches;

let view = "chat";

function open(name, { focus = false } = {}) {
  view = VIEWS.includes(name) ? name : "chat";
  for (const each of VIEWS) {
    const chosen = each === view;
    $(each).hidden = !chosen;
    $(`tab-${each}`).setAttribute("aria-selected", String(chosen));
    $(`tab-${each}`).tabIndex = chosen ? 0 : -1;
  }
  document.title = view === "chat" ? "Sounding" : `Sounding · ${$(`tab-${view}`).textContent}`;
  history.replaceState(null, "", `#${view}`);
  status.look(view === "server");
  if (focus) toText();
}

function toText() {
  if (view === "chat") chat.focus();
  else if (view === "complete") complete.focus();
  else $("main").focus();
}

function startTabs() {
  const tabs = VIEWS.map((name) => $(`tab-${name}`));
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => open(VIEWS[index]));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (index + step + tabs.length) % tabs.length;
      open(VIEWS[next]);
      tabs[next].focus();
    });
  });
}

function startTheme() {
  const kept = localStorage.getItem("sounding-theme");
  if (kept) document.documentElement.dataset.theme = kept;
  $("theme").addEventListener("click", changeTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", status.redraw);
}

function changeTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("sounding-theme", root.dataset.theme);
  status.redraw();
}

function startShortcuts() {
  $("help").addEventListener("click", () => $("shortcuts").showModal());
  addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const typing = event.target.matches(TYPING);
    if (event.altKey && !event.ctrlKey && !event.metaKey) {
      if (["1", "2", "3"].includes(event.key)) open(VIEWS[event.key - 1], { focus: true });
      else if (event.code === "KeyN") {
        open("chat");
        chat.anew();
      } else return;
      event.preventDefault();
    } else if (event.key === "Escape") {
      const busy = view === "chat" ? chat.stop() : view === "complete" && complete.dismiss();
      if (!busy && typing) event.target.blur();
    } else if (!typing && !event.ctrlKey && !event.metaKey) {
      if (event.key === "?") $("shortcuts").showModal();
      else if (event.key === "/") toText();
      else if (event.key === "t") changeTheme();
      else return;
      event.preventDefault();
    }
  });
}

// Show at most one key dialog at a time, for all callers.
let asking = null;

function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    dialog.addEventListener(
      "close",
      () => {
        const key = $("key").value.trim();
        $("key").value = "";
        asking = null;
        resolve(key || null);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

onKeyWanted(askForKey);
startTheme();
startTabs();
startShortcuts();
// A model that only completes code opens the completion view, unless the address names a view.
const named = location.hash.slice(1);
status.onFirstStatus(({ converses }) => {
  $("cannot-converse").hidden = converses !== false;
  if (converses === false && !named && view === "chat") open("complete", { focus: withKeyboard });
});
status.start();
chat.start(status.modelName);
complete.start();
addEventListener("hashchange", () => open(location.hash.slice(1)));
open(named, { focus: withKeyboard });
