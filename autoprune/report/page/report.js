"use strict";
// The page as a whole: controls, the chosen trial, sample images, tables, and when to draw anew.

function choose(number) {
  state.trial = number;
  for (const row of document.querySelectorAll("tr[data-trial]")) {
    row.classList.toggle("chosen", Number(row.dataset.trial) === number);
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
    look(null);
  });
  const kinds = new Set(["dense", ...COMPLETE.map((trial) => trial.kind)]);
  if (DATA.trials.some((trial) => trial.recovered)) kinds.add("recovered");
  host("front-legend").append(...Object.keys(KINDS).filter((kind) => kinds.has(kind)).map((kind) => (
    html("li", {}, keyOf(mark(kind, 12, 8, { size: 5 })), KINDS[kind])
  )), ...(denseStars().length > 1 ? [html("li", {}, keyOf(mark("dense", 12, 8, { size: 5, filled: false })), "dense, on the proxies' images")] : []), html("li", {}, keyOf(mark("searched", 12, 8, { size: 5, filled: false })), "hollow: another trial beats it"));
  host("zoom-all").addEventListener("click", () => look(null));
  host("zoom-trials").addEventListener("click", () => look(frontView(false)));
  host("zoom-in").addEventListener("click", () => zoom(0.7));
  host("zoom-out").addEventListener("click", () => zoom(1.4));
}

function keyOf(element) {
  const key = svg("svg", { viewBox: "0 0 24 16", class: "key", style: "background:none", "aria-hidden": "true" });
  key.append(element);
  return key;
}

function setUpLayers() {
  const select = host("layers-trial");
  const known = DATA.trials.filter((trial) => trial.widths && trial.map != null);
  if (state.trial == null && known.length) state.trial = known[0].number;
  if (!select) return;
  const option = (trial) => html("option", { value: trial.number }, `${named(trial)}, mAP ${points(trial.map)}`);
  const groups = [
    ["recovered", known.filter((trial) => trial.recovered)],
    ["on the front", known.filter((trial) => trial.front && !trial.recovered)],
    ["others", known.filter((trial) => !trial.front && !trial.recovered)],
  ];
  for (const [label, trials] of groups) {
    if (trials.length) select.append(html("optgroup", { label }, ...trials.map(option)));
  }
  select.addEventListener("change", () => choose(Number(select.value)));
}

const LABEL_PX = 11;

/** Shows the boxes above the threshold, and counts what is right, false and missed. */
function filterBoxes() {
  const slider = host("score");
  if (!slider) return;
  const least = Number(slider.value);
  host("score-shown").textContent = least.toFixed(2);
  for (const figure of document.querySelectorAll(".samples figure")) {
    const count = { right: 0, wrong: 0, missed: 0 };
    for (const box of figure.querySelectorAll("[data-score]")) {
      const shown = Number(box.dataset.score) >= least;
      box.toggleAttribute("hidden", !shown);
      if (shown) count[box.dataset.right === "1" ? "right" : "wrong"] += 1;
    }
    for (const box of figure.querySelectorAll("[data-found]")) {
      const missed = Number(box.dataset.found) < least;
      box.toggleAttribute("hidden", !missed);
      if (missed) count.missed += 1;
    }
    const picture = figure.querySelector("svg");
    // labels keep their size on the screen whatever the size of the picture
    picture.style.fontSize = `${LABEL_PX * picture.viewBox.baseVal.width / (picture.clientWidth || 240)}px`;
    figure.querySelector(".counts").textContent = `${count.right} right, ${count.wrong} false, ${count.missed} missed`;
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
    row.addEventListener("click", () => choose(Number(row.dataset.trial)));
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
    if (a === "" || b === "") return (a === "") - (b === ""); // what is not known comes last either way
    const [x, y] = [Number(a), Number(b)];
    const found = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
    return falling ? -found : found;
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
if (state.trial != null) choose(state.trial);
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
