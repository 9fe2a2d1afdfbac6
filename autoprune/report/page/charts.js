"use strict";
// The charts of a run, each drawn into its host element from DATA; a host that is not on the page is skipped.

const DATA = JSON.parse(document.getElementById("data").textContent);
const BY_NUMBER = new Map(DATA.trials.map((trial) => [trial.number, trial]));
const COMPLETE = DATA.trials.filter((trial) => trial.state === "complete");
const AXES = {
  gflops: { label: "GFLOPs (multiply-adds) of one image", short: "GFLOPs" },
  mparams: { label: "parameters, millions", short: "M params" },
  latency_ms: { label: "latency of one image, ms", short: "ms" },
};
const LETTER_PX = 7; // average width of a letter in a label
const state = { axis: DATA.axis, view: null, trial: DATA.best };

const host = (id) => document.getElementById(id);
const trialName = (trial) => `trial ${trial.number} (${trial.origin})`;

/** The lines of a trial's tooltip. */
function tooltipLines(trial) {
  const dense = DATA.dense;
  const lines = [["proxy mAP", points(trial.map)]];
  if (trial.recovered) lines.push(["recovered mAP", points(trial.recovered.map)]);
  for (const [name, axis] of Object.entries(AXES)) {
    if (trial[name] == null) continue;
    lines.push([axis.short, cost(trial[name]) + (dense && dense[name] ? ` (${percent(trial[name] / dense[name])})` : "")]);
  }
  if (trial.front) lines.push(["on the front", "yes"]);
  if (trial.state === "stopped") lines.push(["stopped at rung", String(trial.rungs.length - 1)]);
  return lines;
}

// the front

function frontMarks() {
  const marks = COMPLETE.filter((trial) => trial[state.axis] != null).map((trial) => (
    { trial, kind: trial.kind, x: trial[state.axis], y: 100 * trial.map, filled: trial.front }
  ));
  for (const trial of DATA.trials) {
    if (trial.recovered) marks.push({ trial, kind: "recovered", x: trial.recovered[state.axis] ?? trial[state.axis], y: 100 * trial.recovered.map, filled: true });
  }
  return marks.filter((m) => m.x != null);
}

/** The marks that none beats in these two axes; a front of three objectives also has others. */
function frontLine(marks) {
  const line = [];
  for (const m of [...marks].sort((a, b) => a.x - b.x || b.y - a.y)) {
    if (!line.length || m.y > line[line.length - 1][1]) line.push([m.x, m.y]);
  }
  return line;
}

/** The dense detector: on the images of the recoveries (filled), and on those of the proxies if they differ. */
function denseStars() {
  const x = DATA.dense && DATA.dense[state.axis], all = DATA.dense_map_on_all;
  if (x == null) return [];
  if (all == null || all === DATA.dense.map) return [{ x, map: DATA.dense.map, filled: true, images: "the same images" }];
  return [
    { x, map: DATA.dense.map, filled: false, images: "the proxies' images" },
    { x, map: all, filled: true, images: "all validation images" },
  ];
}

/** Axis ranges that show everything, or only the trials. */
function frontView(all) {
  const marks = frontMarks(), stars = denseStars();
  const xs = marks.map((m) => m.x), ys = marks.map((m) => m.y);
  const bounds = DATA.budgets[state.axis];
  if (all || !marks.length) {
    xs.push(...stars.map((star) => star.x), ...bounds);
    ys.push(...stars.map((star) => 100 * star.map));
  }
  if (!ys.length) return { x: [0, 1], y: [0, 100] };
  const x = range(xs, 0.08);
  return { x: all ? [0, Math.max(...xs) * 1.06] : x, y: range(ys) };
}

function drawFront() {
  const chart = host("front-chart");
  if (!chart) return;
  const view = state.view || frontView(true), axis = AXES[state.axis];
  const plot = new Plot(chart, {
    x: { range: view.x, label: axis.label },
    y: { range: view.y, label: "mAP at IoU 0.50:0.95, points" },
    height: Math.max(300, Math.min(440, chart.clientWidth * 0.6)),
    label: `mAP over ${axis.label} of ${COMPLETE.length} complete trials; the table of all trials has the figures`,
  });
  const targets = [];
  DATA.budgets[state.axis].forEach((bound, row) => {
    plot.line([[bound, view.y[0]], [bound, view.y[1]]], "budget");
    const text = `budget ${cost(bound)}`, x = plot.x(bound) + 6, y = plot.margin.top + 2 + 15 * row;
    plot.text(x, y, text, { class: "strong label" }, plot.area);
    plot.labels.push({ from: x, to: x + LETTER_PX * text.length, y });
  });
  const marks = frontMarks();
  plot.line(frontLine(marks.filter((m) => m.kind !== "recovered" && m.filled)), "front-line");
  for (const m of marks.filter((m) => m.kind === "recovered" && m.trial.map != null)) {
    plot.line([[m.trial[state.axis], 100 * m.trial.map], [m.x, m.y]], "recovery-line");
  }
  const order = (m) => (m.kind === "recovered" ? 3 : m.filled ? 2 : m.kind === "searched" ? 0 : 1);
  for (const m of marks.sort((a, b) => order(a) - order(b))) {
    const x = plot.x(m.x), y = plot.y(m.y);
    const element = mark(m.kind, x, y, { filled: m.filled, selected: m.trial.number === state.trial });
    element.dataset.trial = m.trial.number;
    plot.area.append(element);
    if (m.trial.number === state.trial && (m.kind === "recovered" || !m.trial.recovered)) {
      placeLabel(plot, x, y, `trial ${m.trial.number}: ${m.y.toFixed(1)}`);
    }
    const heading = trialName(m.trial) + (m.kind === "recovered" ? ", recovered" : "");
    targets.push({ x, y, heading, lines: tooltipLines(m.trial), trial: m.trial.number });
  }
  for (const star of denseStars()) {
    const x = plot.x(star.x), y = plot.y(100 * star.map);
    const element = mark("dense", x, y, { filled: star.filled });
    element.dataset.dense = star.images;
    plot.area.append(element);
    if (star.filled) placeLabel(plot, x, y, `dense: ${points(star.map)}`);
    const costs = Object.entries(AXES).filter(([name]) => DATA.dense[name] != null).map(([name, one]) => [one.short, cost(DATA.dense[name])]);
    targets.push({ x, y, heading: "dense detector", lines: [["mAP", points(star.map)], ["measured on", star.images], ...costs] });
  }
  explore(plot, targets, selectTrial);
  zoomable(plot);
}

/** A label beside a mark, on the side with enough space; moved up or down if it would overlap another. */
function placeLabel(plot, x, y, text) {
  const width = LETTER_PX * text.length, right = x + 12 + width < plot.width, from = right ? x + 13 : x - 13 - width;
  const isFree = (at) => plot.labels.every((other) => Math.abs(other.y - at) >= 15 || other.to < from || other.from > from + width);
  const at = [4, 20, -12, 36].map((offset) => y + offset).find(isFree) ?? y + 4;
  plot.labels.push({ from, to: from + width, y: at });
  const attributes = { "text-anchor": right ? "start" : "end", class: "strong label" };
  plot.text(right ? from : from + width, at, text, attributes, plot.area);
}

/** Dragging selects a window; Ctrl and the wheel zoom (the wheel alone scrolls the page); a double click resets. */
function zoomable(plot) {
  const band = svg("rect", { class: "band", visibility: "hidden" });
  plot.area.append(band);
  let from = null;
  const at = (event) => {
    const box = plot.root.getBoundingClientRect(), scale = box.width / plot.width;
    return [(event.clientX - box.left) / scale, (event.clientY - box.top) / scale];
  };
  plot.root.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button === 0) from = at(event);
  });
  plot.root.addEventListener("pointermove", (event) => {
    if (!from) return;
    const to = at(event), [x, y] = [0, 1].map((k) => Math.min(from[k], to[k]));
    const size = { x, y, width: Math.abs(to[0] - from[0]), height: Math.abs(to[1] - from[1]), visibility: "visible" };
    for (const [name, value] of Object.entries(size)) band.setAttribute(name, value);
  });
  plot.root.addEventListener("pointerleave", () => { from = null; band.setAttribute("visibility", "hidden"); });
  plot.root.addEventListener("pointerup", (event) => {
    const start = from, to = at(event);
    from = null;
    band.setAttribute("visibility", "hidden");
    if (!start || Math.abs(to[0] - start[0]) < 12 || Math.abs(to[1] - start[1]) < 12) return;
    const [x0, y0] = plot.at(...start), [x1, y1] = plot.at(...to);
    setView({ x: [Math.min(x0, x1), Math.max(x0, x1)], y: [Math.min(y0, y1), Math.max(y0, y1)] });
  });
  plot.root.addEventListener("dblclick", () => setView(null));
  plot.root.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 0.8 : 1.25, plot.at(...at(event)));
  }, { passive: false });
}

function setView(view) {
  state.view = view;
  tooltip.hide();
  drawFront();
}

function zoom(factor, center) {
  const view = state.view || frontView(true);
  const [cx, cy] = center || [(view.x[0] + view.x[1]) / 2, (view.y[0] + view.y[1]) / 2];
  const scaled = (ends, c) => ends.map((end) => c + (end - c) * factor);
  setView({ x: scaled(view.x, cx), y: scaled(view.y, cy) });
}

// rungs and history

function drawRungs() {
  const chart = host("rungs-chart");
  if (!chart) return;
  const started = DATA.trials.filter((trial) => trial.rungs.length), last = DATA.rungs.length - 1;
  if (!started.length) return chart.replaceChildren("No trial has reached a rung yet.");
  const plot = new Plot(chart, {
    x: {
      range: [-0.25, Math.max(last, 0.5) + 0.25],
      label: "steps of training",
      ticks: DATA.rungs.map((steps, value) => ({ value, text: String(steps) })),
    },
    y: { range: range(started.flatMap((trial) => trial.rungs.map((map) => 100 * map))), label: "mAP, points" },
    height: 280,
    label: `mAP of ${started.length} trials at each rung`,
  });
  const targets = [];
  for (const trial of started) {
    const pairs = trial.rungs.map((map, rung) => [rung, 100 * map]);
    plot.line(pairs, trial.number === state.trial ? "curve strong" : "curve faint");
  }
  for (const trial of started) {
    const rung = trial.rungs.length - 1, x = plot.x(rung), y = plot.y(100 * trial.rungs[rung]);
    const stopped = trial.state !== "complete";
    plot.area.append(mark(stopped ? "stopped" : trial.kind, x, y, { filled: trial.front, size: 4.5, selected: trial.number === state.trial }));
    targets.push({ x, y, heading: trialName(trial), lines: tooltipLines(trial), trial: trial.number });
  }
  explore(plot, targets, selectTrial);
}

function drawHistory() {
  const chart = host("history-chart");
  if (!chart) return;
  const scored = DATA.trials.filter((trial) => trial.map != null);
  if (!scored.length) return chart.replaceChildren("No trial has a mAP yet.");
  const plot = new Plot(chart, {
    x: { range: [-0.5, Math.max(...DATA.trials.map((trial) => trial.number), 1) + 0.5], label: "trial", whole: true },
    y: { range: range(scored.map((trial) => 100 * trial.map)), label: "mAP at the highest rung reached, points" },
    height: 280,
    label: "mAP of the trials in their order",
  });
  for (const budget of new Set(scored.map((trial) => trial.budget))) {
    const steps = [];
    for (const trial of COMPLETE.filter((one) => one.budget === budget)) {
      const best = steps.length ? steps[steps.length - 1][1] : -1;
      if (100 * trial.map <= best) continue;
      if (steps.length) steps.push([trial.number, best]);
      steps.push([trial.number, 100 * trial.map]);
    }
    if (!steps.length) continue;
    const [, best] = steps[steps.length - 1];
    plot.line([...steps, [plot.xRange[1], best]], "front-line");
    const text = budget == null ? "best so far" : `best at ${cost(budget)}`;
    plot.text(plot.width - plot.margin.right, plot.y(best) - 8, text, { "text-anchor": "end", class: "strong" }, plot.area);
  }
  const targets = scored.map((trial) => {
    const x = plot.x(trial.number), y = plot.y(100 * trial.map), stopped = trial.state !== "complete";
    plot.area.append(mark(stopped ? "stopped" : trial.kind, x, y, { filled: trial.front, size: 4.5, selected: trial.number === state.trial }));
    return { x, y, heading: trialName(trial), lines: tooltipLines(trial), trial: trial.number };
  });
  explore(plot, targets, selectTrial);
}
