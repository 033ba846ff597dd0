/* SmolLM2 forward: tokens in, logits out, with the book's symbols. Large products are the engine's; the rest is plain.
 *
 * Several texts are run together. A batch is a list of segments {cache, start, count}: so many tokens of one text, from
 * position `start`, whose earlier keys and values of attention are in `cache`. Rows of x are the segments' tokens in turn.
 * W of a layer is never overwritten: an edit {layer, Lambda, u, strength} is ΔW = strength · Λ uᵀ, and is added as such.
 */

import { FILE } from "./engine.js";
import { readHead } from "./gguf.js";

export class Model {
  constructor(engine, fileBytes) {
    const { about, tensors } = readHead(new Uint8Array(engine.memory.buffer, FILE, fileBytes));
    this.engine = engine;
    this.about = about;
    this.layers = about["llama.block_count"];
    this.d = about["llama.embedding_length"];
    this.heads = about["llama.attention.head_count"];
    this.groups = about["llama.attention.head_count_kv"];
    this.eps = about["llama.attention.layer_norm_rms_epsilon"];
    this.width = this.d / this.heads;
    this.kv = this.groups * this.width;
    this.dk = tensors["blk.0.ffn_down.weight"].columns;
    this.E = tensors["token_embd.weight"]; // tied: it is the head too
    this.vocabulary = this.E.rows;
    const weight = (name) => new Float32Array(engine.memory.buffer, FILE + tensors[name].at, this.d);
    this.blocks = Array.from({ length: this.layers }, (_, l) => ({
      norm1: weight(`blk.${l}.attn_norm.weight`), norm2: weight(`blk.${l}.ffn_norm.weight`),
      ...Object.fromEntries(Object.entries({
        Q: "attn_q", K: "attn_k", V: "attn_v", O: "attn_output", gate: "ffn_gate", up: "ffn_up", W: "ffn_down",
      }).map(([short, name]) => [short, tensors[`blk.${l}.${name}.weight`]])),
    }));
    this.norm = weight("output_norm.weight");
    this.turns = turns(about["llama.rope.freq_base"], this.width, 1024);
    this.edits = []; // those in force
  }

  /** An empty cache for a text of at most so many tokens. */
  cache(capacity) {
    const room = () => Array.from({ length: this.layers }, () => new Float32Array(capacity * this.kv));
    return { capacity, length: 0, K: room(), V: room() };
  }

  /** A copy of a cache's first tokens, with room for more. */
  branch(from, capacity) {
    const to = this.cache(capacity);
    to.length = from.length;
    for (let l = 0; l < this.layers; l++) {
      to.K[l].set(from.K[l].subarray(0, from.length * this.kv));
      to.V[l].set(from.V[l].subarray(0, from.length * this.kv));
    }
    return to;
  }

  /** Rows of the embedding as floats, (n × d). */
  embed(tokens, x) {
    const { engine, E, d } = this, bytes = (E.columns / 32) * 34;
    tokens.forEach((token, i) => engine.kernel.unpack(FILE + E.at + token * bytes, 34, d / 32, x.byteOffset + 4 * i * d));
  }

  /** Run blocks `from` ≤ layer < `to` on x (n × d) in place.
   *
   *  `saved`, a list, gets what the way back needs of each block. `watch(layer, part, numbers)` sees the `key` (n × d_k)
   *  and `value` (n × d) of each block's W, and the block's output `x` (n × d); the numbers are only lent.
   */
  run(segments, x, { from = 0, to = this.layers, saved = null, watch = null } = {}) {
    const { engine, d, dk, kv } = this, mark = engine.top, n = x.length / d;
    const position = positions(segments);
    const [h, q, a, y] = [d, d, d, d].map((size) => engine.reserve(n * size));
    const [k, v] = [kv, kv].map((size) => engine.reserve(n * size));
    const [g, up, key] = [dk, dk, dk].map((size) => engine.reserve(n * size));
    for (let l = from; l < to; l++) {
      const block = this.blocks[l], kept = saved && { x: x.slice() };
      normalise(x, block.norm1, h, d, this.eps);
      engine.product(block.Q, h, n, q);
      engine.product(block.K, h, n, k);
      engine.product(block.V, h, n, v);
      rotate(q, position, d, this.turns, 1);
      rotate(k, position, kv, this.turns, 1);
      this.remember(segments, l, k, v);
      this.attend(segments, l, q, a);
      engine.product(block.O, a, n, y);
      add(x, y);
      if (saved) Object.assign(kept, { q: q.slice(), middle: x.slice() });
      normalise(x, block.norm2, h, d, this.eps);
      engine.product(block.gate, h, n, g);
      engine.product(block.up, h, n, up);
      for (let i = 0; i < n * dk; i++) key[i] = (g[i] / (1 + Math.exp(-g[i]))) * up[i];
      if (saved) saved[l] = Object.assign(kept, { gate: g.slice(), up: up.slice() });
      this.memory(l, key, n, y);
      if (watch) { watch(l, "key", key); watch(l, "value", y); }
      add(x, y);
      if (watch) watch(l, "x", x);
    }
    engine.free(mark);
    return x;
  }

  /** What a block's MLP writes for keys (n × d_k): W k, and Λ (u·k) of each edit. */
  memory(layer, key, n, y) {
    const { d, dk } = this;
    this.engine.product(this.blocks[layer].W, key, n, y);
    for (const edit of this.edits) {
      if (edit.layer !== layer) continue;
      for (let i = 0; i < n; i++) {
        const share = edit.strength * dot(edit.u, key, 0, i * dk, dk);
        for (let j = 0; j < d; j++) y[i * d + j] += share * edit.Lambda[j];
      }
    }
  }

  /** The attention's keys and values of new tokens are put in their caches. */
  remember(segments, layer, k, v) {
    let row = 0;
    for (const { cache, start, count } of segments) {
      cache.K[layer].set(k.subarray(row * this.kv, (row + count) * this.kv), start * this.kv);
      cache.V[layer].set(v.subarray(row * this.kv, (row + count) * this.kv), start * this.kv);
      row += count;
    }
  }

  /** a (n × d): of each token, the values before it, mixed by softmax(q·k/√width). */
  attend(segments, layer, q, a) {
    const { d, heads, groups, width, kv } = this, scores = new Float32Array(longest(segments));
    let row = 0;
    for (const { cache, start, count } of segments) {
      const K = cache.K[layer], V = cache.V[layer];
      for (let i = 0; i < count; i++, row++) {
        const length = start + i + 1;
        for (let head = 0; head < heads; head++) {
          const at = row * d + head * width, side = Math.floor((head * groups) / heads) * width;
          weigh(q, at, K, side, kv, width, length, scores);
          a.fill(0, at, at + width);
          for (let p = 0; p < length; p++) {
            const w = scores[p], from = p * kv + side;
            for (let j = 0; j < width; j++) a[at + j] += w * V[from + j];
          }
        }
      }
    }
  }

  /** Logits (rows × vocabulary) of some rows of x, the last block's output or an earlier one's; lent until the next. */
  logits(x, rows) {
    const { engine, d, vocabulary } = this, mark = engine.top;
    const out = engine.reserve(rows.length * vocabulary), last = engine.reserve(rows.length * d);
    rows.forEach((row, i) => last.set(x.subarray(row * d, row * d + d), i * d));
    normalise(last, this.norm, last, d, this.eps);
    engine.product(this.E, last, rows.length, out);
    engine.free(mark);
    return out;
  }

  /** The blocks' output of texts' new tokens, each a segment with `tokens`; their caches grow. */
  read(texts, options) {
    const { engine, d } = this, mark = engine.top;
    const x = engine.reserve(texts.reduce((sum, { tokens }) => sum + tokens.length, 0) * d);
    this.embed(texts.flatMap(({ tokens }) => tokens), x);
    this.run(texts.map(({ cache, tokens }) => ({ cache, start: cache.length, count: tokens.length })), x, options);
    for (const { cache, tokens } of texts) cache.length += tokens.length;
    const out = x.slice();
    engine.free(mark);
    return out;
  }

  /** ‖W‖ of a layer (Frobenius). */
  size(layer) {
    const { engine, dk } = this, { W } = this.blocks[layer], mark = engine.top, row = engine.reserve(dk);
    const bytes = (dk / 32) * 20;
    let sum = 0;
    for (let j = 0; j < W.rows; j++) {
      engine.kernel.unpack(FILE + W.at + j * bytes, 20, dk / 32, row.byteOffset);
      sum += dot(row, row, 0, 0, dk);
    }
    engine.free(mark);
    return Math.sqrt(sum);
  }
}

/** x ← x · weight / root mean square of x, row by row, into `out`. */
export function normalise(x, weight, out, d, eps) {
  for (let at = 0; at < x.length; at += d) {
    const scale = 1 / Math.sqrt(dot(x, x, at, at, d) / d + eps);
    for (let j = 0; j < d; j++) out[at + j] = x[at + j] * scale * weight[j];
  }
}

export function dot(a, b, from, with_, count) {
  let sum = 0;
  for (let j = 0; j < count; j++) sum += a[from + j] * b[with_ + j];
  return sum;
}

export function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/** softmax(q·k/√width) over the first `length` keys of a cache, into `scores`. */
export function weigh(q, at, K, side, kv, width, length, scores) {
  const scale = 1 / Math.sqrt(width);
  let most = -Infinity, sum = 0;
  for (let p = 0; p < length; p++) {
    scores[p] = dot(q, K, at, p * kv + side, width) * scale;
    if (scores[p] > most) most = scores[p];
  }
  for (let p = 0; p < length; p++) sum += scores[p] = Math.exp(scores[p] - most);
  for (let p = 0; p < length; p++) scores[p] /= sum;
}

/** Cosines and sines of rotary positions, (longest × width/2) each. */
function turns(theta, width, longest) {
  const half = width / 2, angle = (i) => Math.floor(i / half) * theta ** (-(i % half) / half);
  const table = (f) => Float32Array.from({ length: longest * half }, (_, i) => f(angle(i)));
  return { half, cos: table(Math.cos), sin: table(Math.sin) };
}

/** Turn each pair of numbers by its position; direction −1 turns back. The file's rows are in an order of pairs. */
export function rotate(q, position, size, { half, cos, sin }, direction) {
  for (let row = 0; row < position.length; row++) {
    const table = position[row] * half;
    for (let at = row * size, i = 0; i < size / 2; i++, at += 2) {
      const c = cos[table + (i % half)], s = direction * sin[table + (i % half)], a = q[at], b = q[at + 1];
      q[at] = a * c - b * s;
      q[at + 1] = b * c + a * s;
    }
  }
}

export function positions(segments) {
  return segments.flatMap(({ start, count }) => Array.from({ length: count }, (_, i) => start + i));
}

export function longest(segments) {
  return Math.max(...segments.map(({ start, count }) => start + count));
}
