// Render a model's text as elements: fenced code with a copy button, the rest as text. The text is
// never parsed as HTML.

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`\n]*)$/;
const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([^*\n]+)\*\*/g;

// Show `text` in `element`. Unchanged elements stay, so that a selection survives the next word of
// a stream.
export function show(element, text) {
  const parts = split(text);
  parts.forEach((part, index) => {
    const old = element.children[index];
    if (old && old.source === part.source) return;
    const made = part.code === undefined ? paragraph(part.text) : codeBlock(part);
    made.source = part.source;
    if (old) old.replaceWith(made);
    else element.append(made);
  });
  while (element.children.length > parts.length) element.lastElementChild.remove();
}

export function split(text) {
  const parts = [];
  let lines = [];
  let fence = null;
  const flush = () => {
    const joined = lines.join("\n").replace(/^\n+|\s+$/g, "");
    if (fence) parts.push({ code: lines.join("\n"), language: fence.language, source: `\0${lines.join("\n")}` });
    else if (joined) for (const piece of joined.split(/\n{2,}/)) parts.push({ text: piece, source: piece });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const match = FENCE.exec(line);
    if (match && !fence) {
      flush();
      fence = { mark: match[1], language: match[2].trim() };
    } else if (match && match[1].startsWith(fence.mark) && !match[2].trim()) {
      flush();
      fence = null;
    } else lines.push(line);
  }
  flush();
  return parts;
}

function paragraph(text) {
  const heading = /^(#{1,6}) +(.+)$/.exec(text);
  const element = document.createElement(heading ? "h4" : "p");
  let at = 0;
  const source = heading ? heading[2] : text;
  for (const match of source.matchAll(INLINE)) {
    element.append(source.slice(at, match.index));
    const inner = document.createElement(match[1] ? "code" : "strong");
    inner.textContent = match[1] ? match[2] : match[3];
    element.append(inner);
    at = match.index + match[0].length;
  }
  element.append(source.slice(at));
  return element;
}

function codeBlock({ code, language }) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const name = document.createElement("span");
  name.textContent = language || "text";
  const copy = document.createElement("button");
  copy.type = "button";
  copy.textContent = "Copy";
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  caption.append(name, copy);
  const pre = document.createElement("pre");
  pre.tabIndex = 0;
  const inner = document.createElement("code");
  inner.textContent = code;
  pre.append(inner);
  figure.append(caption, pre);
  return figure;
}
