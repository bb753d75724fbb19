"use strict";
// Everything that comes from a run is set as text: nothing of it is read as HTML.

const $ = (id) => document.getElementById(id);
const chosen = new Set();
let runs = [], last = "", sort = { key: "changed", down: true };
const COLUMNS = [
  ["shown", "run"], ["state", "state"], ["value", "on test"], ["verdict", "verdict"], ["source", "source"], ["changed", "last written"],
];

function make(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function figure(r) {
  if (typeof r.value !== "number") return "";
  const interval = typeof r.low === "number" ? ` [${r.low.toFixed(3)}, ${r.high.toFixed(3)}]` : "";
  return `${r.metric} ${r.value.toFixed(3)}${interval}${r.n ? ` n\u00a0=\u00a0${r.n}` : ""}`;
}

function when(seconds) {
  const at = new Date(seconds * 1000), two = (n) => String(n).padStart(2, "0");
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}`;
}

function compareBy(a, b) {
  const [x, y] = [a[sort.key], b[sort.key]];
  if (x === undefined || x === null) return y === undefined || y === null ? 0 : 1;  // unknown comes last
  if (y === undefined || y === null) return -1;
  const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
  return sort.down ? -order : order;
}

function visible() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean), which = $("which").value;
  return runs.filter((r) => {
    if (which && r.state !== which) return false;
    const text = [r.shown, r.state, r.words, r.metric, r.verdict, r.source, r.task].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  }).sort(compareBy);
}

function heads() {
  const row = $("runs").tHead.rows[0];
  row.replaceChildren(make("th", "", "plain"));
  row.cells[0].append(make("span", "choose", "hidden"));
  for (const [key, title] of COLUMNS) {
    const cell = make("th"), mine = sort.key === key;
    cell.scope = "col";
    cell.setAttribute("aria-sort", mine ? (sort.down ? "descending" : "ascending") : "none");
    const button = make("button", title + (mine ? (sort.down ? " ↓" : " ↑") : ""));
    button.type = "button";
    button.addEventListener("click", () => {
      sort = { key, down: mine ? !sort.down : key === "value" || key === "changed" };
      heads();
      rows();
      [...$("runs").tHead.querySelectorAll("button")].find((b) => b.textContent.startsWith(title)).focus();
    });
    cell.append(button);
    row.append(cell);
  }
  row.append(make("th", "", "plain"));
  row.lastChild.append(make("span", "open", "hidden"));
}

function line(r) {
  const row = make("tr"), pick = make("td", undefined, "pick"), query = new URLSearchParams({ run: r.name });
  if (r.state === "finished") {
    const box = make("input");
    box.type = "checkbox";
    box.checked = chosen.has(r.name);
    box.setAttribute("aria-label", `compare ${r.shown}`);
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(r.name); else chosen.delete(r.name);
      choice();
    });
    pick.append(box);
  }
  const name = make("th"), link = make("a", r.shown);
  name.scope = "row";
  link.href = `watch?${query}`;
  name.append(link);
  const state = make("td");
  state.append(make("span", r.state, `tag ${r.state}`));
  if (!["finished", "running"].includes(r.state)) state.append(make("span", r.words, "why"));
  const cells = [["on test", figure(r)], ["verdict", r.verdict || ""], ["source", r.source || ""], ["written", when(r.changed)]];
  if (r.state === "running") cells[0][0] = "so far";
  row.append(pick, name, state);
  for (const [title, text] of cells) {
    const cell = make("td", text);
    cell.dataset.of = title;
    row.append(cell);
  }
  const open = make("td");
  if (r.state === "finished") {
    const report = make("a", "report");
    report.href = `report?${query}`;
    report.target = "_blank";
    report.rel = "noopener";
    report.setAttribute("aria-label", `report of ${r.shown}`);
    open.append(report);
  }
  row.append(open);
  return row;
}

function rows() {
  const shown = visible();
  const focus = document.activeElement && document.activeElement.getAttribute("aria-label");
  $("runs").tBodies[0].replaceChildren(...shown.map(line));
  if (focus && !document.activeElement.getAttribute("aria-label"))
    [...$("runs").querySelectorAll("[aria-label]")].find((n) => n.getAttribute("aria-label") === focus)?.focus();
  const all = runs.length === 0 ? "No runs here yet." : runs.length === 1 ? "1 run" : `${runs.length} runs`;
  say($("count"), shown.length === runs.length ? all : `${shown.length} of ${all}`);
}

function choice() {
  for (const name of chosen) if (!runs.some((r) => r.name === name && r.state === "finished")) chosen.delete(name);
  const enough = chosen.size > 1, link = $("compare");
  link.setAttribute("aria-disabled", String(!enough));
  if (enough) link.href = `compare?${new URLSearchParams([...chosen].map((name) => ["run", name]))}`;
  else link.removeAttribute("href");
  const words = chosen.size === 0 ? "Choose two finished runs or more to compare." : `${chosen.size} chosen; differences are to the first.`;
  say($("chosen"), words);
}

function states() {
  const there = [...new Set(runs.map((r) => r.state))].sort(), before = $("which").value;
  $("which").replaceChildren(new Option("all", ""), ...there.map((s) => new Option(s, s)));
  $("which").value = there.includes(before) ? before : "";
}

async function turn() {
  try {
    const answer = await fetch("runs");
    if (!answer.ok) throw new Error(String(answer.status));
    const text = await answer.text();
    if (text !== last) {
      last = text;
      const found = JSON.parse(text);
      runs = found.runs;
      $("folder").textContent = found.folder;
      states();
      rows();
      choice();
    }
    $("stale").hidden = true;
  } catch (error) {
    $("stale").hidden = false;
    if (!$("stale").textContent) $("stale").textContent = `The page’s server does not answer; what is here is as of ${new Date().toLocaleTimeString()}.`;
  }
  setTimeout(turn, 5000);
}

$("filter").addEventListener("input", rows);
$("which").addEventListener("change", rows);
heads();
turn();
