"use strict";
// The other charts: layers, recovery, proxies, importance.

function drawLayers() {
  const list = host("layers-bars");
  if (!list) return;
  const trial = BY_NUMBER.get(state.trial);
  if (!trial || !trial.widths) return list.replaceChildren();
  const total = { kept: 0, width: 0 };
  list.replaceChildren(...DATA.groups.map((group, index) => {
    const kept = trial.widths[index], fraction = kept / group.width;
    total.kept += kept;
    total.width += group.width;
    const text = kept === group.width ? `all ${kept}` : `${kept} of ${group.width} (${percent(fraction)})`;
    const fill = html("i", { style: `width:${100 * fraction}%` });
    return html("li", {},
      html("div", { class: "name" }, html("span", {}, ...breakable(group.name)), html("span", {}, text)),
      html("div", { class: "bar", role: "img", "aria-label": `${group.name} keeps ${text}` }, fill));
  }));
  const scores = trial.recovered ? `${points(trial.recovered.map)} mAP after recovery` : `proxy mAP ${points(trial.map)}`;
  host("layers-summary").textContent =
    `${trialName(trial)} keeps ${total.kept} of ${total.width} channels: ${cost(trial.gflops)} GFLOPs, ${scores}.`;
}

function drawRecovery() {
  const chart = host("recovery-chart");
  if (!chart) return;
  const runs = Object.entries(DATA.losses).filter(([, pairs]) => pairs.length);
  if (!runs.length) return;
  const losses = runs.flatMap(([, pairs]) => pairs.map(([, loss]) => loss)).sort((a, b) => a - b);
  // the loss of the first steps can be far above the rest
  const top = losses[Math.min(losses.length - 1, Math.floor(losses.length * 0.985))];
  const plot = new Plot(chart, {
    x: { range: [0, Math.max(...runs.flatMap(([, pairs]) => pairs.map(([step]) => step)))], label: "step", whole: true },
    y: { range: range([losses[0], top]), label: "training loss, with distillation" },
    height: 300,
    label: "training loss of the recovered trials",
  });
  const targets = [], topTrial = String(DATA.best);
  runs.sort(([a], [b]) => (a === topTrial) - (b === topTrial));
  for (const [number, pairs] of runs) {
    const trial = BY_NUMBER.get(Number(number)), first = number === topTrial;
    plot.line(pairs, "curve faint");
    const smooth = smoothed(pairs, Math.max(1, pairs.length / 24));
    if (first || runs.length === 1) plot.line(smooth, "curve strong");
    else plot.line(smooth, "curve");
    for (const [step, loss] of smooth) {
      targets.push({ x: plot.x(step), y: plot.y(loss), heading: trial ? trialName(trial) : `trial ${number}`, lines: [["step", String(step)], ["loss, smoothed", loss.toFixed(3)]] });
    }
    const [step, loss] = smooth[smooth.length - 1];
    if (runs.length <= 3) plot.text(plot.x(step), plot.y(loss) - 8, `trial ${number}`, { "text-anchor": "end", class: "strong" });
  }
  explore(plot, targets, selectTrial);
}

/** Exponential moving average over about `span` points, bias-corrected. */
function smoothed(pairs, span) {
  const keep = 1 - 1 / Math.max(span, 1);
  let sum = 0, weight = 0;
  return pairs.map(([step, loss]) => {
    sum = keep * sum + loss;
    weight = keep * weight + 1;
    return [step, sum / weight];
  });
}

function drawProxies() {
  const container = host("proxies-charts");
  if (!container || !DATA.check) return;
  const agreements = DATA.check.agreements.filter((agreement) => agreement.score === "map");
  const tiles = agreements.map((agreement) => {
    const value = agreement.spearman.value;
    const heading = `rung ${agreement.rung}, ${agreement.steps} steps: ρ ${value == null ? "undefined" : value.toFixed(2)}`;
    const chart = html("div", { class: "chart", "data-print": 300 });
    return [html("div", {}, html("h3", {}, heading), chart), chart, agreement.rung];
  });
  container.replaceChildren(...tiles.map(([tile]) => tile));
  for (const [, chart, rung] of tiles) {
    const compared = DATA.check.trials.filter((one) => one.rungs.length > rung);
    const xs = compared.map((one) => 100 * one.rungs[rung].map), ys = compared.map((one) => 100 * one.recovered_map);
    const plot = new Plot(chart, {
      x: { range: range(xs, 0.12), label: "proxy mAP" },
      y: { range: range(ys, 0.12), label: "recovered mAP" },
      height: 240,
      label: `recovered mAP over the proxy mAP of ${compared.length} trials at rung ${rung}`,
    });
    const targets = compared.map((one, k) => {
      const x = plot.x(xs[k]), y = plot.y(ys[k]), trial = BY_NUMBER.get(one.trial);
      plot.area.append(mark(trial ? trial.kind : "searched", x, y, { size: 5 }));
      plot.text(x + 8, y + 4, String(one.trial), {}, plot.area);
      return { x, y, heading: `trial ${one.trial} (${one.origin})`, lines: [["proxy mAP", points(one.rungs[rung].map)], ["recovered mAP", points(one.recovered_map)]], trial: one.trial };
    });
    explore(plot, targets, selectTrial);
  }
}

function drawImportance() {
  const container = host("importance-charts");
  if (!container || (!printing && !container.closest("details").open)) return;
  const trial = BY_NUMBER.get(state.trial);
  const tiles = DATA.groups.map((group, number) => {
    const chart = html("div", { class: "chart", "data-print": 200 });
    return { group, number, chart, tile: html("div", {}, html("h3", {}, ...breakable(group.name)), chart) };
  });
  container.replaceChildren(...tiles.map(({ tile }) => tile));
  const fractions = [0, 0.5, 1].map((value) => ({ value, text: percent(value) }));
  for (const { group, number, chart } of tiles) {
    if (!group.curve.length) continue;
    const last = group.curve.length - 1;
    const plot = new Plot(chart, {
      x: { range: [0, 1], ticks: fractions }, y: { range: [0, 1], ticks: fractions }, height: 120, small: true,
      label: `importance of ${group.name} by channels removed`,
    });
    plot.line(group.curve.map((held, k) => [k / last, held]), "curve");
    if (group.max_ratio != null) plot.line([[group.max_ratio, 0], [group.max_ratio, 1]], "budget");
    if (!trial || !trial.widths) continue;
    const removed = 1 - trial.widths[number] / group.width, k = Math.min(Math.floor(removed * last), last - 1);
    const held = group.curve[k] + (removed * last - k) * (group.curve[k + 1] - group.curve[k]);
    const x = plot.x(removed), y = plot.y(held);
    plot.area.append(mark("searched", x, y, { size: 4.5 }));
    explore(plot, [{ x, y, heading: group.name, lines: [["channels removed", percent(removed)], ["importance removed", percent(held)], ["largest ratio allowed", group.max_ratio == null ? "-" : percent(group.max_ratio)]] }], selectTrial);
  }
}
