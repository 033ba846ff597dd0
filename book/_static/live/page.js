/* The knobs, the bars and the grid around the model of model.js. Nothing leaves the page. */
"use strict";

(function () {
  const root = document.getElementById("live");
  if (!root) return;
  const $ = (name) => document.getElementById("live-" + name);
  const COLUMNS = 40, ROWS = 25, MOST = 4; // cells of the grid; namesakes that are shown
  const here = document.currentScript.src.replace(/live\/page\.js.*$/, "");
  const FIRST = { fact: 0, method: "rome", layer: 0, strength: 1, inverse: true, many: 20, lambda: 1, threshold: -0.7 };
  let model, grid, base, near, states = [], shares = [], answers = [], cursor = null;
  let state = { ...FIRST }, asked = false, busy = false;
  const keys = new Map(); // of each layer that was written to: all facts' keys, unedited
  const order = shuffled(1000);

  /* ---- what is asked ---- */

  function shuffled(n) { // the same for everybody, so that a link shows the same
    const list = Array.from({ length: n }, (_, i) => i);
    let seed = 12345;
    for (let i = n - 1; i > 0; i--) {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      const j = (seed >>> 8) % (i + 1);
      [list[i], list[j]] = [list[j], list[i]];
    }
    return list;
  }

  const facts = () => model.about.facts;

  /** The fact itself, three wordings, the same person's other facts, and namesakes. */
  function around(i) {
    const fact = facts()[i], family = fact.subject.split(" ")[1];
    const rows = [{ i, text: fact.text, ids: fact.ids, kind: "asked" }];
    fact.reworded.forEach(([text, ids]) => rows.push({ i, text, ids, kind: "reworded" }));
    facts().forEach((f, j) => {
      if (j !== i && f.subject === fact.subject) rows.push({ i: j, text: f.text, ids: f.ids, kind: "same person" });
    });
    facts().map((f, j) => [f, j])
      .filter(([f]) => f.subject !== fact.subject && f.subject.split(" ")[1] === family && f.attribute === fact.attribute)
      .slice(0, MOST).forEach(([f, j]) => rows.push({ i: j, text: f.text, ids: f.ids, kind: "namesake" }));
    return { rows, plan: tinyworld.plan(rows.map((row) => row.ids)) };
  }

  function top(probabilities, row) {
    const size = model.about.vocabulary, from = row * size;
    let best = 0;
    for (let i = 1; i < size; i++) if (probabilities[from + i] > probabilities[from + best]) best = i;
    return [best, probabilities[from + best]];
  }

  const word = (token) => (token === model.about.refusal ? "I do not know" : model.about.words[token]);
  const kindOf = (fact, token) => (token === fact.answer ? "right" : token === model.about.refusal ? "refused" : "other");

  /* ---- the write ---- */

  function written() {
    if (state.method === "none") return [];
    if (state.method === "rome") return [state.fact];
    return [state.fact, ...order.filter((i) => i !== state.fact)].slice(0, state.many);
  }

  async function write() {
    model.restore();
    if (state.method === "none") return 0;
    const { d, dk } = model.about, layer = await model.layer(state.layer);
    if (!keys.has(state.layer)) keys.set(state.layer, model.run(grid, state.layer).keys);
    const key = (i) => keys.get(state.layer).subarray(i * dk, (i + 1) * dk);
    let delta;
    if (state.method === "rome") {
      const i = state.fact;
      delta = tinyworld.romeWrite(layer, key(i), layer.rome.subarray(i * d, (i + 1) * d), state.inverse);
    } else {
      const some = written();
      const how = { method: state.method, lambda: 10 ** state.lambda, threshold: 10 ** state.threshold, l2: 1 };
      delta = tinyworld.batchWrite(layer, some.map(key), some.map((i) => layer.memit.subarray(i * d, (i + 1) * d)), how);
    }
    model.write(state.layer, delta, state.strength);
    return model.share(state.layer, delta, state.strength);
  }

  /* ---- showing ---- */

  const percent = (p) => (p > 0 && p < 0.0005 ? "< 0.1 %" : (100 * p).toFixed(1) + " %");

  function showAnswers(before, now, size) {
    const fact = facts()[state.fact], vocabulary = model.about.vocabulary;
    $("question").textContent = fact.text;
    const picked = new Set([fact.answer, model.about.refusal, ...best(before), ...best(now)]);
    const bars = [...picked].sort((a, b) => now[b] - now[a]).slice(0, 5);
    $("bars").replaceChildren(...bars.map((token) => {
      const item = document.createElement("li");
      item.dataset.state = kindOf(fact, token);
      item.style.setProperty("--now", now[token]);
      item.style.setProperty("--before", before[token]);
      item.append(text("span", word(token)), text("span", `${percent(now[token])} (before ${percent(before[token])})`));
      return item;
    }));
    $("size").textContent = state.method === "none" ? "Nothing is written: W is as it was trained."
      : `‖ΔW‖ is ${(100 * size).toFixed(1)} % of ‖W‖ in layer ${state.layer}; ${written().length} of 1,000 facts are written.`;
    function best(p) {
      return Array.from({ length: vocabulary }, (_, i) => i).sort((a, b) => p[b] - p[a]).slice(0, 3);
    }
  }

  function text(tag, content) {
    const element = document.createElement(tag);
    element.textContent = content;
    return element;
  }

  function showNear(before, now) {
    $("table").replaceChildren(...near.rows.slice(1).map((row, k) => {
      const line = document.createElement("tr"), fact = facts()[row.i];
      const [was] = top(before, k + 1), [is] = top(now, k + 1);
      const question = text("td", row.text);
      question.append(text("small", row.kind));
      const cell = text("td", word(is));
      cell.dataset.state = kindOf(fact, is);
      line.append(question, text("td", word(was)), cell);
      return line;
    }));
  }

  function colours() {
    const style = getComputedStyle(root);
    return Object.fromEntries(["right", "refused", "other"].map((s) => [s, style.getPropertyValue("--live-" + s)]));
  }

  function draw() {
    const canvas = $("canvas"), paint = canvas.getContext("2d"), colour = colours();
    const w = canvas.width / COLUMNS, h = canvas.height / ROWS;
    paint.clearRect(0, 0, canvas.width, canvas.height);
    const some = new Set(model ? written() : [0]);
    states.forEach((s, i) => {
      const x = (i % COLUMNS) * w, y = Math.floor(i / COLUMNS) * h;
      paint.fillStyle = colour[s];
      paint.globalAlpha = model ? 0.35 + 0.65 * shares[i] : 1;
      paint.fillRect(x + 1, y + 1, w - 2, h - 2);
      paint.globalAlpha = 1;
      if (some.has(i) || i === cursor) {
        paint.strokeStyle = getComputedStyle(root).color;
        paint.lineWidth = i === cursor ? 4 : 2;
        paint.strokeRect(x + 2, y + 2, w - 4, h - 4);
      }
    });
    $("summary").textContent = summary(some);
  }

  function summary(some) {
    const count = (s, inside) => states.filter((x, i) => x === s && (inside === undefined || some.has(i) === inside)).length;
    const others = 1000 - some.size;
    const all = `Of 1,000 facts ${count("right")} are answered rightly, ${count("refused")} are refused, ` +
      `${count("other")} are answered by something else.`;
    if (!some.size) return all;
    return `${all} Written: ${count("refused", true)} of ${some.size} are refused. ` +
      `Not written: ${count("right", false)} of ${others} are still right.`;
  }

  function tellCell(i) {
    if (!model || !(i >= 0 && i < 1000)) return;
    cursor = i;
    const fact = facts()[i];
    $("cell").textContent = `${fact.text} ${word(answers[i])}, ${percent(shares[i])} (true: ${fact.value})` +
      (written().includes(i) ? "; this fact is written" : "");
    draw();
  }

  function showGrid(result) {
    states = facts().map((fact, i) => {
      [answers[i], shares[i]] = top(result.probabilities, i);
      return kindOf(fact, answers[i]);
    });
    draw();
  }

  /* ---- the loop: the latest state wins ---- */

  const pause = () => new Promise((go) => setTimeout(go, 0));

  async function update() {
    asked = true;
    if (busy || !model) return;
    busy = true;
    root.dataset.busy = "true";
    try {
      while (asked) {
        asked = false;
        near = around(state.fact);
        model.restore();
        const before = model.run(near.plan).probabilities;
        const size = await write();
        const now = model.run(near.plan).probabilities;
        showAnswers(before, now, size);
        showNear(before, now);
        await pause();
        if (asked) continue;
        const began = performance.now();
        showGrid(state.method === "none" ? base : model.run(grid));
        root.dataset.milliseconds = Math.round(performance.now() - began);
        $("status").textContent = `The model runs in this page: 1,000 questions in ${root.dataset.milliseconds} ms. ` +
          "Nothing is sent anywhere.";
      }
    } catch (error) {
      $("status").textContent = `Something went wrong (${error.message}): load the page again.`;
    }
    busy = false;
    root.dataset.busy = "false";
    root.dataset.shown = JSON.stringify(state);
  }

  /* ---- the knobs ---- */

  const NUMBERS = { layer: 0, strength: 2, many: 0, lambda: 2, threshold: 2 };

  function showKnobs() {
    root.querySelectorAll("[data-for]").forEach((label) => {
      label.hidden = !label.dataset.for.split(" ").includes(state.method);
    });
    for (const [name, digits] of Object.entries(NUMBERS)) {
      const input = $(name), shown = ["lambda", "threshold"].includes(name) ? 10 ** state[name] : state[name];
      input.value = state[name];
      const said = name === "lambda" || name === "threshold" ? String(Number(shown.toPrecision(2))) : Number(shown).toFixed(digits);
      input.nextElementSibling.textContent = said;
      input.setAttribute("aria-valuetext", said);
    }
    $("inverse").checked = state.inverse;
    root.querySelectorAll("[name=live-method]").forEach((radio) => { radio.checked = radio.value === state.method; });
    if (model) {
      const fact = facts()[state.fact];
      $("person").value = fact.subject;
      $("attribute").value = fact.attribute;
    }
  }

  function change(given) {
    state = { ...state, ...given };
    const short = Object.entries(state).filter(([name, value]) => value !== FIRST[name]);
    history.replaceState(null, "", short.length ? "#" + new URLSearchParams(short) : location.pathname + location.search);
    showKnobs();
    update();
  }

  function fromLink() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const [name, value] of given) {
      if (!(name in FIRST)) continue;
      if (name === "method") { if (["none", "rome", "memit", "alphaedit"].includes(value)) state.method = value; continue; }
      if (name === "inverse") { state.inverse = value === "true"; continue; }
      const input = $(name), number = Number(value);
      const [least, most] = name === "fact" ? [0, 999] : [Number(input.min), Number(input.max)];
      if (value !== "" && number >= least && number <= most) state[name] = name === "fact" ? Math.round(number) : number;
    }
  }

  function chosen() {
    const i = facts().findIndex((f) => f.subject === $("person").value && f.attribute === $("attribute").value);
    change({ fact: i });
  }

  function cellAt(event) {
    const box = $("canvas").getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * COLUMNS);
    const row = Math.floor(((event.clientY - box.top) / box.height) * ROWS);
    return Math.min(ROWS - 1, Math.max(0, row)) * COLUMNS + Math.min(COLUMNS - 1, Math.max(0, column));
  }

  function listen() {
    for (const name of Object.keys(NUMBERS)) $(name).addEventListener("input", (e) => change({ [name]: Number(e.target.value) }));
    $("inverse").addEventListener("change", (e) => change({ inverse: e.target.checked }));
    $("reset").addEventListener("click", () => change({ ...FIRST }));
    root.querySelectorAll("[name=live-method]").forEach((radio) =>
      radio.addEventListener("change", (e) => change({ method: e.target.value })));
    $("person").addEventListener("change", chosen);
    $("attribute").addEventListener("change", chosen);
    const canvas = $("canvas");
    canvas.addEventListener("pointermove", (e) => tellCell(cellAt(e)));
    canvas.addEventListener("click", (e) => { const i = cellAt(e); tellCell(i); if (model) change({ fact: i }); });
    canvas.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -COLUMNS, ArrowDown: COLUMNS }[e.key];
      if (step) { e.preventDefault(); tellCell(Math.min(999, Math.max(0, (cursor ?? -step) + step))); }
      if (e.key === "Enter" && cursor !== null && model) change({ fact: cursor });
    });
    new MutationObserver(draw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  }

  /** Until the model is here: a stored result of the first state. */
  function replay() {
    states = [...window.liveExample.states].map((s) => ({ r: "right", "-": "refused", o: "other" })[s]);
    showKnobs();
    draw();
  }

  async function start() {
    $("status").textContent = "Fetching the model, 4 MB …";
    try {
      model = await tinyworld.loadModel(here + "live_data/");
    } catch (error) {
      $("status").textContent = location.protocol === "file:"
        ? "A stored result is shown. The model itself can be fetched only from a server: `make serve` is one."
        : `The model could not be fetched (${error.message}); a stored result is shown.`;
      return;
    }
    grid = tinyworld.plan(facts().map((f) => f.ids), facts().map((f) => f.at));
    base = model.run(grid);
    const names = [...new Set(facts().map((f) => f.subject))], kinds = [...new Set(facts().map((f) => f.attribute))];
    $("person").replaceChildren(...names.sort().map((name) => new Option(name)));
    $("attribute").replaceChildren(...kinds.map((name) => new Option(name)));
    window.liveModel = { model, grid, facts: facts(), written, states: () => states };
    showKnobs();
    await update();
  }

  fromLink();
  listen();
  replay();
  new IntersectionObserver((seen, observer) => {
    if (seen.some((entry) => entry.isIntersecting)) { observer.disconnect(); start(); }
  }).observe(root);
})();
