/* What the model says: greedy answers of several questions side by side, the likeliest next words, the logit lens. */

/** softmax of one row of logits. */
export function softmax(logits, row, vocabulary) {
  const p = Float32Array.from(logits.subarray(row * vocabulary, (row + 1) * vocabulary));
  const most = p.reduce((a, b) => (a > b ? a : b));
  let sum = 0;
  for (let i = 0; i < p.length; i++) sum += p[i] = Math.exp(p[i] - most);
  for (let i = 0; i < p.length; i++) p[i] /= sum;
  return p;
}

/** The `count` largest of p as [token, probability], the largest first. */
export function likeliest(p, count) {
  const best = [];
  for (let i = 0; i < p.length; i++) {
    if (best.length === count && p[i] <= best[count - 1][1]) continue;
    best.push([i, p[i]]);
    best.sort((a, b) => b[1] - a[1]);
    best.length = Math.min(best.length, count);
  }
  return best;
}

/** Answers to prompts (lists of tokens), each step one token of every answer that goes on.
 *
 *  `said(answers)` is called after each token with [{ids, tops, done}], and may return false to stop; `tops` are the five
 *  likeliest tokens at each place. What the prompts begin with alike is read once.
 */
export async function answer(model, stop, prompts, most, said = async () => true) {
  const first = prompts[0], alike = Math.min(...prompts.map((ids) => shared(first, ids)), first.length - 1);
  const common = model.cache(alike);
  if (alike) model.read([{ cache: common, tokens: first.slice(0, alike) }]);
  const answers = prompts.map((ids) => ({
    ids: [], tops: [], done: false, cache: model.branch(common, ids.length + most), tokens: ids.slice(alike),
  }));
  for (let going = answers, step = 0; going.length && step < most; step++) {
    const x = model.read(going);
    let row = -1;
    const rows = going.map(({ tokens }) => (row += tokens.length));
    const logits = model.logits(x, rows);
    going.forEach((one, i) => {
      const p = softmax(logits, i, model.vocabulary);
      one.tops.push(likeliest(p, 5));
      const [[token]] = one.tops.at(-1);
      if (token === stop) one.done = true;
      else one.ids.push(token);
      one.tokens = [token];
    });
    going = going.filter(({ done }) => !done);
    if ((await said(answers)) === false) break;
  }
  return answers;
}

/** How many tokens two lists begin with alike. */
function shared(a, b) {
  let i = 0;
  while (i < a.length && i < b.length && a[i] === b[i]) i++;
  return i;
}

/** What each block's output at the last token would say, were it the last block's: its likeliest token, and the
 *  probabilities of some tokens (layers × tokens). */
export function lens(model, ids, tokens) {
  const { d, layers, vocabulary } = model, states = new Float32Array(layers * d);
  const watch = (layer, part, x) => {
    if (part === "x") states.set(x.subarray(x.length - d), layer * d);
  };
  model.read([{ cache: model.cache(ids.length), tokens: ids }], { watch });
  const logits = model.logits(states, Array.from({ length: layers }, (_, i) => i));
  return Array.from({ length: layers }, (_, i) => {
    const p = softmax(logits, i, vocabulary);
    return { top: likeliest(p, 1)[0], p: tokens.map((token) => p[token]) };
  });
}
