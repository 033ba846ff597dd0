/* What the page shows: the likeliest words, the search's curve, the questions with their answers, the edits, the inside. */

export function element(tag, text = "", more = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, more);
}

/** A word in quotes, so that the blank before it can be seen. */
export const quoted = (word) => JSON.stringify(word);

export function bars(list, top) {
  list.replaceChildren(...top.map(({ word, p }) => {
    const line = element("li");
    line.style.setProperty("--now", p);
    line.append(element("span", quoted(word)), element("span", `${(100 * p).toFixed(1)} %`));
    return line;
  }));
}

/** The target's probability (thick) and the loss in units of its first value (thin), of so many steps. */
export function curve(svg, rows, steps) {
  const x = (i) => 30 + (i * 280) / (steps - 1), y = (f) => 108 - 100 * Math.max(0, Math.min(1, f));
  const last = rows.at(-1), loss = (row) => row.loss / rows[0].loss, p = (row) => row.p;
  for (const [name, of, text] of [["p", p, "p(target)"], ["loss", loss, "loss"]]) {
    svg.querySelector(".real-" + name).setAttribute("points", rows.map((row, i) => `${x(i)},${y(of(row))}`).join(" "));
    const label = svg.querySelector(".real-name-" + name);
    const apart = Math.abs(y(p(last)) - y(loss(last))) > 12 ? 3 : name === "p" ? -5 : 9;
    label.setAttribute("x", x(rows.length - 1) + 5);
    label.setAttribute("y", Math.min(106, y(of(last)) + apart));
    label.textContent = text;
  }
  svg.setAttribute("aria-label", `The search for v*: after ${rows.length} steps the probability of the target is ` +
    `${last.p.toFixed(3)}, and the loss went from ${rows[0].loss.toFixed(2)} to ${last.loss.toFixed(2)}`);
}

/** A line of the table for a question; `changed` hears that the reader wrote another. It is made once and then filled. */
export function questionLine(row, changed) {
  const line = document.createElement("tr"), cell = document.createElement("td");
  const input = Object.assign(document.createElement("textarea"), { value: row.text, maxLength: 2000, rows: 2 });
  input.setAttribute("aria-label", `question, ${row.kind}`);
  input.addEventListener("change", () => changed(input.value));
  cell.append(input, element("small", row.kind));
  const answers = ["without edits", "now", "reach ρ"].map((label) => {
    const one = document.createElement("td");
    one.dataset.label = label;
    return one;
  });
  line.append(cell, ...answers);
  return Object.assign(row, { line, cells: answers });
}

export function fillLine({ cells: [before, now, reach], ...row }) {
  before.textContent = row.before ?? "";
  now.textContent = row.now ?? "";
  if (row.now && row.before !== undefined && row.now !== row.before) now.dataset.state = "other";
  else delete now.dataset.state;
  reach.textContent = row.reach ? `${row.reach.rho.toFixed(2)} at ${quoted(row.reach.word)}` : "";
}

/** An edit in the list, with a knob that scales it and a button that takes it back. */
export function editLine(edit, scale, undo) {
  const asked = edit.prompt.replace("{}", edit.subject), line = element("li", `“${asked}” → “${edit.target}”, layer ${edit.layer}`);
  const label = element("label", "strength "), out = element("output", edit.strength.toFixed(2));
  const knob = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 1.5, step: 0.05, value: edit.strength });
  knob.addEventListener("input", () => (out.textContent = Number(knob.value).toFixed(2)));
  knob.addEventListener("change", () => scale(Number(knob.value)));
  const button = element("button", "Undo", { type: "button", ariaLabel: `Undo the edit of “${asked}”` });
  button.addEventListener("click", undo);
  label.append(knob, out);
  line.append(label, button);
  return Object.assign(edit, { line, show() { knob.value = edit.strength; out.textContent = edit.strength.toFixed(2); } });
}

/** Vectors as columns of lines, all on one scale: [[name, numbers], …]. */
export function strips(place, vectors) {
  const most = Math.max(...vectors.flatMap(([, numbers]) => [...numbers].map(Math.abs)));
  place.append(...vectors.map(([name, numbers]) => {
    const figure = element("div", "", { className: "real-strip" }), n = numbers.length;
    const largest = [...numbers.keys()].sort((a, b) => Math.abs(numbers[b]) - Math.abs(numbers[a]))[0];
    const told = `${n.toLocaleString("en")} numbers, the largest ${numbers[largest].toFixed(1)}, at place ${largest}`;
    const path = Array.from(numbers, (x, i) => `M${i} 30V${(30 - (28 * x) / most).toFixed(2)}`).join("");
    figure.innerHTML = `<svg viewBox="0 0 ${n} 60" preserveAspectRatio="none" role="img"><path d="${path}"/></svg>`; // numbers alone
    figure.firstChild.setAttribute("aria-label", `${name}: ${told}`);
    figure.append(element("p", `${name} (${told})`));
    return figure;
  }));
}

/** The logit lens, the last layer first: the likeliest word and the target's probability, before and after. */
export function lensLines(body, { before, after }) {
  const lines = before.map((was, i) => {
    const line = document.createElement("tr"), now = after[i], word = element("td", quoted(now.word));
    if (now.word !== was.word) word.dataset.state = "other";
    const percent = (p) => element("td", `${(100 * p).toFixed(1)} %`);
    line.append(element("th", i, { scope: "row" }), element("td", quoted(was.word)), word, percent(was.target), percent(now.target));
    return line;
  });
  body.replaceChildren(...lines.reverse());
}
