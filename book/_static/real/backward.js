/* The gradient of a loss with respect to what a block received, back through the blocks above it. */

import { dot, longest, positions, rotate, weigh } from "./model.js";

/** dx (n × d), the gradient at the last block's output, becomes that at the output of block `layer`, in place.
 *
 *  `saved` and the caches are those of the forward run with the same segments.
 */
export function backward(model, segments, saved, dx, layer) {
  const { engine, d, dk, kv } = model, mark = engine.top, n = dx.length / d, position = positions(segments);
  const [dh, dq, da, dy] = [d, d, d, d].map((size) => engine.reserve(n * size));
  const [dK, dV] = [kv, kv].map((size) => engine.reserve(n * size));
  const [dkey, dgate, dup] = [dk, dk, dk].map((size) => engine.reserve(n * size));
  for (let l = model.layers - 1; l > layer; l--) {
    const block = model.blocks[l], { x, q, middle, gate, up } = saved[l];
    // the MLP: y = W (silu(gate) · up)
    dy.set(dx);
    dkey.fill(0);
    engine.productBack(block.W, dy, n, dkey);
    for (const edit of model.edits) {
      if (edit.layer !== l) continue;
      for (let i = 0; i < n; i++) {
        const share = edit.strength * dot(edit.Lambda, dy, 0, i * d, d);
        for (let j = 0; j < dk; j++) dkey[i * dk + j] += share * edit.u[j];
      }
    }
    for (let i = 0; i < n * dk; i++) {
      const s = 1 / (1 + Math.exp(-gate[i]));
      dgate[i] = dkey[i] * up[i] * s * (1 + gate[i] * (1 - s));
      dup[i] = dkey[i] * gate[i] * s;
    }
    dh.fill(0);
    engine.productBack(block.gate, dgate, n, dh);
    engine.productBack(block.up, dup, n, dh);
    normaliseBack(middle, block.norm2, dh, dx, d, model.eps);
    // attention
    dy.set(dx);
    da.fill(0);
    engine.productBack(block.O, dy, n, da);
    attendBack(model, segments, l, q, da, dq, dK, dV);
    rotate(dq, position, d, model.turns, -1);
    rotate(dK, position, kv, model.turns, -1);
    dh.fill(0);
    engine.productBack(block.Q, dq, n, dh);
    engine.productBack(block.K, dK, n, dh);
    engine.productBack(block.V, dV, n, dh);
    normaliseBack(x, block.norm1, dh, dx, d, model.eps);
  }
  engine.free(mark);
  return dx;
}

/** The gradient at some rows of x, the last block's output, from that at their logits (rows × vocabulary). */
export function logitsBack(model, x, rows, dlogits, dx) {
  const { engine, d } = model, mark = engine.top, dh = engine.reserve(rows.length * d).fill(0);
  engine.productBack(model.E, dlogits, rows.length, dh);
  rows.forEach((row, i) => {
    const [at, to] = [row * d, (row + 1) * d];
    normaliseBack(x.subarray(at, to), model.norm, dh.subarray(i * d, i * d + d), dx.subarray(at, to), d, model.eps);
  });
  engine.free(mark);
}

/** dx += the gradient through out = x · weight / root mean square of x. */
function normaliseBack(x, weight, dout, dx, d, eps) {
  for (let at = 0; at < x.length; at += d) {
    const scale = 1 / Math.sqrt(dot(x, x, at, at, d) / d + eps);
    let along = 0;
    for (let j = 0; j < d; j++) along += dout[at + j] * weight[j] * x[at + j];
    along *= (scale * scale) / d;
    for (let j = 0; j < d; j++) dx[at + j] += scale * (dout[at + j] * weight[j] - along * x[at + j]);
  }
}

/** dq, dK and dV (n × …) of the segments' own tokens; what stands before them in the caches does not move. */
function attendBack(model, segments, layer, q, da, dq, dK, dV) {
  const { d, heads, groups, width, kv } = model, scale = 1 / Math.sqrt(width);
  const scores = new Float32Array(longest(segments)), dscores = new Float32Array(scores.length);
  dq.fill(0);
  dK.fill(0);
  dV.fill(0);
  let first = 0;
  for (const { cache, start, count } of segments) {
    const K = cache.K[layer], V = cache.V[layer];
    for (let i = 0; i < count; i++) {
      const length = start + i + 1;
      for (let head = 0; head < heads; head++) {
        const at = (first + i) * d + head * width, side = Math.floor((head * groups) / heads) * width;
        weigh(q, at, K, side, kv, width, length, scores);
        let mean = 0;
        for (let p = 0; p < length; p++) {
          dscores[p] = dot(da, V, at, p * kv + side, width);
          mean += scores[p] * dscores[p];
        }
        for (let p = 0; p < length; p++) {
          const ds = scores[p] * (dscores[p] - mean) * scale, from = p * kv + side;
          for (let j = 0; j < width; j++) dq[at + j] += ds * K[from + j];
          if (p < start) continue;
          const own = (first + p - start) * kv + side, w = scores[p];
          for (let j = 0; j < width; j++) {
            dK[own + j] += ds * q[at + j];
            dV[own + j] += w * da[at + j];
          }
        }
      }
    }
    first += count;
  }
}
