/* Stored edits of SmolLM2: the reader chooses, the page shows. Made by benchmarks/playground.py. */
"use strict";

(function () {
  const root = document.getElementById("play");
  if (!root) return;
  const $ = (name) => document.getElementById("play-" + name);
  const folder = document.currentScript.src.replace(/live\/playground\.js.*$/, "live_data/");
  const NAMES = { rome: "ROME", memit: "MEMIT", alphaedit: "AlphaEdit", grace: "GRACE", wise: "WISE" };
  const STATES = { t: "right", r: "refused", o: "other" };
  let stored;

  const rows = () => stored.edits.filter((e) => e.fact === $("fact").value && e.method === $("method").value);

  function steps(input, values, wanted) {
    input.max = values.length - 1;
    input.disabled = values.length < 2;
    let i = values.indexOf(wanted);
    if (i < 0) i = Math.min(Number(input.value), values.length - 1);
    input.value = i;
    input.nextElementSibling.textContent = values[i];
    input.setAttribute("aria-valuetext", values[i]);
    return values[i];
  }

  function cell(tag, content, state) {
    const element = document.createElement(tag);
    element.textContent = content;
    if (state) element.dataset.state = state;
    return element;
  }

  function show(wantedLayer, wantedStrength) {
    const layer = steps($("layer"), rows().map((e) => e.layer), wantedLayer);
    const edit = rows().find((e) => e.layer === layer);
    const strength = steps($("strength"), Object.keys(edit.answers), wantedStrength);
    const fact = stored.facts.find((f) => f.subject === edit.fact);
    const before = stored.unedited.find((u) => u.run === edit.fact).answers, now = edit.answers[strength];
    const once = fact.asked.map(([, text], i) => i).filter((i) => fact.asked.findIndex(([, t]) => t === fact.asked[i][1]) === i);
    $("table").replaceChildren(...once.map((i) => {
      const [kind, text] = fact.asked[i];
      const line = document.createElement("tr"), question = cell("td", text);
      question.append(cell("small", kind));
      line.append(question, cell("td", before[i][1]), cell("td", now[i][1], STATES[now[i][0]]));
      return line;
    }));
    const about = (kinds) => once.filter((i) => kinds.includes(fact.asked[i][0]));
    const inside = about(["asked", "reworded"]), outside = about(["neighbour", "same subject", "unrelated", "same relation"]);
    const knew = outside.filter((i) => before[i][0] === "t");
    const size = edit.size ? `‖ΔW‖ is ${(100 * edit.size * Number(strength)).toFixed(1)} % of ‖W‖` : "no weight is changed";
    $("summary").textContent = `${NAMES[edit.method]}, layer ${layer}, strength ${strength}: ${size}. ` +
      `Refused: ${inside.filter((i) => now[i][0] === "r").length} of ${inside.length} wordings. ` +
      `Still told beside it: ${knew.filter((i) => now[i][0] === "t").length} of ${knew.length}.`;
    root.dataset.shown = [edit.fact, edit.method, layer, strength].join("/");
  }

  async function start() {
    try {
      const answer = await fetch(folder + "playground.json");
      if (!answer.ok) throw new Error(String(answer.status));
      stored = await answer.json();
    } catch (error) {
      $("summary").textContent = location.protocol === "file:"
        ? "The stored answers can be fetched only from a server: `make serve` is one."
        : `The stored answers could not be fetched (${error.message}).`;
      return;
    }
    $("fact").replaceChildren(...stored.facts.map((f) => new Option(f.asked[0][1], f.subject)));
    const methods = [...new Set(stored.edits.map((e) => e.method))];
    $("method").replaceChildren(...methods.map((m) => new Option(NAMES[m], m)));
    $("fact").addEventListener("change", () => show());
    $("method").addEventListener("change", () => show(undefined, "1.0"));
    $("layer").addEventListener("input", () => show());
    $("strength").addEventListener("input", () => show());
    show(4, "1.0");
  }

  start();
})();
