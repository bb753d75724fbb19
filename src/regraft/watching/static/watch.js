"use strict";
// Everything that comes from a run is set as text: nothing of it is read as HTML.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const run = new URLSearchParams(location.search).get("run");
let epochs = [], offset = 0, crc = 0, past = [], started = performance.now(), drawn = "";

function make(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function say(node, text) {  // a status that is set again is read aloud again
  if (node.textContent !== text) node.textContent = text;
}

function number(value) {
  if (typeof value !== "number" || !isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e5)) return value.toExponential(2);
  return value.toFixed(size < 10 ? 4 : 1);
}

function bytes(value) {
  const names = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (value >= 1000 && i < names.length - 1) { value /= 1000; i += 1; }
  return `${value.toFixed(i && value < 100 ? 1 : 0)} ${names[i]}`;
}

function duration(seconds) {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `about ${minutes} min` : `about ${(minutes / 60).toFixed(1)} h`;
}

function list(node, pairs) {
  node.replaceChildren(...pairs.flatMap(([name, text]) => [make("dt", name), make("dd", text)]));
}

// series: [{name, points: [[x, y]], color, pale, dash, best: [x, y]}]; y null: a gap
function chart(title, series, { wide = false, format = number, unit = "epoch", legend = false } = {}) {
  const W = wide ? 720 : 320, H = wide ? 220 : 170, left = 56, right = 10, top = 8, bottom = 30;
  const all = series.flatMap((s) => s.points).filter(([, y]) => typeof y === "number");
  const figure = make("figure");
  const main = series.filter((s) => !s.pale);
  const lasts = main.map((s) => s.points.filter(([, y]) => typeof y === "number").at(-1)).filter(Boolean);
  const words = main.length === 1 && lasts.length ? format(lasts[0][1]) : "";
  const caption = make("figcaption", title + (words ? " " : ""));
  if (words) caption.append(make("b", words));
  figure.append(caption);
  if (!all.length) return figure;
  let [x0, x1] = [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
  let [y0, y1] = [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
  if (x1 === x0) x1 = x0 + 1;
  if (y1 === y0) { const room = Math.abs(y0) * 0.05 || 1; y0 -= room; y1 += room; }
  const X = (x) => left + ((x - x0) / (x1 - x0)) * (W - left - right);
  const Y = (y) => H - bottom - ((y - y0) / (y1 - y0)) * (H - top - bottom);
  const seen = lasts.length ? `last ${format(lasts[0][1])} at ${unit} ${lasts[0][0]}; ` : "";
  const svg = shape("svg", {
    viewBox: `0 0 ${W} ${H}`, role: "img",
    "aria-label": `${title}: ${seen}from ${format(y0)} to ${format(y1)}`,
  });
  for (const y of [y0, (y0 + y1) / 2, y1]) {
    svg.append(shape("line", { x1: left, x2: W - right, y1: Y(y), y2: Y(y), class: "axis" }));
    svg.append(shape("text", { x: left - 5, y: Y(y) + 4, "text-anchor": "end" }, format(y)));
  }
  for (const [x, anchor] of [[x0, "start"], [x1, "end"]])
    svg.append(shape("text", { x: X(x), y: H - 14, "text-anchor": anchor }, `${Math.round(x)}`));
  svg.append(shape("text", { x: (left + W - right) / 2, y: H - 3, "text-anchor": "middle" }, unit));
  for (const s of series) {
    const style = `c${s.color % 8} dash${(s.dash || 0) % 4}${s.pale ? " pale" : ""}`;
    let path = "", open = false;
    for (const [x, y] of s.points) {
      if (typeof y !== "number") { open = false; continue; }
      path += `${open ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`;
      open = true;
    }
    svg.append(shape("path", { d: path, class: `line ${style}` }));
    if (s.points.length <= 60)
      for (const [x, y] of s.points) {
        if (typeof y !== "number") continue;
        const dot = shape("circle", { cx: X(x), cy: Y(y), r: 2.5, class: `dot ${style}` });
        dot.append(shape("title", {}, `${s.name}, ${unit} ${x}: ${format(y)}`));
        svg.append(dot);
      }
    if (s.best && typeof s.best[1] === "number") {
      const mark = shape("circle", { cx: X(s.best[0]), cy: Y(s.best[1]), r: 5, class: `best ${style}` });
      mark.append(shape("title", {}, `best so far, ${unit} ${s.best[0]}: ${format(s.best[1])}`));
      svg.append(mark);
    }
  }
  figure.append(svg);
  if (legend) {
    const items = make("ul", undefined, "legend");
    for (const s of series) {
      const item = make("li"), key = shape("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" });
      key.append(shape("path", { d: "M0 5H26", class: `line c${s.color % 8} dash${(s.dash || 0) % 4}` }));
      const last = s.points.filter(([, y]) => typeof y === "number").at(-1);
      item.append(key, ` ${s.name} ${last ? format(last[1]) : ""}`);
      items.append(item);
    }
    figure.append(items);
  }
  return figure;
}

function figuresOf(kind) {  // names of what the epochs have, in the order in which they come
  return [...new Set(epochs.flatMap((line) => Object.keys(line[kind] || {})))];
}

function seedsOf() { return [...new Set(epochs.map((line) => line.seed))]; }

function series(kind, name, best) {
  const seeds = seedsOf();
  return seeds.map((seed, i) => {
    const points = epochs.filter((l) => l.seed === seed && l[kind] && name in l[kind]).map((l) => [l.epoch, l[kind][name]]);
    const at = best.find((b) => b.seed === seed);
    const mark = kind === "val" && at && at.val ? [at.epoch, at.val[name]] : null;
    return { name: seeds.length > 1 ? `seed ${seed}` : name, points, color: kind === "terms" ? 1 : kind === "val" ? 0 : 3, pale: i < seeds.length - 1, best: mark };
  }).filter((s) => s.points.length);
}

function draw(best) {
  const charts = [];
  for (const name of figuresOf("val")) charts.push(chart(`val ${name}`, series("val", name, best)));
  for (const name of figuresOf("terms")) charts.push(chart(`loss term ${name}`, series("terms", name, best)));
  for (const name of figuresOf("source")) charts.push(chart(`source ${name}`, series("source", name, best)));
  $("charts").replaceChildren(...charts);
  $("no-curves").hidden = charts.length > 0;
  const seed = seedsOf().at(-1), mine = epochs.filter((l) => l.seed === seed);
  const blocks = [...new Set(mine.flatMap((l) => Object.keys(l.rates || {})))];
  $("no-rates").hidden = blocks.length > 0;
  const rates = blocks.map((block, i) => ({
    name: block, color: i, dash: Math.floor(i / 8),
    points: mine.map((l) => [l.epoch, (l.rates || {})[block] ?? null]).filter(([x]) => x > 0),
  }));
  const title = `at the end of each epoch, seed ${seed}`;
  $("rates").replaceChildren(...(blocks.length ? [chart(title, rates, { wide: innerWidth > 700, legend: true })] : []));
  table();
}

function table() {
  const columns = ["val", "terms", "source"].flatMap((kind) => figuresOf(kind).map((name) => [kind, name]));
  $("table-box").hidden = !columns.length;
  const head = make("tr");
  for (const text of ["seed", "epoch", "step", ...columns.map(([kind, name]) => `${kind === "terms" ? "loss" : kind} ${name}`)]) {
    const cell = make("th", text);
    cell.scope = "col";
    head.append(cell);
  }
  const top = make("thead"), body = make("tbody");
  top.append(head);
  for (const line of epochs.slice(-500).reverse()) {
    const row = make("tr");
    row.append(make("td", String(line.seed)), make("td", `${line.epoch}${line.best && Object.keys(line.val || {}).length ? " *" : ""}`), make("td", String(line.step)));
    for (const [kind, name] of columns) row.append(make("td", number((line[kind] || {})[name]), "num"));
    body.append(row);
  }
  $("table").replaceChildren(top, body);
}

function resources(use) {
  $("use-box").hidden = !use;
  if (!use) return;
  $("use-words").textContent = use.words || "";
  if (use.words) { $("use").replaceChildren(); return; }
  const busy = use.cores === null ? "measured at the next look" : `${use.cores.toFixed(2)} of ${use.of_cores} cores`;
  list($("use"), [
    ["processor", busy], ["memory", `${bytes(use.memory)} of their own`],
    ["processes", `${use.processes}; threads ${use.threads}`],
    ["disk", use.read === null ? "not known" : `${bytes(use.read)} read, ${bytes(use.written)} written`],
  ]);
  past.push([Math.round((performance.now() - started) / 1000), use.cores, use.memory]);
  past = past.slice(-300);
  if (past.length > 1)
    $("use-charts").replaceChildren(
      chart("cores in use", [{ name: "cores", color: 2, points: past.map(([x, y]) => [x, y]) }], { unit: "seconds on this page" }),
      chart("memory", [{ name: "memory", color: 5, points: past.map(([x, , y]) => [x, y]) }], { unit: "seconds on this page", format: bytes }),
    );
}

function show(s) {
  document.title = `${s.state} · ${s.name} · regraft`;
  say($("name"), s.name);
  say($("path"), s.path || "");
  say($("state"), s.words);
  $("state").className = `state ${s.state}`;
  const more = s.history || { anew: true, lines: [], offset: 0, crc: 0 };
  if (more.anew) epochs = [];
  epochs.push(...more.lines);
  offset = more.offset;
  crc = more.crc;
  const best = s.best || [], facts = [];
  if (s.now) facts.push(["doing", s.now]);
  if (s.left) facts.push(["time left", s.left.seconds === null ? s.left.words : `${duration(s.left.seconds)}, ${s.left.words}`]);
  for (const b of best.slice(-8))
    facts.push([`best so far${best.length > 1 ? `, seed ${b.seed}` : ""}`, `epoch ${b.epoch}: ${Object.entries(b.val).map(([k, v]) => `val ${k} ${number(v)}`).join(", ")}`]);
  for (const [name, text] of Object.entries(s.plan || {})) facts.push([name, text]);
  if (s.disk !== undefined) facts.push(["disk free", bytes(s.disk)]);
  list($("now"), facts);
  $("notes").replaceChildren(...(s.notes || []).map((text) => make("li", text)));
  const now = JSON.stringify([more.offset, more.crc, best]);
  if (now !== drawn) { drawn = now; draw(best); }
  resources(s.use);
  $("result").hidden = !s.result;
  if (s.result) {
    $("verdict").textContent = s.result.verdict === "not measured" ? "transfer not measured" : s.result.verdict;
    list($("lines"), s.result.lines.slice(1));
    $("report").hidden = run === null;
  }
  const log = $("log"), text = (s.log || []).join("\n");
  if (log.textContent !== text) {
    const end = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.textContent = text;
    if (end) log.scrollTop = log.scrollHeight;
  }
  return s.state === "running" || s.state === "absent" || s.state === "empty" ? 2000 : 8000;
}

async function turn() {
  let wait = 4000;
  try {
    const query = new URLSearchParams({ offset, crc });
    if (run !== null) query.set("run", run);
    const answer = await fetch(`state?${query}`);
    if (!answer.ok) throw new Error(`the page’s server answered ${answer.status}`);
    wait = show(await answer.json());
    $("stale").hidden = true;
  } catch (error) {
    $("stale").hidden = false;
    if (!$("stale").textContent) $("stale").textContent = `The page’s server does not answer; what is here is as of ${new Date().toLocaleTimeString()}.`;
  }
  setTimeout(turn, wait);
}

if (run !== null) {
  $("back").hidden = false;
  $("open-report").href = `report?${new URLSearchParams({ run })}`;
}
turn();
