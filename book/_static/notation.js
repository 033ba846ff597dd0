/* What a symbol means, where it is used: point at a formula, or tap it. The meanings come from the notation page. */
(function () {
  "use strict";
  const root = document.documentElement.dataset.content_root || "./";
  const page = root + "book/notation.html";
  const DELAY = 350; // milliseconds that a pointer has to rest
  let symbols = null, card = null, waiting = null, shownFor = null;

  /** Commands and letters, one after the other; spaces, braces and what only sets letters differently are left out. */
  function tokens(tex) {
    const plain = tex.replace(/\\(?:text|mathrm|mathbf|operatorname|left|right|,|;|!|bigl|bigr)(?![a-zA-Z])/g, " ");
    return (plain.match(/\\[a-zA-Z]+|[^\s{}]/g) || []).map((t) => (t === "\\ast" || t === "\\star" ? "*" : t));
  }

  /** The rows of the notation page: what is written, what it means, what it is called in the code. */
  async function load() {
    if (symbols) return symbols;
    const answer = await fetch(page);
    if (!answer.ok) throw new Error(String(answer.status));
    const there = new DOMParser().parseFromString(await answer.text(), "text/html");
    const found = [];
    there.querySelectorAll(".bd-article table").forEach((table) => {
      const heads = [...table.querySelectorAll("th")].map((th) => th.textContent.trim().toLowerCase());
      const meaning = heads.indexOf("meaning"), code = heads.indexOf("in code");
      if (heads[0] !== "symbol" || meaning < 0) return;
      table.querySelectorAll("tbody tr").forEach((row) => {
        const cells = row.children;
        cells[0].querySelectorAll(".math").forEach((span) => {
          const tex = span.textContent.replace(/^\\\(|\\\)$/g, "");
          found.push({ tex, tokens: tokens(tex), meaning: said(cells[meaning]), code: code < 0 ? "" : said(cells[code]) });
        });
      });
    });
    symbols = found.sort((a, b) => b.tokens.length - a.tokens.length);
    return symbols;
  }

  function said(cell) {
    return cell ? cell.textContent.trim() : "";
  }

  /** The symbols in a formula: longer ones first, each place taken once, in the order in which they stand. */
  function inside(tex, known) {
    const list = tokens(tex).map((t, i, all) => (t === "_" && all[i + 1] === "*" ? "^" : t)); // k_* is k^*
    const taken = list.map(() => false), found = [];
    for (const symbol of known) {
      const n = symbol.tokens.length;
      for (let i = 0; i + n <= list.length; i++) {
        if (taken.slice(i, i + n).some(Boolean) || symbol.tokens.some((t, j) => t !== list[i + j])) continue;
        taken.fill(true, i, i + n);
        if (!found.some(([, s]) => s === symbol)) found.push([i, symbol]);
      }
    }
    return found.sort((a, b) => a[0] - b[0]).map(([, symbol]) => symbol);
  }

  function texOf(span) {
    const list = window.MathJax && MathJax.startup && MathJax.startup.document;
    const item = list && list.getMathItemsWithin ? list.getMathItemsWithin([span])[0] : null;
    return item ? item.math : span.textContent.replace(/^\\[([]|\\[)\]]$/g, "");
  }

  async function show(span) {
    let known;
    try {
      known = await load();
    } catch {
      return; // without the page, as when a file is opened by itself, a formula is only a formula
    }
    const found = inside(texOf(span), known);
    if (!found.length) return;
    hide();
    card = document.createElement("div");
    card.className = "notation-card";
    card.setAttribute("role", "tooltip");
    card.id = "notation-card";
    const list = document.createElement("dl");
    for (const symbol of found) {
      const term = document.createElement("dt"), meaning = document.createElement("dd");
      term.textContent = "\\(" + symbol.tex + "\\)";
      meaning.textContent = symbol.meaning + (symbol.code ? " · in code: " + symbol.code : "");
      list.append(term, meaning);
    }
    const more = document.createElement("a");
    more.href = page;
    more.textContent = "All notation";
    card.append(list, more);
    document.body.append(card);
    if (window.MathJax && MathJax.typesetPromise) await MathJax.typesetPromise([card]);
    if (!card) return;
    const box = span.getBoundingClientRect(), width = Math.min(card.offsetWidth, window.innerWidth - 16);
    card.style.left = window.scrollX + Math.max(8, Math.min(box.left, window.innerWidth - width - 8)) + "px";
    const below = box.bottom + card.offsetHeight + 8 < window.innerHeight;
    card.style.top = window.scrollY + (below ? box.bottom + 6 : box.top - card.offsetHeight - 6) + "px";
    card.addEventListener("mouseleave", hide);
    span.setAttribute("aria-describedby", "notation-card");
    shownFor = span;
  }

  function hide() {
    clearTimeout(waiting);
    if (card) card.remove();
    if (shownFor) shownFor.removeAttribute("aria-describedby");
    card = shownFor = null;
  }

  const formula = (target) => (target.closest ? target.closest(".bd-article .math") : null);

  document.addEventListener("mouseover", (e) => {
    const span = formula(e.target);
    if (!span || span === shownFor) return;
    clearTimeout(waiting);
    waiting = setTimeout(() => show(span), DELAY);
  });
  document.addEventListener("mouseout", (e) => {
    if (!formula(e.target)) return;
    clearTimeout(waiting);
    const to = e.relatedTarget;
    if (card && !(to && (card.contains(to) || formula(to) === shownFor))) waiting = setTimeout(hide, DELAY);
  });
  document.addEventListener("mouseover", (e) => { if (card && card.contains(e.target)) clearTimeout(waiting); });
  document.addEventListener("focusin", (e) => { const span = formula(e.target); if (span) show(span); });
  document.addEventListener("click", (e) => {
    const span = formula(e.target);
    if (span) show(span);
    else if (card && !card.contains(e.target)) hide();
  });
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") hide(); });
})();
