/* The page: what the reader does, and what the worker with the model answers. Nothing starts before a button is pressed. */

import { startWorker } from "./engine.js";
import { SETTINGS } from "./rome.js";
import { bars, curve, editLine, element, fillLine, lensLines, questionLine, quoted, strips } from "./shown.js";
import { asPrompt, questionsFor, subjectOf } from "./suggest.js";

const root = document.getElementById("real"), $ = (name) => document.getElementById("real-" + name);
const DATA = new URL("../live_data/", import.meta.url).href, WEIGHTS = new URL("../real_data/", import.meta.url).href;
const FIELDS = { q: "question", s: "subject", t: "target", l: "layer" }; // in the address
const GO_ON = "real-load"; // in the session's storage: Load was pressed, and the page opened anew for threads
let about, worker, rows = [], edits = [], subjectTyped = false; // rows: the questions of step 4

/* ---- the worker ---- */

const waiting = new Map();
let calls = 0;

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

let turn = 0, busy = "", current = Promise.resolve();

/** Do one thing at a time; a sentence in `place` says what went wrong. What asks questions is stopped by what comes
 *  next, a search only by the Stop button. `act` is given a function that says whether it was stopped. */
async function doing(place, kind, act) {
  if (!worker) { $(place).textContent = "Load the model first: step 1."; return; }
  if (busy === "search") return;
  const mine = ++turn;
  if (busy) worker.postMessage({ what: "stop" });
  await current;
  if (mine !== turn) return;
  current = (async () => {
    setBusy(kind);
    try {
      await act(() => mine !== turn);
    } catch (error) {
      $(place).textContent = error.message;
    }
    setBusy("");
  })();
  await current;
}

function stop() {
  turn++;
  worker.postMessage({ what: "stop" });
}

/** "search", "answers" or nothing. Buttons are not disabled, which would take the keyboard's focus away. */
function setBusy(kind) {
  busy = kind;
  root.dataset.busy = String(Boolean(kind));
  for (const name of ["answer", "step", "size"]) $(name).setAttribute("aria-busy", String(Boolean(kind))); // read out when done
  for (const button of root.querySelectorAll("button")) {
    if (!["real-stop", "real-copy", "real-add"].includes(button.id)) button.setAttribute("aria-disabled", String(kind === "search"));
  }
  $("stop").setAttribute("aria-disabled", String(!kind));
}

/* ---- 1. the model ---- */

async function load() {
  if (!self.crossOriginIsolated && navigator.serviceWorker && !sessionStorage.getItem(GO_ON)) {
    try { // threads need two headers, which a service worker adds once the page is opened anew
      await navigator.serviceWorker.register("isolate.js", { scope: location.pathname });
      await Promise.race([navigator.serviceWorker.ready, new Promise((done) => setTimeout(done, 5000))]); // else it isolates nothing yet
      sessionStorage.setItem(GO_ON, "1");
      toAddress();
      return location.reload();
    } catch { /* one thread, then */ }
  }
  sessionStorage.removeItem(GO_ON);
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 4) : 1;
  $("load").disabled = true;
  delete root.dataset.failed;
  $("progress").hidden = false;
  $("status").textContent = "Fetching the model …";
  const made = startWorker("worker.js", import.meta.url), inMB = (bytes) => (bytes / 1e6).toFixed(0);
  try {
    worker = made;
    worker.onmessage = heard;
    const broken = new Promise((_, failed) => (worker.onerror = () => failed(new Error("The model's program could not start."))));
    const given = { manifest: about.manifest, weights: WEIGHTS, data: DATA, threads };
    const loaded = call("load", given, ({ bytes, all }) => {
      $("progress").value = bytes / all;
      $("bytes").textContent = `${inMB(bytes)} of ${inMB(all)} MB`;
    });
    const { threads: running, kept, memory } = await Promise.race([loaded, broken]);
    $("status").textContent = `SmolLM2-135M is here, on ${running === 1 ? "one thread" : running + " threads"}, in ${inMB(memory)} MB of memory. ` +
      (kept ? "The browser keeps it for your next visit." : "The browser had no room to keep it for your next visit.");
    root.dataset.loaded = String(running);
    $("progress").hidden = true;
    $("bytes").textContent = "";
    $("stop").disabled = false;
    setBusy("");
  } catch (error) {
    made.terminate();
    worker = undefined;
    $("status").textContent = `${error.message} ` + ($("progress").value ? "What was fetched is kept: press the button to go on. " : "") +
      "The stored edits above need no model.";
    $("load").disabled = false;
    root.dataset.failed = "true";
  }
}

/* ---- 2. ask ---- */

const question = () => ({ text: $("question").value, chat: $("chat").checked });
let asked; // the last answer, with the likeliest words at each place

function ask() {
  return doing("answer", "answers", async () => {
    if (!question().text.trim()) throw new Error("Type a question first.");
    $("answer").textContent = "…";
    const show = ([one], ended = false) => {
      asked = one;
      $("answer").textContent = said(one);
      $("words").hidden = false;
      $("word").max = one.tops.length;
      $("word").value = ended ? 1 : one.tops.length;
      showWord();
    };
    const answers = await call("ask", { questions: [question()], edited: true }, (news) => show(news));
    if (answers) show(answers, true);
  });
}

/** An answer; the dots say that the model would go on. */
const said = ({ text, done }) => (done ? text || "(it says nothing)" : text + " …");

function showWord() {
  const at = Number($("word").value) - 1, word = asked.words[at];
  bars($("next"), asked.tops[at]);
  $("word").nextElementSibling.textContent = `${at + 1} of ${asked.tops.length}`;
  $("word").setAttribute("aria-valuetext", `word ${at + 1}: ${word === undefined ? "the end" : quoted(word)}`);
}

/* ---- 3. edit ---- */

function edit() {
  return doing("step", "search", async (stopped) => {
    const { prompt, wrong } = asPrompt(question().text, $("subject").value, $("target").value);
    if (wrong) throw new Error(wrong);
    const { chat } = question(), given = { prompt, subject: $("subject").value, chat, layer: Number($("layer").value) };
    const apart = !chat && /^[\p{L}\p{N}]/u.test($("target").value) && /\S$/.test(question().text) ? " " : ""; // before a word that goes on
    given.target = apart + $("target").value;
    const steps = [];
    $("step").textContent = "Searching for v* …";
    const made = await call("edit", given, (row) => {
      steps.push(row);
      $("step").textContent = `Step ${row.step + 1} of at most ${SETTINGS.steps}: the target has probability ${row.p.toFixed(3)}, ` +
        `and ‖δ‖ is ${row.norm.toFixed(1)} of at most ${row.limit.toFixed(1)}.`;
      curve($("curve"), steps, SETTINGS.steps);
    });
    if (!made) { $("step").textContent = "Stopped. Nothing was written."; return; }
    $("step").textContent += " Written.";
    toAddress();
    add({ ...made, ...given, strength: 1 });
    renewRows(given.subject, question());
    setBusy("answers");
    await again(stopped);
  });
}

function add(one) {
  edits.push(editLine(one, (strength) => doing("size", "answers", async (stopped) => {
    one.strength = strength;
    await call("strength", { edit: one.id, strength });
    await again(stopped);
  }).then(() => one.show()), () => doing("size", "answers", async (stopped) => {
    await call("undo", { edit: one.id });
    edits = edits.filter((other) => other !== one);
    one.line.remove();
    (edits.at(-1)?.line.querySelector("button") ?? $("again")).focus(); // the button that had it is gone
    await again(stopped);
  })));
  $("edits").append(one.line);
}

/* ---- 4. what changed ---- */

let suggestedFor = "";

/** Questions about an edit, unless they are there already, perhaps changed by the reader. The reader's own stay, and
 *  those that earlier edits in force were about. */
function renewRows(subject, { text, chat }) {
  const wanted = JSON.stringify([subject, text, chat]);
  if (wanted === suggestedFor) return;
  suggestedFor = wanted;
  const fresh = questionsFor(text, subject, chat), about = edits.map((one) => one.prompt.replace("{}", one.subject));
  const old = rows.filter((row) => row.kind === "yours" || about.includes(row.text));
  const known = new Map(rows.map((row) => [row.text + row.chat, row.before]));
  const kept = old.filter((row) => !fresh.some((other) => other.text === row.text && other.chat === row.chat));
  rows = [...fresh.map((row) => newRow({ ...row, before: known.get(row.text + row.chat) })), ...kept];
  $("table").replaceChildren(...rows.map((row) => row.line));
  rows.forEach(fillLine);
}

function newRow(row) {
  return questionLine(row, (text) => {
    Object.assign(row, { text, before: undefined, now: undefined, reach: undefined });
    fillLine(row);
  });
}

/** All questions asked: without edits where that is not known yet, and with those in force. */
async function again(stopped) {
  const given = (some) => some.map(({ text, chat }) => ({ text, chat })), all = [...rows];
  const fresh = all.filter((row) => row.before === undefined && row.text.trim()), last = edits.at(-1);
  showSizes();
  for (const row of all) fillLine(Object.assign(row, { now: undefined, reach: undefined }));
  const into = (some, name) => (answers) => answers.forEach((one, i) => fillLine({ ...some[i], [name]: said(one) }));
  for (const [some, name, edited] of [[fresh, "before", false], [all.filter((row) => row.text.trim()), "now", true]]) {
    if (!some.length) continue;
    const answers = await call("ask", { questions: given(some), edited }, into(some, name));
    if (!answers || stopped()) return some.forEach(fillLine);
    answers.forEach((one, i) => fillLine(Object.assign(some[i], { [name]: said(one) })));
    if (name === "before" || !last) continue;
    const reach = await call("reach", { edit: last.id, questions: given(some) });
    reach.forEach((one, i) => fillLine(Object.assign(some[i], { reach: one })));
  }
  root.dataset.shown = JSON.stringify({ edits: edits.length, rows: rows.length });
}

function showSizes() {
  const one = (e) => `Layer ${e.layer}: ‖ΔW‖ is ${((100 * e.strength * e.size) / e.weight).toFixed(1)} % of ‖W‖.`;
  $("size").textContent = edits.map(one).join(" ") || "No edit is in force.";
}

/* ---- 5. look inside ---- */

function look() {
  return doing("sizes", "answers", async () => {
    const last = edits.at(-1);
    if (!last) throw new Error("Make an edit first: step 3.");
    const asking = { text: last.prompt.replace("{}", last.subject), chat: last.chat };
    const found = await call("inside", { edit: last.id, question: asking, target: last.target });
    $("sizes").textContent = `The key k* has length ${last.key.toFixed(2)}. The value was ${last.before.toFixed(1)} long and v* is ` +
      `${last.after.toFixed(1)}; δ, their difference, is ${last.delta.toFixed(1)}.`;
    $("strips").replaceChildren();
    strips($("strips"), [["key k*", found.key]]);
    strips($("strips"), [["value before", found.before], ["v*", found.value]]);
    lensLines($("lens"), found.lens);
    $("lens-box").hidden = false;
  });
}

/* ---- 6. share ---- */

function link() {
  const given = new URLSearchParams(Object.entries(FIELDS).map(([short, name]) => [short, $(name).value]));
  if (!$("chat").checked) given.set("c", "0");
  return location.href.split("#")[0] + "#" + given;
}

function toAddress() {
  $("link").value = link();
  history.replaceState(null, "", link());
}

/** Fill the fields in, as text; whether the address had any. */
function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [short, name] of Object.entries(FIELDS)) {
    if (given.has(short) && (name !== "layer" || about.layers.includes(Number(given.get(short))))) $(name).value = given.get(short).slice(0, 600);
  }
  if (given.has("q")) $("chat").checked = given.get("c") !== "0";
  if (given.has("q") && !given.has("s")) $("subject").value = subjectOf($("question").value);
  subjectTyped = given.has("s") && given.get("s") !== subjectOf($("question").value);
  return given.has("q");
}

function listen() {
  const on = (name, event, act) => $(name).addEventListener(event, act);
  const submit = (act) => (event) => { event.preventDefault(); act(); };
  const changed = () => { toAddress(); if (!edits.length) renewRows($("subject").value, question()); };
  on("load", "click", load);
  on("asking", "submit", submit(ask));
  on("word", "input", showWord);
  on("editing", "submit", submit(edit));
  on("stop", "click", stop);
  on("question", "input", () => { if (!subjectTyped) $("subject").value = subjectOf($("question").value); });
  on("question", "select", ({ target }) => {
    const chosen = target.value.slice(target.selectionStart, target.selectionEnd).trim();
    if (chosen && chosen !== target.value.trim()) { $("subject").value = chosen; changed(); }
  });
  on("subject", "input", () => (subjectTyped = Boolean($("subject").value)));
  for (const name of [...Object.values(FIELDS), "chat"]) on(name, "input", changed);
  on("adding", "submit", submit(() => {
    if (!$("also").value.trim()) return;
    rows.push(newRow({ kind: "yours", text: $("also").value, chat: question().chat }));
    $("table").append(rows.at(-1).line);
    $("also").value = "";
  }));
  on("again", "click", () => doing("size", "answers", again));
  on("look", "click", look);
  on("copy", "click", async () => {
    $("link").select();
    const copied = await navigator.clipboard?.writeText($("link").value).then(() => true, () => false);
    $("copied").textContent = copied ? "Copied." : "Press Ctrl+C to copy it.";
  });
  window.addEventListener("hashchange", () => { if (fromAddress()) { $("link").value = link(); changed(); } });
}

async function start() {
  let problem = "This copy of the site was built without the model; `make live` fetches it.";
  try {
    about = await (await fetch(DATA + "real.json")).json();
  } catch {
    problem = location.protocol === "file:" ? "Browsers let no page that was opened as a file fetch anything: use `make serve`." : "What this page needs could not be fetched.";
  }
  about ??= { layers: [4], manifest: null };
  $("layer").replaceChildren(...about.layers.map((l) => new Option(l, l, l === 4, l === 4)));
  $("subject").value = subjectOf($("question").value);
  const shared = fromAddress();
  $("link").value = link();
  renewRows($("subject").value, question());
  listen();
  if (about.manifest) {
    $("status").textContent = `The model is ${(about.manifest.bytes / 1e6).toFixed(0)} MB. It is fetched only when you press the button, runs on your machine, and is kept by the browser for your next visit.`;
    $("load").disabled = false;
    if (sessionStorage.getItem(GO_ON)) load();
  } else $("status").textContent = `${problem} The stored edits above need no model.`;
  if (shared) root.scrollIntoView();
  window.realModel = { call };
  root.dataset.ready = "true";
}

start();
