/* The page: what the reader does, and what the worker with the model says. Nothing starts before a button is pressed. */

import { startWorker } from "./engine.js";
import { asPrompt, questionsFor, subjectOf } from "./suggest.js";

const root = document.getElementById("real"), $ = (name) => document.getElementById("real-" + name);
const DATA = new URL("../live_data/", import.meta.url).href, WEIGHTS = new URL("../real_data/", import.meta.url).href;
const FIELDS = { q: "question", s: "subject", t: "target", l: "layer" };
const GO_ON = "real-load"; // in the session's storage: the reader has pressed Load, and the page was opened anew for threads
let about, worker, rows = [], edits = [], subjectTyped = false, busy = false, calls = 0;
const waiting = new Map();

/** Ask the worker for something; `news` hears what comes meanwhile. */
function call(what, given = {}, news = () => {}) {
  const id = ++calls;
  worker.postMessage({ id, what, ...given });
  return new Promise((done, failed) => waiting.set(id, { done, failed, news }));
}

function heard({ data: { id, done, error, news } }) {
  const one = waiting.get(id);
  if (news !== undefined) return one.news(news);
  waiting.delete(id);
  return error === undefined ? one.done(done) : one.failed(new Error(error));
}

/** Do one thing at a time; what goes wrong is a sentence in `place`. */
async function doing(place, act) {
  if (busy) return;
  setBusy(true);
  try {
    await act();
  } catch (error) {
    $(place).textContent = error.message;
  }
  setBusy(false);
}

function setBusy(now) {
  busy = now;
  root.dataset.busy = String(now);
  for (const name of ["ask", "edit", "add", "again"]) $(name).disabled = now || !worker;
  $("look").disabled = now || !worker || !edits.length;
  $("stop").disabled = !now || !worker;
  for (const control of $("edits").querySelectorAll("button, input")) control.disabled = now;
}

function element(tag, text, more = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, more);
}

/* ---- 1. the model ---- */

async function load() {
  if (!self.crossOriginIsolated && navigator.serviceWorker && !sessionStorage.getItem(GO_ON)) {
    try { // threads need two headers, which a service worker adds once the page is opened anew
      await navigator.serviceWorker.register("isolate.js", { scope: location.pathname });
      sessionStorage.setItem(GO_ON, "1");
      return location.reload();
    } catch { /* one thread, then */ }
  }
  sessionStorage.removeItem(GO_ON);
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 4) : 1;
  $("load").disabled = true;
  delete root.dataset.failed;
  $("progress").hidden = false;
  worker = startWorker("worker.js", import.meta.url);
  worker.onmessage = heard;
  worker.onerror = (event) => ($("status").textContent = `The model's worker could not start (${event.message || "unknown"}).`);
  try {
    const made = await call("load", { manifest: about.manifest, weights: WEIGHTS, data: DATA, threads }, ({ bytes, all }) => {
      $("progress").value = bytes / all;
      $("status").textContent = `Fetching the model: ${(bytes / 1e6).toFixed(0)} of ${(all / 1e6).toFixed(0)} MB`;
    });
    $("status").textContent = `SmolLM2-135M is here, on ${made.threads === 1 ? "one thread" : made.threads + " threads"}. ` +
      (made.kept ? "The browser keeps it for your next visit." : "The browser had no room to keep it for your next visit.");
    root.dataset.loaded = String(made.threads);
    $("progress").hidden = true;
    setBusy(false);
  } catch (error) {
    worker.terminate();
    worker = undefined;
    $("status").textContent = `${error.message} What was fetched is kept: press the button to go on.`;
    $("load").disabled = false;
    root.dataset.failed = "true";
  }
}

/* ---- 2. ask ---- */

const question = () => ({ text: $("question").value, chat: $("chat").checked });

function ask() {
  return doing("answer", async () => {
    if (!question().text.trim()) throw new Error("Type a question first.");
    $("answer").textContent = "…";
    const show = ([one]) => {
      $("answer").textContent = one.text;
      $("next").replaceChildren(...one.top.map(({ word, p }) => {
        const line = element("li", "");
        line.style.setProperty("--now", p);
        line.append(element("span", JSON.stringify(word)), element("span", `${(100 * p).toFixed(1)} %`));
        return line;
      }));
    };
    show(await call("ask", { questions: [question()], edited: true }, show));
    root.dataset.asked = question().text;
  });
}

/* ---- 3. edit ---- */

function edit() {
  return doing("step", async () => {
    const { prompt, wrong } = asPrompt(question().text, $("subject").value, $("target").value);
    if (wrong) throw new Error(wrong);
    const given = { prompt, subject: $("subject").value, target: $("target").value, chat: question().chat, layer: Number($("layer").value) };
    rows = questionsFor(question().text, given.subject, given.chat);
    const curve = [];
    const made = await call("edit", given, (row) => {
      curve.push(row);
      $("step").textContent = `Step ${row.step + 1}: the target has probability ${row.p.toFixed(3)}, ‖δ‖ is ${row.norm.toFixed(1)} of at most ${row.limit.toFixed(1)}`;
      draw(curve);
    });
    if (!made) { $("step").textContent = "Stopped: nothing was written."; return; }
    edits.push({ ...made, ...given, strength: 1 });
    $("step").textContent += ". Written.";
    showEdits();
    await again();
  });
}

function draw(curve) {
  const x = (i) => 10 + i * (380 / 24), points = (f) => curve.map((row, i) => `${x(i)},${110 - 100 * Math.max(0, Math.min(1, f(row)))}`).join(" ");
  $("curve").querySelector(".real-p").setAttribute("points", points((row) => row.p));
  $("curve").querySelector(".real-loss").setAttribute("points", points((row) => row.loss / curve[0].loss));
  const last = curve.at(-1);
  $("curve").setAttribute("aria-label", `The search for v*: after ${curve.length} steps the target's probability is ${last.p.toFixed(3)}, the loss ${last.loss.toFixed(3)}`);
}

/* ---- 4. what changed ---- */

function showEdits() {
  $("edits").replaceChildren(...edits.map((one) => {
    const line = element("li", `“${one.prompt.replace("{}", one.subject)}” → “${one.target}”, layer ${one.layer} `);
    const label = element("label", "strength "), out = element("output", one.strength.toFixed(2));
    const knob = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 1.5, step: 0.05, value: one.strength });
    knob.addEventListener("change", () => doing("size", async () => {
      one.strength = Number(knob.value);
      out.textContent = one.strength.toFixed(2);
      await call("strength", { edit: one.id, strength: one.strength });
      await again();
    }));
    label.append(knob, out);
    const undo = element("button", "Undo", { type: "button" });
    undo.addEventListener("click", () => doing("size", async () => {
      await call("undo", { edit: one.id });
      edits = edits.filter((other) => other !== one);
      showEdits();
      await again();
    }));
    line.append(label, undo);
    return line;
  }));
  $("size").textContent = edits.map((one) => `‖ΔW‖ is ${(100 * one.strength * one.size / one.weight).toFixed(1)} % of ‖W‖ in layer ${one.layer}.`).join(" ");
}

/** All questions asked again: without edits where that is not known yet, and with those in force. */
async function again() {
  if (!rows.length) rows = questionsFor(question().text, $("subject").value, question().chat);
  const ask = rows.map(({ text, chat }) => ({ text, chat })), fresh = rows.filter((row) => row.before === undefined);
  const into = (some, name) => (answers) => { answers.forEach((one, i) => (some[i][name] = one.text)); showTable(); };
  rows.forEach((row) => (row.now = ""));
  if (fresh.length) into(fresh, "before")(await call("ask", { questions: fresh.map(({ text, chat }) => ({ text, chat })), edited: false }, into(fresh, "before")));
  into(rows, "now")(await call("ask", { questions: ask, edited: true }, into(rows, "now")));
  const last = edits.at(-1);
  const reach = last ? await call("reach", { edit: last.id, questions: ask }) : [];
  rows.forEach((row, i) => (row.reach = reach[i]));
  showTable();
  showEdits();
  root.dataset.shown = JSON.stringify({ edits: edits.length, rows: rows.length });
}

function showTable() {
  $("table").replaceChildren(...rows.map((row) => {
    const line = document.createElement("tr"), cell = document.createElement("td");
    const input = Object.assign(document.createElement("input"), { value: row.text, maxLength: 600, ariaLabel: `question, ${row.kind}` });
    input.addEventListener("change", () => Object.assign(row, { text: input.value, before: undefined, now: "", reach: undefined }));
    cell.append(input, element("small", row.kind));
    const now = element("td", row.now ?? "");
    if (row.now && row.now !== row.before) now.dataset.state = "other";
    line.append(cell, element("td", row.before ?? ""), now,
      element("td", row.reach ? `${row.reach.rho.toFixed(2)} at ${JSON.stringify(row.reach.word)}` : ""));
    return line;
  }));
}

/* ---- 5. look inside ---- */

function look() {
  return doing("sizes", async () => {
    const last = edits.at(-1), found = await call("lens", { question: { text: last.prompt.replace("{}", last.subject), chat: last.chat }, target: last.target });
    $("sizes").textContent = `The key has length ${last.key.toFixed(2)}, the value before ${last.before.toFixed(1)}, v* ${last.after.toFixed(1)}, and δ ${last.delta.toFixed(1)}.`;
    $("lens").replaceChildren(...found.before.map((before, i) => {
      const after = found.after[i], line = document.createElement("tr");
      line.append(element("th", i, { scope: "row" }), element("td", JSON.stringify(before.word)), element("td", JSON.stringify(after.word)),
        element("td", before.target.toFixed(3)), element("td", after.target.toFixed(3)));
      return line;
    }));
  });
}

/* ---- 6. share ---- */

function toAddress() {
  const given = new URLSearchParams(Object.entries(FIELDS).map(([short, name]) => [short, $(name).value]));
  if (!$("chat").checked) given.set("c", "0");
  history.replaceState(null, "", "#" + given);
  $("link").value = location.href;
}

function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [short, name] of Object.entries(FIELDS)) {
    if (given.has(short) && (name !== "layer" || about.layers.includes(Number(given.get(short))))) $(name).value = given.get(short).slice(0, 600);
  }
  $("chat").checked = given.get("c") !== "0";
  subjectTyped = given.has("s");
}

function listen() {
  const on = (name, event, act) => $(name).addEventListener(event, act);
  const submit = (act) => (event) => { event.preventDefault(); if (worker) act(); };
  on("load", "click", load);
  on("asking", "submit", submit(ask));
  on("editing", "submit", submit(edit));
  on("stop", "click", () => worker.postMessage({ what: "stop" }));
  on("question", "input", () => { if (!subjectTyped) $("subject").value = subjectOf($("question").value); rows = []; });
  on("question", "select", ({ target }) => {
    const chosen = target.value.slice(target.selectionStart, target.selectionEnd).trim();
    if (chosen && chosen !== target.value.trim()) { $("subject").value = chosen; toAddress(); }
  });
  on("subject", "input", () => (subjectTyped = Boolean($("subject").value)));
  for (const name of [...Object.values(FIELDS), "chat"]) on(name, "input", toAddress);
  on("add", "click", () => {
    if (!$("also").value.trim()) return;
    if (!rows.length) rows = questionsFor(question().text, $("subject").value, question().chat);
    rows.push({ kind: "yours", text: $("also").value, chat: question().chat });
    $("also").value = "";
    showTable();
  });
  on("again", "click", () => doing("size", again));
  on("look", "click", look);
  on("copy", "click", () => { $("link").select(); navigator.clipboard?.writeText($("link").value).catch(() => {}); });
}

async function start() {
  let problem = "";
  try {
    about = await (await fetch(DATA + "real.json")).json();
  } catch {
    problem = location.protocol === "file:" ? "The model can be fetched only from a server: `make serve` is one." : "What this page needs could not be fetched.";
  }
  about ??= { layers: [4], manifest: null };
  $("layer").replaceChildren(...about.layers.map((l) => new Option(l, l, l === 4, l === 4)));
  $("subject").value = subjectOf($("question").value);
  fromAddress();
  toAddress();
  listen();
  if (about.manifest) {
    $("status").textContent = `The model is ${(about.manifest.bytes / 1e6).toFixed(0)} MB. It is fetched when you press the button, runs on your machine, and is kept by the browser. Until then, stored edits are shown below.`;
    $("load").disabled = false;
    if (sessionStorage.getItem(GO_ON)) load();
  } else $("status").textContent = problem || "This copy of the site was built without the model (`make live` fetches it). Stored edits are shown below.";
  window.realModel = { call };
  root.dataset.ready = "true";
}

start();
