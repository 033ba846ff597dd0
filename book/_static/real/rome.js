/* ROME in the page: the search for v*, and the write. The same loss, steps and stopping as minilib's (values.py, rome.py).
 *
 *   loss = −log p(target) / (number of its tokens) + kl_factor · KL(p_edited ‖ p_original) at the subject in "{} is a"
 *          + weight_decay · ‖δ‖ / ‖v₀‖²,        ‖δ‖ ≤ clamp_factor · ‖v₀‖
 *
 * δ is added to what the layer's W writes at the subject's last token. Only what depends on it is computed in each step:
 * the blocks above the layer, for the tokens from the subject on. What is left of the subject is kept in the caches.
 */

import { softmax } from "./answers.js";
import { backward, logitsBack } from "./backward.js";
import { dot } from "./model.js";

export const SETTINGS = { steps: 25, lr: 0.5, weight_decay: 1e-3, clamp_factor: 4, kl_factor: 0.0625, stop_loss: 0.05 };

/** v* for a request: {ids, subject, target} in tokens, and `about`, the same {ids, subject} for "{} is a".
 *
 *  `told(row)` is called at each step with {step, loss, nll, kl, decay, norm, limit, p}, and may return false to stop:
 *  then there is no result. Returns {delta, v0, key, trace}.
 */
export async function findValue(model, request, about, layer, settings, told = async () => true) {
  const s = { ...SETTINGS, ...settings }, { d, dk, engine, vocabulary } = model;
  const objective = new Objective(model, request, about, layer);
  const { v0 } = objective, size0 = Math.sqrt(dot(v0, v0, 0, 0, d)), limit = s.clamp_factor * size0;
  const delta = new Float32Array(d), m = new Float32Array(d), v = new Float32Array(d), trace = [];
  for (let step = 0; ; step++) {
    const { nll, kl, gradient } = objective.at(delta, s.kl_factor);
    const norm = Math.sqrt(dot(delta, delta, 0, 0, d)), decay = (s.weight_decay * norm) / size0 ** 2;
    const row = { step, loss: nll + kl + decay, nll, kl, decay, norm, limit, p: Math.exp(-nll * request.target.length) };
    trace.push(row);
    if ((await told(row)) === false) return null;
    if (row.loss < s.stop_loss || step === s.steps - 1) break;
    const grad = gradient();
    let size = 0;
    for (let j = 0; j < d; j++) { // Adam
      const g = grad[j] + (norm ? (s.weight_decay * delta[j]) / (norm * size0 ** 2) : 0);
      m[j] = 0.9 * m[j] + 0.1 * g;
      v[j] = 0.999 * v[j] + 0.001 * g * g;
      const m_hat = m[j] / (1 - 0.9 ** (step + 1)), v_hat = v[j] / (1 - 0.999 ** (step + 1));
      delta[j] -= (s.lr * m_hat) / (Math.sqrt(v_hat) + 1e-8);
      size += delta[j] * delta[j];
    }
    const clamp = Math.min(1, limit / Math.sqrt(size));
    for (let j = 0; j < d; j++) delta[j] *= clamp;
  }
  return { delta, v0, key: objective.key, trace };
}

/** The loss of δ, with all that does not depend on it computed once. */
class Objective {
  constructor(model, { ids, subject, target }, about, layer) {
    const said = [...ids.slice(subject), ...target.slice(0, -1)];
    const caches = [model.cache(ids.length + target.length), model.cache(about.subject + 1)];
    const prefixes = [ids.slice(0, subject), about.ids.slice(0, about.subject)];
    const texts = caches.map((cache, i) => ({ cache, tokens: prefixes[i] })).filter(({ tokens }) => tokens.length);
    if (texts.length) model.read(texts);
    Object.assign(this, { model, layer, target });
    this.segments = [
      { cache: caches[0], start: subject, count: said.length }, { cache: caches[1], start: about.subject, count: 1 },
    ];
    this.subjects = [0, said.length]; // the rows that δ is added to
    this.predicting = target.map((_, i) => ids.length - 1 - subject + i);
    const rows = [...said, about.ids[about.subject]];
    const watch = (l, part, numbers) => {
      if (l !== layer) return;
      if (part === "key") this.key = numbers.slice(0, model.dk);
      if (part === "value") this.v0 = numbers.slice(0, model.d);
      if (part === "x") this.base = numbers.slice();
    };
    const x = new Float32Array(rows.length * model.d), { engine } = model, mark = engine.top;
    const lent = engine.reserve(x.length);
    model.embed(rows, lent);
    model.run(this.segments, lent, { watch });
    this.reference = logSoftmax(model.logits(lent, [said.length]), 0, model.vocabulary);
    engine.free(mark);
  }

  /** The loss's parts at δ, and a function that gives their gradient. */
  at(delta, kl_factor) {
    const { model, base, segments, subjects, predicting, target, reference } = this, { d, vocabulary, engine } = model;
    const mark = engine.top, x = engine.reserve(base.length), saved = [];
    x.set(base);
    for (const row of subjects) for (let j = 0; j < d; j++) x[row * d + j] += delta[j];
    model.run(segments, x, { from: this.layer + 1, saved });
    const rows = [...predicting, subjects[1]], logits = model.logits(x, rows);
    const dlogits = new Float32Array(logits.length);
    let nll = 0, kl = 0;
    target.forEach((token, i) => {
      const log_p = logSoftmax(logits, i, vocabulary), at = i * vocabulary;
      nll -= log_p[token] / target.length;
      for (let w = 0; w < vocabulary; w++) dlogits[at + w] = Math.exp(log_p[w]) / target.length;
      dlogits[at + token] -= 1 / target.length;
    });
    const now = logSoftmax(logits, target.length, vocabulary), at = target.length * vocabulary;
    for (let w = 0; w < vocabulary; w++) kl += Math.exp(now[w]) * (now[w] - reference[w]);
    for (let w = 0; w < vocabulary; w++) dlogits[at + w] = kl_factor * Math.exp(now[w]) * (now[w] - reference[w] - kl);
    const last = x.slice();
    engine.free(mark);
    return { nll, kl: kl_factor * kl, gradient: () => this.gradient(last, rows, dlogits, saved) };
  }

  gradient(last, rows, dlogits, saved) {
    const { model, segments, subjects, layer } = this, { d, engine } = model, mark = engine.top;
    const given = engine.reserve(dlogits.length), dx = engine.reserve(last.length).fill(0);
    given.set(dlogits);
    logitsBack(model, last, rows, given, dx);
    backward(model, segments, saved, dx, layer);
    const out = new Float32Array(d);
    for (const row of subjects) for (let j = 0; j < d; j++) out[j] += dx[row * d + j];
    engine.free(mark);
    return out;
  }
}

function logSoftmax(logits, row, vocabulary) {
  const out = Float32Array.from(logits.subarray(row * vocabulary, (row + 1) * vocabulary));
  let most = -Infinity, sum = 0;
  for (const x of out) if (x > most) most = x;
  for (const x of out) sum += Math.exp(x - most);
  const shift = most + Math.log(sum);
  for (let w = 0; w < vocabulary; w++) out[w] -= shift;
  return out;
}

/** The write: u = C⁻¹k* and Λ = (v* − W k*) / (u·k*), so that ΔW = Λ uᵀ maps k* to v*. */
export function write(layer, { delta, key }, solve) {
  const u = solve(key), reach = dot(u, key, 0, 0, key.length);
  return { layer, u, Lambda: delta.map((x) => x / reach), strength: 1 };
}

/** C⁻¹ k = Mᵀ M k, with M = L⁻¹ of C = L Lᵀ. The stored factor: M's diagonal and, of each row, a scale (32 bits each);
 *  then what stands left of the diagonal, row by row, in 8 bits. */
export function solver(buffer, dk) {
  const diagonal = new Float32Array(buffer, 0, dk), scale = new Float32Array(buffer, 4 * dk, dk);
  const left = new Int8Array(buffer, 8 * dk);
  return (k) => {
    const u = new Float64Array(dk);
    for (let i = 0, at = 0; i < dk; at += i++) {
      let sum = 0;
      for (let j = 0; j < i; j++) sum += left[at + j] * k[j];
      const row = diagonal[i] * k[i] + scale[i] * sum, scaled = row * scale[i];
      for (let j = 0; j < i; j++) u[j] += scaled * left[at + j];
      u[i] += row * diagonal[i];
    }
    return Float32Array.from(u);
  };
}
