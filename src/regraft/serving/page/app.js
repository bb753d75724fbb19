// The page of `regraft serve`. Everything that comes from the run or the server goes into the page as
// text, never as markup: class names may hold anything.
"use strict";

const SHOWN = 10; // answers before "Show all"
const $ = (id) => document.getElementById(id);
const percent = (p) => (p > 0.9995 && p < 1 ? "> 99.9 %" : p < 0.0005 && p > 0 ? "< 0.1 %" : (100 * p).toFixed(1) + " %");
const number = (v) => Number(v.toPrecision(4)).toString();

let about = null;
let token = "";
let last = null; // the request that was answered: { body, type }
let asked = 0; // only the newest request may change the page
let shownUrl = "";

// The token comes behind "#", which no server sees, and leaves the address bar at once.
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("regraft-token", given);
    history.replaceState(null, "", location.pathname);
  }
  token = sessionStorage.getItem("regraft-token") || "";
}

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (token) headers.authorization = "Bearer " + token;
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, credentials: "omit", redirect: "error" });
  } catch (error) {
    throw new Error("The server does not answer. Does it still run?");
  }
  if (reply.status === 401) {
    $("ask-token").hidden = false;
    $("token").focus();
  }
  let content = null;
  try {
    content = await reply.json();
  } catch (error) {
    throw new Error("The server gave no answer that can be read (" + reply.status + ").");
  }
  if (!reply.ok) throw new Error(content.detail || "The server refused (" + reply.status + ").");
  return content;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function fail(error) {
  $("status").textContent = "";
  $("error").textContent = error.message;
  $("error").hidden = false;
}

function busy(text) {
  $("error").hidden = true;
  $("status").textContent = text;
}

async function start() {
  $("ask-token").hidden = true;
  about = await ask("about");
  document.title = about.name + " · regraft serve";
  $("name").textContent = about.name;
  const many = { numbers: "number", labels: "label", class: "class" }[about.targets];
  const count = about.classes.length;
  const plural = count === 1 ? many : many === "class" ? "classes" : many + "s";
  $("facts").textContent = about.task + ", " + count + " " + plural;
  const picture = about.inputs === "picture";
  $("for-picture").hidden = !picture;
  $("for-text").hidden = picture;
  $("second").hidden = about.inputs !== "texts";
  if (about.inputs === "texts") $("text-label").textContent = "First text";
  $("text").maxLength = about.letters;
  $("text-pair").maxLength = about.letters;
  $("size-note").textContent = "JPEG, PNG, GIF, BMP, TIFF, WebP or PPM, up to " + about.megabytes + " MB";
  $("why").hidden = !about.explains;
  $("which").replaceChildren(...about.classes.map((name) => element("option", name)));
  $("input").hidden = false;
  notes();
}

function notes() {
  const said = [];
  if (about.targets !== "numbers") {
    said.push(about.temperature === null
      ? "Probabilities are as the model gives them, not calibrated."
      : "Calibrated probabilities divide the model's logits by " + number(about.temperature)
        + ", chosen on held-out rows.");
  }
  const alarms = about.false_alarms;
  if (alarms) {
    said.push("An input is called unlike the training data where its features are further from it than "
      + "those of " + percent(1 - alarms.level) + " of " + alarms.held_out + " held-out rows. On inputs "
      + "like those the warning is wrong in about " + percent(alarms.expected) + " of cases (95 % interval "
      + percent(alarms.low) + " to " + percent(alarms.high) + "). No warning does not mean that the answer is right.");
  }
  const own = about.notes.filter((n) => !(n.startsWith("probabilities") && said.length));
  $("notes").replaceChildren(...said.concat(own).map((text) => element("li", text)));
}

// ---------------------------------------------------------------- asking

async function predictPicture(file) {
  if (!file) return;
  if (file.size > about.megabytes * 1e6) {
    fail(new Error(file.name + " has " + (file.size / 1e6).toFixed(1) + " MB; up to " + about.megabytes + " MB are taken."));
    return;
  }
  const body = new FormData();
  body.append("file", file, "picture"); // the file's own name stays here
  await predict({ body }, () => {
    if (shownUrl) URL.revokeObjectURL(shownUrl);
    shownUrl = URL.createObjectURL(file);
    $("picture").src = shownUrl;
    $("picture").alt = "Your picture " + file.name;
    $("caption").textContent = file.name;
    $("shown").hidden = false;
  });
}

async function predictText() {
  const values = { text: $("text").value };
  if (about.inputs === "texts") values.text_pair = $("text-pair").value;
  if (Object.values(values).some((text) => !text.trim())) {
    fail(new Error("Type a text first."));
    return;
  }
  await predict({ body: JSON.stringify(values), type: "application/json" }, () => {});
}

function options(request) {
  return { method: "POST", body: request.body, headers: request.type ? { "content-type": request.type } : {} };
}

async function predict(request, show) {
  const mine = ++asked;
  busy("Computing …");
  try {
    const found = await ask("predict", options(request));
    if (mine !== asked) return;
    last = request;
    show();
    answer(found);
    $("status").textContent = "Answer: " + found.label;
  } catch (error) {
    if (mine === asked) fail(error);
  }
}

// ---------------------------------------------------------------- showing

function answer(found) {
  const numbers = about.targets === "numbers";
  const calibrated = !numbers && found.scores.some((s) => s.calibrated !== null);
  $("label").textContent = numbers && found.scores.length === 1
    ? found.scores[0].label + ": " + number(found.scores[0].value)
    : found.label || "(none of the labels)";
  const top = found.scores[0];
  $("confidence").textContent = about.targets !== "class" ? ""
    : calibrated ? "calibrated confidence " + percent(top.calibrated) : "probability " + percent(top.value);
  $("set").hidden = !found.set && found.accepted === null;
  const said = found.set ? [setInWords(found.set)] : [];
  if (found.accepted !== null) said.push(found.accepted ? "confident enough to be accepted" : "not confident enough to be accepted");
  $("set").textContent = said.join("; ");
  const far = found.training_data;
  $("unlike").hidden = !(far && far.unlike);
  if (far && far.unlike) {
    $("unlike").textContent = "This input is unlike the training data (distance " + number(far.distance)
      + ", threshold " + number(far.threshold) + "): do not rely on the answer.";
  }
  $("scores-caption").textContent = numbers ? "Numbers" : calibrated ? "Probabilities; bars are the calibrated ones" : "Probabilities";
  const head = [element("th", numbers ? "Number" : about.targets === "labels" ? "Label" : "Class")];
  if (!numbers) head.push(element("td"));
  if (calibrated) head.push(element("th", "Calibrated", "num"));
  head.push(element("th", numbers ? "Value" : calibrated ? "As given" : "Probability", calibrated ? "num given" : "num"));
  head.forEach((cell) => { if (cell.tagName === "TH") cell.scope = "col"; });
  $("scores-head").replaceChildren(...head);
  rows(found.scores, numbers, calibrated, SHOWN);
  $("all").hidden = found.scores.length <= SHOWN;
  $("all").textContent = "Show all " + found.scores.length;
  $("all").onclick = () => { rows(found.scores, numbers, calibrated, Infinity); $("all").hidden = true; };
  $("which").value = top.label;
  $("explanation").hidden = true;
  $("answer").hidden = false;
}

function setInWords(set) {
  const rate = percent(set.coverage);
  if (set.intervals) {
    return rate + " interval: " + set.intervals.map((i) => i.label + " " + number(i.low) + " to " + number(i.high)).join(", ");
  }
  if (!set.classes.length) return rate + " set: empty, no class is probable enough";
  const more = set.classes.length - SHOWN;
  return rate + " set: " + set.classes.slice(0, SHOWN).join(", ") + (more > 0 ? " and " + more + " more" : "");
}

function rows(scores, numbers, calibrated, most) {
  $("scores-body").replaceChildren(...scores.slice(0, most).map((score) => {
    const row = element("tr");
    const name = element("th", score.label);
    name.scope = "row";
    row.append(name);
    if (!numbers) {
      const track = element("td", undefined, "track");
      const bar = element("span", undefined, "bar");
      bar.style.width = 100 * (calibrated ? score.calibrated : score.value) + "%";
      track.append(bar);
      track.setAttribute("aria-hidden", "true");
      row.append(track);
    }
    if (calibrated) row.append(element("td", percent(score.calibrated), "num"));
    row.append(element("td", numbers ? number(score.value) : percent(score.value), calibrated ? "num given" : "num"));
    return row;
  }));
}

// ---------------------------------------------------------------- explaining

async function explain() {
  const mine = asked, request = last;
  if (!request) return;
  busy("Covering parts of the input in turn …");
  $("explain").disabled = true;
  try {
    const path = "explain?label=" + encodeURIComponent($("which").value);
    const found = await ask(path, options(request));
    if (mine !== asked) return;
    explained(found);
    $("status").textContent = "";
  } catch (error) {
    if (mine === asked) fail(error);
  } finally {
    $("explain").disabled = false;
  }
}

function explained(found) {
  const numbers = about.targets === "numbers";
  const factor = (v) => "odds \u00d7 " + number(Math.exp(v)); // of log-odds
  const amount = (v) => (numbers ? number(v) : factor(v));
  const score = numbers ? number(found.score) : percent(found.score);
  if (found.cells) {
    const size = found.cells.length;
    let best = { value: -Infinity };
    found.cells.forEach((row, y) => row.forEach((value, x) => { if (value > best.value) best = { value, x, y }; }));
    const third = (i) => Math.min(2, Math.floor((3 * i) / (size - 1 || 1)));
    const where = ["top", "middle", "bottom"][third(best.y)] + " " + ["left", "centre", "right"][third(best.x)];
    const text = best.value > 0
      ? "\u201c" + found.label + "\u201d has " + score + "; covering the " + where + " costs it most"
        + (numbers ? ", " + number(best.value) + "." : ": the odds for it fall to 1 \u00f7 " + number(Math.exp(best.value)) + ".")
      : "\u201c" + found.label + "\u201d has " + score + ", and no covered part takes anything from it.";
    $("explained").textContent = text + " Orange speaks for it, blue against it.";
    $("heat-picture").src = found.picture;
    $("heat-picture").alt = text;
    $("heat").hidden = false;
  } else {
    const most = Math.max(...found.pieces.map((p) => Math.abs(p.importance)), 1e-12);
    $("explained").textContent = "\u201c" + found.label + "\u201d has " + score
      + ". What each word adds: orange speaks for it, blue against it.";
    const shown = [];
    found.pieces.forEach((piece, i) => {
      if (piece.second && (i === 0 || !found.pieces[i - 1].second)) shown.push(element("br"));
      const mark = element("mark", piece.text);
      const share = (0.75 * Math.abs(piece.importance)) / most;
      mark.style.background = "rgb(var(--" + (piece.importance >= 0 ? "for" : "against") + ") / " + share.toFixed(3) + ")";
      mark.title = amount(piece.importance);
      shown.push(mark);
    });
    $("pieces").replaceChildren(...shown);
    const order = [...found.pieces].sort((a, b) => b.importance - a.importance);
    $("piece-rows").replaceChildren(...order.map((piece) => {
      const row = element("tr");
      const name = element("th", piece.text);
      name.scope = "row";
      row.append(name, element("td", amount(piece.importance), "num"));
      return row;
    }));
    $("pieces").hidden = false;
    $("piece-list").hidden = false;
  }
  $("explanation").hidden = false;
  $("explanation").focus();
}

// ---------------------------------------------------------------- wiring

function wire() {
  $("file").addEventListener("change", () => {
    predictPicture($("file").files[0]);
    $("file").value = ""; // so that the same file can be chosen again
  });
  $("for-text").addEventListener("submit", (event) => { event.preventDefault(); predictText(); });
  for (const id of ["text", "text-pair"]) {
    $(id).addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); predictText(); }
    });
  }
  $("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    token = $("token").value.trim();
    sessionStorage.setItem("regraft-token", token);
    $("error").hidden = true;
    start().catch(fail);
  });
  $("explain").addEventListener("click", explain);
  // A file that misses the frame must not replace the page.
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
  document.addEventListener("dragover", () => $("drop").classList.add("over"));
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    $("drop").classList.remove("over");
    if (about && about.inputs === "picture") predictPicture(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData && event.clipboardData.files[0];
    if (file && about && about.inputs === "picture") predictPicture(file);
  });
}

takeToken();
wire();
start().catch(fail);
