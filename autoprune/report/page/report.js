"use strict";
// The page as a whole: controls, the selected trial, sample images, tables, and when to redraw.

function selectTrial(number) {
  state.trial = number;
  for (const row of document.querySelectorAll("tr[data-trial]")) {
    row.classList.toggle("selected", Number(row.dataset.trial) === number);
  }
  const select = host("layers-trial");
  if (select) select.value = String(number);
  for (const draw of [drawFront, drawLayers, drawRungs, drawHistory, drawImportance]) draw();
}

function drawAll() {
  for (const draw of [drawFront, drawLayers, drawRungs, drawHistory, drawRecovery, drawProxies, drawImportance]) draw();
}

function setUpFront() {
  if (!host("front-chart")) return;
  const axes = Object.entries(AXES).filter(([name]) => COMPLETE.some((trial) => trial[name] != null));
  host("front-axis").append(...axes.map(([name, axis]) => html("option", { value: name }, axis.short)));
  if (axes.some(([name]) => name === state.axis)) host("front-axis").value = state.axis;
  host("front-axis-label").hidden = axes.length < 2;
  host("front-axis").addEventListener("change", (event) => {
    state.axis = event.target.value;
    setView(null);
  });
  const kinds = new Set(["dense", ...COMPLETE.map((trial) => trial.kind)]);
  if (DATA.trials.some((trial) => trial.recovered)) kinds.add("recovered");
  host("front-legend").append(...Object.keys(KINDS).filter((kind) => kinds.has(kind)).map((kind) => (
    html("li", {}, legendKey(mark(kind, 12, 8, { size: 5 })), KINDS[kind])
  )), ...(denseStars().length > 1 ? [html("li", {}, legendKey(mark("dense", 12, 8, { size: 5, filled: false })), "dense, on the proxies' images")] : []), html("li", {}, legendKey(mark("searched", 12, 8, { size: 5, filled: false })), "hollow: another trial beats it"));
  host("zoom-all").addEventListener("click", () => setView(null));
  host("zoom-trials").addEventListener("click", () => setView(frontView(false)));
  host("zoom-in").addEventListener("click", () => zoom(0.7));
  host("zoom-out").addEventListener("click", () => zoom(1.4));
}

function legendKey(element) {
  const key = svg("svg", { viewBox: "0 0 24 16", class: "key", style: "background:none", "aria-hidden": "true" });
  key.append(element);
  return key;
}

function setUpLayers() {
  const select = host("layers-trial");
  const measured = DATA.trials.filter((trial) => trial.widths && trial.map != null);
  if (state.trial == null && measured.length) state.trial = measured[0].number;
  if (!select) return;
  const option = (trial) => html("option", { value: trial.number }, `${trialName(trial)}, mAP ${points(trial.map)}`);
  const groups = [
    ["recovered", measured.filter((trial) => trial.recovered)],
    ["on the front", measured.filter((trial) => trial.front && !trial.recovered)],
    ["others", measured.filter((trial) => !trial.front && !trial.recovered)],
  ];
  for (const [label, trials] of groups) {
    if (trials.length) select.append(html("optgroup", { label }, ...trials.map(option)));
  }
  select.addEventListener("change", () => selectTrial(Number(select.value)));
}

const LABEL_PX = 11;

/** Shows the detections above the threshold, and counts the correct, false and missed ones. */
function filterBoxes() {
  const slider = host("score");
  if (!slider) return;
  const least = Number(slider.value);
  host("score-shown").textContent = least.toFixed(2);
  for (const figure of document.querySelectorAll(".samples figure")) {
    const count = { correct: 0, false: 0, missed: 0 };
    for (const box of figure.querySelectorAll("[data-score]")) {
      const shown = Number(box.dataset.score) >= least;
      box.toggleAttribute("hidden", !shown);
      if (shown) count[box.dataset.correct === "1" ? "correct" : "false"] += 1;
    }
    for (const box of figure.querySelectorAll("[data-detected-at]")) {
      const missed = Number(box.dataset.detectedAt) < least;
      box.toggleAttribute("hidden", !missed);
      if (missed) count.missed += 1;
    }
    const picture = figure.querySelector("svg");
    // labels have the same size on the screen at any size of the picture
    picture.style.fontSize = `${LABEL_PX * picture.viewBox.baseVal.width / (picture.clientWidth || 240)}px`;
    figure.querySelector(".counts").textContent = `${count.correct} correct, ${count.false} false, ${count.missed} missed`;
  }
}

function setUpTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = html("button", { type: "button" }, ...heading.childNodes);
      heading.replaceChildren(button);
      button.addEventListener("click", () => sortTable(table, heading, column));
    });
  }
  for (const row of document.querySelectorAll("tr[data-trial]")) {
    row.addEventListener("click", () => selectTrial(Number(row.dataset.trial)));
  }
  const save = host("save-csv");
  if (save) save.addEventListener("click", saveCsv);
}

function sortTable(table, heading, column) {
  const falling = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const order = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // empty cells come last in both directions
    const [x, y] = [Number(a), Number(b)];
    const sign = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
    return falling ? -sign : sign;
  };
  const rows = [...table.tBodies[0].rows].sort((a, b) => order(value(a), value(b)));
  table.tBodies[0].append(...rows);
}

function saveCsv() {
  const cells = (row) => [...row.cells].map((cell) => cell.dataset.value ?? cell.textContent.trim());
  const quote = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = [...host("trials-table").rows].map((row) => cells(row).map(quote).join(","));
  const url = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], { type: "text/csv" }));
  const link = html("a", { href: url, download: "trials.csv" });
  link.click();
  URL.revokeObjectURL(url);
}

setUpFront();
setUpLayers();
setUpTables();
filterBoxes();
if (host("score")) host("score").addEventListener("input", filterBoxes);
for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", drawImportance);
if (state.trial != null) selectTrial(state.trial);
drawAll();

let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return; // phones resize while they scroll
  width = window.innerWidth;
  drawAll();
  filterBoxes();
});
window.addEventListener("beforeprint", () => {
  printing = true;
  for (const details of document.querySelectorAll("#importance details")) details.open = true;
  drawAll();
});
window.addEventListener("afterprint", () => {
  printing = false;
  drawAll();
});
