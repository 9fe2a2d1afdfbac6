"use strict";
// Drawing: SVG elements, scales, axes, marks, and the tooltip. charts.js holds the charts.

const FONT_PX = 12;
const PRINT_WIDTH_PX = 660;
const PRINT_HEIGHT_PX = 300;

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const points = (fraction) => (fraction == null ? "-" : (100 * fraction).toFixed(1));
const cost = (value) => (value == null ? "-" : value.toFixed(value < 1 ? 3 : value < 100 ? 2 : 1));
/** A dotted name that may break after its dots. */
const breakable = (name) => name.match(/[^._]*[._]?/g).flatMap((part) => [part, document.createElement("wbr")]);
const percent = (fraction) => `${Math.round(100 * fraction)}%`;

/** About `count` round numbers from low to high; only integers if `whole`. */
function ticks(low, high, count, whole = false) {
  const rough = Math.max((high - low) / Math.max(count, 1), whole ? 1 : 0);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const values = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) values.push(k * step);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return values.map((value) => ({ value, text: value.toFixed(Math.min(decimals, 6)) }));
}

/** The range of values with a margin around it, also around a single value. */
function range(values, margin = 0.08) {
  const low = Math.min(...values), high = Math.max(...values);
  const extra = (high - low || Math.abs(high) * 0.2 || 1) * margin;
  return [low - extra, high + extra];
}

// Kinds differ by shape first and by color second; the same shapes as in the PNG.
const KINDS = {
  dense: "dense detector",
  uniform: "uniform pruning (warm start)",
  "one-shot": "one-shot by importance (warm start)",
  searched: "searched",
  recovered: "after recovery",
};

function mark(kind, x, y, { filled = true, size = 6, selected = false } = {}) {
  const at = (pairs) => "M" + pairs.map(([dx, dy]) => `${x + dx * size},${y + dy * size}`).join("L") + "Z";
  const shapes = {
    dense: () => at(Array.from({ length: 10 }, (_, k) => {
      const angle = (k * Math.PI) / 5, radius = k % 2 ? 0.75 : 1.7;
      return [radius * Math.sin(angle), -radius * Math.cos(angle)];
    })),
    uniform: () => at([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]]),
    "one-shot": () => at([[0, -1.15], [1.1, 0.85], [-1.1, 0.85]]),
    recovered: () => at([[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]]),
    stopped: () => `M${x - size * 0.7},${y - size * 0.7}L${x + size * 0.7},${y + size * 0.7}` +
      `M${x + size * 0.7},${y - size * 0.7}L${x - size * 0.7},${y + size * 0.7}`,
    searched: () => `M${x - size},${y}a${size},${size} 0 1 0 ${2 * size},0a${size},${size} 0 1 0 ${-2 * size},0Z`,
  };
  const style = kind === "stopped" ? "cross" : filled ? "filled" : "";
  return svg("path", { d: shapes[kind](), class: `mark ${kind} ${style} ${selected ? "selected" : ""}` });
}

/** One chart: axes and a clipped area in the width of its host. `x` and `y` are {range, label, ticks?, whole?}. */
class Plot {
  constructor(host, { x, y, height, label, small = false }) {
    this.width = printing ? Math.min(PRINT_WIDTH_PX, host.dataset.print || PRINT_WIDTH_PX) : host.clientWidth || 320;
    this.height = height = printing ? Math.min(height, PRINT_HEIGHT_PX) : height;
    this.margin = small ? { top: 6, right: 20, bottom: 20, left: 38 } : { top: 22, right: 14, bottom: 44, left: 46 };
    this.labels = [];
    this.xRange = x.range;
    this.yRange = y.range;
    const { left, right, top, bottom } = this.margin;
    this.inner = { width: this.width - left - right, height: height - top - bottom };
    this.root = svg("svg", { viewBox: `0 0 ${this.width} ${height}`, role: "img", "aria-label": label });
    const clip = `clip-${Plot.count = (Plot.count || 0) + 1}`;
    const visible = { x: left - 9, y: top - 12, width: this.inner.width + right + 9, height: this.inner.height + 24 };
    this.root.append(svg("clipPath", { id: clip }, svg("rect", visible)));
    this._axes(x, y, small);
    this.area = svg("g", { "clip-path": `url(#${clip})` });
    this.root.append(this.area);
    host.replaceChildren(this.root);
  }

  x(value) {
    return this.margin.left + ((value - this.xRange[0]) / (this.xRange[1] - this.xRange[0])) * this.inner.width;
  }

  y(value) {
    return this.margin.top + (1 - (value - this.yRange[0]) / (this.yRange[1] - this.yRange[0])) * this.inner.height;
  }

  /** The values at a pixel of the SVG. */
  at(px, py) {
    const across = (px - this.margin.left) / this.inner.width, down = (py - this.margin.top) / this.inner.height;
    return [
      this.xRange[0] + across * (this.xRange[1] - this.xRange[0]),
      this.yRange[1] - down * (this.yRange[1] - this.yRange[0]),
    ];
  }

  line(pairs, className, target = this.area) {
    const path = pairs.map(([x, y], index) => `${index ? "L" : "M"}${this.x(x).toFixed(1)},${this.y(y).toFixed(1)}`);
    const element = svg("path", { d: path.join("") || "M0,0", class: className });
    target.append(element);
    return element;
  }

  text(x, y, content, attributes = {}, target = this.root) {
    const element = svg("text", { x, y, ...attributes }, content);
    target.append(element);
    return element;
  }

  _axes(x, y, small) {
    const { left, top } = this.margin, { width, height } = this.inner;
    for (const { value, text } of y.ticks || ticks(...this.yRange, height / (small ? 40 : 45))) {
      const y1 = this.y(value);
      this.root.append(svg("line", { class: "grid", x1: left, x2: left + width, y1, y2: y1 }));
      this.text(left - 6, y1 + 4, text, { "text-anchor": "end" });
    }
    for (const { value, text } of x.ticks || ticks(...this.xRange, width / 70, x.whole)) {
      this.text(this.x(value), top + height + FONT_PX + 5, text, { "text-anchor": "middle" });
      this.root.append(svg("line", { class: "axis", x1: this.x(value), x2: this.x(value), y1: top + height, y2: top + height + 4 }));
    }
    this.root.append(svg("line", { class: "axis", x1: left, x2: left + width, y1: top + height, y2: top + height }));
    if (!small) {
      this.text(left, 12, y.label, {});
      this.text(left + width, top + height + 2 * FONT_PX + 12, x.label, { "text-anchor": "end" });
    }
  }
}

let printing = false;

// The tooltip: a heading and "name value" lines, beside the mark pointed at.
const tooltip = {
  show(x, y, heading, lines) {
    const box = document.getElementById("tooltip");
    box.replaceChildren(html("b", {}, heading), ...lines.map(([name, value]) => html("div", {}, html("span", {}, name), html("span", {}, value))));
    box.hidden = false;
    const left = Math.max(8, Math.min(x + 14, document.documentElement.clientWidth - box.offsetWidth - 8));
    box.style.left = `${left + window.scrollX}px`;
    box.style.top = `${Math.max(y - box.offsetHeight - 12, 4) + window.scrollY}px`;
  },
  hide() {
    document.getElementById("tooltip").hidden = true;
  },
};

/**
 * Shows the tooltips of a plot's marks to the pointer and the arrow keys.
 * `marks` are {x, y, heading, lines, trial?}, in pixels of the plot; `select` is called with a trial's number.
 */
function explore(plot, marks, select) {
  const ring = svg("circle", { class: "ring", r: 11, visibility: "hidden" });
  plot.area.append(ring);
  let current = -1;
  const shown = marks.filter((m) => m.x >= plot.margin.left - 1 && m.x <= plot.width && m.y >= 0 && m.y <= plot.height - plot.margin.bottom + 12);
  shown.sort((a, b) => a.x - b.x || a.y - b.y);
  const scale = () => plot.root.getBoundingClientRect().width / plot.width;
  const show = (index) => {
    current = index;
    ring.setAttribute("visibility", index < 0 ? "hidden" : "visible");
    if (index < 0) return tooltip.hide();
    const target = shown[index], box = plot.root.getBoundingClientRect();
    ring.setAttribute("cx", target.x);
    ring.setAttribute("cy", target.y);
    tooltip.show(box.left + target.x * scale(), box.top + target.y * scale(), target.heading, target.lines);
  };
  const nearest = (event) => {
    const box = plot.root.getBoundingClientRect();
    const x = (event.clientX - box.left) / scale(), y = (event.clientY - box.top) / scale();
    const distances = shown.map((m) => Math.hypot(m.x - x, m.y - y));
    const index = distances.indexOf(Math.min(...distances));
    return distances[index] <= 22 ? index : -1;
  };
  plot.root.setAttribute("tabindex", "0");
  plot.root.addEventListener("pointermove", (event) => show(nearest(event)));
  plot.root.addEventListener("pointerleave", () => show(-1));
  plot.root.addEventListener("blur", () => show(-1));
  plot.root.addEventListener("click", (event) => {
    const index = nearest(event);
    show(index);
    if (index >= 0 && shown[index].trial != null) select(shown[index].trial);
  });
  plot.root.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && shown.length) {
      event.preventDefault();
      show((current + step + shown.length) % shown.length);
    } else if (event.key === "Enter" && current >= 0 && shown[current].trial != null) {
      select(shown[current].trial);
    } else if (event.key === "Escape") {
      show(-1);
    }
  });
}
