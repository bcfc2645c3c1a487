// A heat map of expert use: one row per layer, one column per expert.
//
// The color shows a count relative to its layer's mean, from unused to twice the mean or more. The
// pointer or the arrow keys show the numbers of one expert.

const LABEL = 34; // pixels left of the rows
const GAP = 1;

export class HeatMap {
  constructor(canvas, here, text) {
    this.canvas = canvas;
    this.here = here;
    this.text = text;
    this.load = [];
    this.at = null;
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.choose(null));
    canvas.addEventListener("keydown", (event) => this.move(event));
    canvas.addEventListener("blur", () => this.choose(null));
  }

  set(load) {
    this.load = load;
    this.text.textContent = summary(load);
    this.canvas.hidden = !load.length;
    this.tellHere();
  }

  draw() {
    const { canvas, load } = this;
    if (!load.length) return;
    const experts = Math.max(...load.map((row) => row.length));
    const width = canvas.parentElement.clientWidth - padding(canvas.parentElement);
    this.cellWidth = (width - LABEL) / experts;
    this.cellHeight = Math.max(6, Math.min(26, 360 / load.length, Math.max(10, this.cellWidth)));
    const height = this.cellHeight * load.length;
    const scale = devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    this.drawCells(pen);
    this.drawLabels(pen);
    this.drawChosen(pen);
  }

  drawCells(pen) {
    const ramp = colors(this.canvas);
    const gap = this.cellWidth > 4 ? GAP : 0;
    this.load.forEach((row, layer) => {
      const mean = average(row);
      row.forEach((count, expert) => {
        pen.fillStyle = ramp(mean ? count / mean : 0);
        const x = LABEL + expert * this.cellWidth;
        pen.fillRect(x, layer * this.cellHeight, this.cellWidth - gap, this.cellHeight - GAP);
      });
    });
  }

  drawLabels(pen) {
    const style = getComputedStyle(this.canvas);
    pen.fillStyle = style.color;
    pen.font = `11px ${style.fontFamily}`;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const every = Math.ceil(14 / this.cellHeight);
    this.load.forEach((_, layer) => {
      if (layer % every) return;
      pen.fillText(String(layer), LABEL - 8, (layer + 0.5) * this.cellHeight);
    });
  }

  drawChosen(pen) {
    if (!this.at) return;
    const [layer, expert] = this.at;
    pen.strokeStyle = getComputedStyle(this.canvas).getPropertyValue("--ink");
    pen.lineWidth = 2;
    const width = Math.max(4, this.cellWidth - GAP);
    pen.strokeRect(LABEL + expert * this.cellWidth, layer * this.cellHeight, width, this.cellHeight - GAP);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const expert = Math.floor((event.clientX - box.left - LABEL) / this.cellWidth);
    const layer = Math.floor((event.clientY - box.top) / this.cellHeight);
    this.choose(this.load[layer]?.[expert] === undefined ? null : [layer, expert]);
  }

  move(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const step = steps[event.key];
    if (!step || !this.load.length) return;
    event.preventDefault();
    const [layer, expert] = this.at ? [this.at[0] + step[0], this.at[1] + step[1]] : [0, 0];
    if (this.load[layer]?.[expert] !== undefined) this.choose([layer, expert]);
  }

  choose(at) {
    this.at = at;
    this.tellHere();
    this.draw();
  }

  tellHere() {
    if (!this.at || !this.load[this.at[0]]) {
      this.here.textContent = "";
      return;
    }
    const [layer, expert] = this.at;
    const row = this.load[layer];
    const mean = average(row);
    const times = mean ? `, ${(row[expert] / mean).toFixed(2)}× the mean` : "";
    this.here.textContent = `Layer ${layer}, expert ${expert}: ${row[expert].toLocaleString()} times${times}`;
  }
}

export function summary(load) {
  const most = { times: 0 };
  let unused = 0;
  let total = 0;
  load.forEach((row, layer) => {
    const mean = average(row);
    row.forEach((count, expert) => {
      total += 1;
      if (!count) unused += 1;
      if (mean && count / mean > most.times) Object.assign(most, { times: count / mean, layer, expert });
    });
  });
  if (!most.times) return "No experts used yet.";
  const busiest = `${load.length} layers. Busiest: expert ${most.expert} in layer ${most.layer}, ${most.times.toFixed(1)}× its layer's mean.`;
  return `${busiest} ${unused ? `${unused} of ${total} experts were never used.` : "Every expert was used."}`;
}

function average(row) {
  return row.reduce((sum, count) => sum + count, 0) / row.length;
}

function padding(element) {
  const style = getComputedStyle(element);
  return parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
}

// Map a count relative to the mean, 0 to 2, to a color between the four in the style sheet.
function colors(element) {
  const style = getComputedStyle(element);
  const stops = [0, 1, 2, 3].map((number) => {
    const hex = style.getPropertyValue(`--heat-${number}`).trim();
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  });
  return (share) => {
    const at = Math.min(share * 1.5, 2.999);
    const [from, to] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]];
    const mixed = from.map((value, index) => Math.round(value + (to[index] - value) * (at % 1)));
    return `rgb(${mixed.join(" ")})`;
  };
}
