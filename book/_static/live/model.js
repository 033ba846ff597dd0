/* tinyworld in a page: the forward pass of a small Llama, and three writes into one of its matrices.
 *
 * Everything is computed here, on the reader's machine. The large products run in matmul.wat (SIMD); the rest is plain.
 * Prompts that begin alike share what is computed for their beginning: causal attention makes it the same.
 */
"use strict";

const LONGEST = 16; // tokens of a prompt

/** Load the model's weights and the facts from a folder. */
async function loadModel(folder) {
  const get = async (name) => {
    const answer = await fetch(folder + name);
    if (!answer.ok) throw new Error(name + ": " + answer.status);
    return answer;
  };
  const [about, weights, kernel] = await Promise.all([
    get("model.json").then((a) => a.json()),
    get("model.bin").then((a) => a.arrayBuffer()),
    get("matmul.wasm").then((a) => a.arrayBuffer()),
  ]);
  const memory = new WebAssembly.Memory({ initial: 64, maximum: 2048 });
  const made = await WebAssembly.instantiate(kernel, { env: { memory } });
  return new Model(about, weights, memory, made.instance.exports.matmul, get);
}

/** Numbers of 16 bits (IEEE 754 half precision) as numbers of 32; not every browser has a Float16Array. */
function fromHalf(halves) {
  return Float32Array.from(halves, (h) => {
    const exponent = (h >> 10) & 31, fraction = (h & 1023) / 1024;
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction;
    return h & 0x8000 ? -size : size;
  });
}

class Model {
  constructor(about, weights, memory, matmul, get) {
    Object.assign(this, { about, memory, matmul, get });
    this.top = 1024; // the first free byte
    this.place = {};
    for (const [name, [at, rows, columns]] of Object.entries(about.tensors)) {
      const from = new Float32Array(weights, 4 * at, rows * columns);
      this.place[name] = { at: this.reserve(rows * columns), rows, columns };
      this.view(this.place[name]).set(from);
    }
    this.scratch = this.top;
    this.layers = new Map(); // what an edit of a layer needs, fetched on demand
  }

  /** Take room for so many floats; the address. */
  reserve(floats) {
    const at = this.top;
    this.top = (at + 4 * floats + 15) & ~15;
    const missing = this.top - this.memory.buffer.byteLength;
    if (missing > 0) this.memory.grow(Math.ceil(missing / 65536));
    return at;
  }

  view({ at, rows, columns }) {
    return new Float32Array(this.memory.buffer, at, rows * columns);
  }

  /** The old W of every layer is written back. */
  restore() {
    for (const [layer, old] of Object.entries(this.changed || {})) this.view(this.place["down" + layer]).set(old);
    this.changed = {};
  }

  /** W of a layer becomes W + Δ; delta is Δᵀ, (d_k × d). */
  write(layer, delta, strength = 1) {
    this.restore();
    const W = this.view(this.place["down" + layer]);
    this.changed = { [layer]: W.slice() };
    for (let i = 0; i < W.length; i++) W[i] += strength * delta[i];
  }

  /** The size of what is written against the size of W. */
  share(layer, delta, strength = 1) {
    const old = (this.changed || {})[layer] || this.view(this.place["down" + layer]);
    let change = 0, all = 0;
    for (let i = 0; i < old.length; i++) {
      change += delta[i] * delta[i];
      all += old[i] * old[i];
    }
    return Math.abs(strength) * Math.sqrt(change / all);
  }

  /** Probabilities of the next token behind each prompt of a plan, and, of one layer, the keys at the subjects' ends. */
  run(plan, captured = null) {
    const { d, heads, dk, vocabulary, padded, layers, eps } = this.about;
    const { n, tokens, depth, chain } = plan;
    const rows = (n + 3) & ~3;
    this.top = this.scratch;
    const at = { x: this.reserve(rows * d), h: this.reserve(rows * d), qkv: this.reserve(rows * 3 * d) };
    Object.assign(at, { gu: this.reserve(rows * 2 * dk), a: this.reserve(rows * dk), y: this.reserve(rows * d) });
    const asked = (plan.ends.length + 3) & ~3;
    Object.assign(at, { last: this.reserve(asked * d), logits: this.reserve(asked * padded) });
    const float = (where, count) => new Float32Array(this.memory.buffer, where, count);
    const [x, h, qkv] = [float(at.x, rows * d), float(at.h, rows * d), float(at.qkv, rows * 3 * d)];
    const [gu, a, y] = [float(at.gu, rows * 2 * dk), float(at.a, rows * dk), float(at.y, rows * d)];
    const embed = this.view(this.place.embed);
    x.fill(0);
    for (let i = 0; i < n; i++) x.set(embed.subarray(tokens[i] * d, tokens[i] * d + d), i * d);
    let keys = null;
    for (let layer = 0; layer < layers; layer++) {
      norm(x, this.view(this.place["norm1" + layer]), h, rows, d, eps);
      this.matmul(at.h, this.place["qkv" + layer].at, at.qkv, rows, d, 3 * d);
      rotate(qkv, depth, n, d, heads, this.turns());
      attend(qkv, h, chain, depth, n, d, heads);
      this.matmul(at.h, this.place["out" + layer].at, at.y, rows, d, d);
      for (let i = 0; i < n * d; i++) x[i] += y[i];
      norm(x, this.view(this.place["norm2" + layer]), h, rows, d, eps);
      this.matmul(at.h, this.place["up" + layer].at, at.gu, rows, d, 2 * dk);
      for (let i = 0; i < n; i++) {
        const from = i * 2 * dk;
        for (let j = 0; j < dk; j++) {
          const g = gu[from + j];
          a[i * dk + j] = (g / (1 + Math.exp(-g))) * gu[from + dk + j];
        }
      }
      if (layer === captured) {
        keys = new Float32Array(plan.subjects.length * dk);
        plan.subjects.forEach((node, i) => keys.set(a.subarray(node * dk, node * dk + dk), i * dk));
      }
      this.matmul(at.a, this.place["down" + layer].at, at.y, rows, dk, d);
      for (let i = 0; i < n * d; i++) x[i] += y[i];
    }
    const last = float(at.last, asked * d).fill(0);
    plan.ends.forEach((node, i) => last.set(x.subarray(node * d, node * d + d), i * d));
    norm(last, this.view(this.place.norm), last, asked, d, eps);
    this.matmul(at.last, this.place.head.at, at.logits, asked, d, padded);
    const logits = float(at.logits, asked * padded);
    const probabilities = new Float32Array(plan.ends.length * vocabulary);
    for (let i = 0; i < plan.ends.length; i++) {
      softmax(logits, i * padded, vocabulary, probabilities, i * vocabulary);
    }
    return { probabilities, keys };
  }

  turns() {
    const { d, heads, theta } = this.about;
    if (!this.angles) {
      const half = d / heads / 2;
      this.angles = Array.from({ length: LONGEST }, (_, p) =>
        Float64Array.from({ length: half }, (_, i) => p * theta ** (-i / half)));
    }
    return this.angles;
  }

  /** Eigenvectors and eigenvalues of C of a layer, and δ of every fact for ROME and for MEMIT. */
  async layer(l) {
    if (!this.layers.has(l)) {
      const { d, dk, facts } = this.about;
      const data = await (await this.get(`layer${l}.bin`)).arrayBuffer();
      const C = new Float32Array(data, 0, dk + dk * dk), deltas = fromHalf(new Uint16Array(data, C.byteLength));
      this.layers.set(l, {
        values: C.subarray(0, dk), vectors: C.subarray(dk), // one eigenvector a row
        rome: deltas.subarray(0, facts.length * d), memit: deltas.subarray(facts.length * d),
      });
    }
    return this.layers.get(l);
  }
}

/** Prompts as a tree: nodes that several prompts begin with are there once. */
function plan(prompts, subjects = []) {
  const nodes = new Map(), tokens = [], depth = [], chain = [];
  const walk = prompts.map((prompt) => {
    let parent = -1;
    return prompt.map((token, position) => {
      const name = parent + "," + token;
      if (!nodes.has(name)) {
        nodes.set(name, tokens.length);
        chain.push(...(parent < 0 ? [] : chain.slice(parent * LONGEST, parent * LONGEST + position)), tokens.length);
        while (chain.length < (tokens.length + 1) * LONGEST) chain.push(-1);
        tokens.push(token);
        depth.push(position);
      }
      parent = nodes.get(name);
      return parent;
    });
  });
  return {
    n: tokens.length, tokens: Int32Array.from(tokens), depth: Int32Array.from(depth), chain: Int32Array.from(chain),
    ends: walk.map((path) => path[path.length - 1]), subjects: subjects.map((position, i) => walk[i][position]),
  };
}

function norm(x, weight, out, rows, d, eps) {
  for (let i = 0; i < rows; i++) {
    let sum = 0;
    for (let j = 0; j < d; j++) sum += x[i * d + j] * x[i * d + j];
    const scale = 1 / Math.sqrt(sum / d + eps);
    for (let j = 0; j < d; j++) out[i * d + j] = x[i * d + j] * scale * weight[j];
  }
}

/** Rotary positions, on queries and keys. */
function rotate(qkv, depth, n, d, heads, angles) {
  const width = d / heads, half = width / 2;
  for (let i = 0; i < n; i++) {
    const angle = angles[depth[i]];
    for (let part = 0; part < 2; part++) {
      for (let head = 0; head < heads; head++) {
        const from = i * 3 * d + part * d + head * width;
        for (let j = 0; j < half; j++) {
          const c = Math.cos(angle[j]), s = Math.sin(angle[j]), a = qkv[from + j], b = qkv[from + half + j];
          qkv[from + j] = a * c - b * s;
          qkv[from + half + j] = b * c + a * s;
        }
      }
    }
  }
}

function attend(qkv, out, chain, depth, n, d, heads) {
  const width = d / heads, scale = 1 / Math.sqrt(width), score = new Float64Array(LONGEST);
  for (let i = 0; i < n; i++) {
    for (let head = 0; head < heads; head++) {
      const q = i * 3 * d + head * width;
      let most = -Infinity, sum = 0;
      for (let p = 0; p <= depth[i]; p++) {
        const k = chain[i * LONGEST + p] * 3 * d + d + head * width;
        let dot = 0;
        for (let j = 0; j < width; j++) dot += qkv[q + j] * qkv[k + j];
        score[p] = dot * scale;
        most = Math.max(most, score[p]);
      }
      for (let p = 0; p <= depth[i]; p++) sum += score[p] = Math.exp(score[p] - most);
      for (let j = 0; j < width; j++) {
        let mixed = 0;
        for (let p = 0; p <= depth[i]; p++) {
          mixed += score[p] * qkv[chain[i * LONGEST + p] * 3 * d + 2 * d + head * width + j];
        }
        out[i * d + head * width + j] = mixed / sum;
      }
    }
  }
}

function softmax(from, start, count, to, at) {
  let most = -Infinity, sum = 0;
  for (let i = 0; i < count; i++) most = Math.max(most, from[start + i]);
  for (let i = 0; i < count; i++) sum += to[at + i] = Math.exp(from[start + i] - most);
  for (let i = 0; i < count; i++) to[at + i] /= sum;
}

/* ---- the writes ------------------------------------------------------------------------------------ */

/** f(λ) on the eigenvalues of C: U f(Λ) Uᵀ x, for example C⁻¹x or Px. */
function through({ values, vectors }, x, f) {
  const dk = values.length, out = new Float64Array(dk);
  for (let i = 0; i < dk; i++) {
    const weight = f(values[i]);
    if (!weight) continue;
    let dot = 0;
    for (let j = 0; j < dk; j++) dot += vectors[i * dk + j] * x[j];
    for (let j = 0; j < dk; j++) out[j] += weight * dot * vectors[i * dk + j];
  }
  return out;
}

/** ROME: Δᵀ = u δᵀ / (u·k) with u = C⁻¹k, or u = k without C⁻¹. */
function romeWrite(layer, k, delta, inverse = true) {
  const u = inverse ? through(layer, k, (value) => 1 / value) : Float64Array.from(k);
  let along = 0;
  for (let i = 0; i < k.length; i++) along += u[i] * k[i];
  const out = new Float32Array(k.length * delta.length);
  u.forEach((a, i) => delta.forEach((b, j) => { out[i * delta.length + j] = (a * b) / along; }));
  return out;
}

/** MEMIT and AlphaEdit: Δᵀ = M (ridge·I + KᵀM)⁻¹ Rᵀ, with M = C⁻¹K and ridge λ, or M = PK and ridge L2. */
function batchWrite(layer, keys, deltas, { method, lambda, threshold, l2 }) {
  const n = keys.length, dk = layer.values.length, d = deltas[0].length;
  const f = method === "memit" ? (value) => 1 / value : (value) => (value < threshold ? 1 : 0);
  const M = keys.map((k) => through(layer, k, f));
  const A = M.map((m) => Float64Array.from(keys, (k) => k.reduce((sum, x, j) => sum + x * m[j], 0)));
  for (let i = 0; i < n; i++) A[i][i] += method === "memit" ? lambda : l2;
  const solved = solve(A, deltas.map((r) => Float64Array.from(r))); // (n × d)
  const out = new Float32Array(dk * d);
  M.forEach((m, i) => {
    for (let j = 0; j < dk; j++) for (let c = 0; c < d; c++) out[j * d + c] += m[j] * solved[i][c];
  });
  return out;
}

/** A⁻¹B for a symmetric positive definite A, by Cholesky; rows are arrays, B is overwritten. */
function solve(A, B) {
  const n = A.length;
  for (let j = 0; j < n; j++) {
    for (let i = j; i < n; i++) {
      let sum = A[i][j];
      for (let t = 0; t < j; t++) sum -= A[i][t] * A[j][t];
      A[i][j] = i === j ? Math.sqrt(sum) : sum / A[j][j];
    }
  }
  const width = B[0].length;
  for (let i = 0; i < n; i++) {
    for (let t = 0; t < i; t++) for (let c = 0; c < width; c++) B[i][c] -= A[i][t] * B[t][c];
    for (let c = 0; c < width; c++) B[i][c] /= A[i][i];
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let t = i + 1; t < n; t++) for (let c = 0; c < width; c++) B[i][c] -= A[t][i] * B[t][c];
    for (let c = 0; c < width; c++) B[i][c] /= A[i][i];
  }
  return B;
}

window.tinyworld = { loadModel, plan, romeWrite, batchWrite };
