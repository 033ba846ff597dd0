/* Products with the model's matrices, which stay in the blocks of the GGUF file: kernel.wat, on one thread or several. */

import { BLOCK_BYTES } from "./gguf.js";

const PAGE = 65536;
export const FILE = 65536; // where the file begins in the memory; before it: what threads tell each other
const SCRATCH = 4 * 1536 * 4; // bytes: four unpacked rows of the longest matrix
const WORKSPACE = 96 * 2 ** 20; // bytes behind the file

/** The memory for a file of so many bytes; shared where the page is isolated and there are several threads. */
export function makeMemory(bytes, shared) {
  const pages = Math.ceil((FILE + bytes + WORKSPACE) / PAGE);
  return new WebAssembly.Memory({ initial: pages, maximum: shared ? 8192 : pages, shared });
}

/* The first numbers of a shared memory: which job it is, how many helpers have finished it, and its arguments. */
const JOB = 0, DONE = 1, ARGUMENTS = 2, WAIT = 2000;

export class Engine {
  /** `threads` counts this one; the others are workers that run helper.js on the same memory. */
  constructor(memory, kernel, fileBytes, threads) {
    Object.assign(this, { memory, kernel, threads });
    this.control = new Int32Array(memory.buffer, 0, 16);
    this.scratch = (FILE + fileBytes + 63) & ~63;
    this.top = this.scratch + threads * SCRATCH;
  }

  /** Room for so many floats in the kernel's memory; `free` gives it back. */
  reserve(floats) {
    const at = this.top;
    this.top = (at + 4 * floats + 15) & ~15;
    if (this.top > this.memory.buffer.byteLength) throw new Error("the text is too long for the page's memory");
    return new Float32Array(this.memory.buffer, at, floats);
  }

  free(mark) {
    this.top = mark;
  }

  /** y = x Wᵀ for n rows of x. */
  product(W, x, n, y) {
    this.divide(0, W, x, n, y, W.rows / 4, 4);
  }

  /** dx += dy W for n rows of dy. */
  productBack(W, dy, n, dx) {
    this.divide(1, W, dy, n, dx, W.columns / 32, 1);
  }

  /** One product, its `parts` divided among the threads. */
  divide(back, W, from, n, to, parts, size) {
    const { threads, control } = this, bytes = BLOCK_BYTES[W.kind];
    const given = [back, FILE + W.at, bytes, from.byteOffset, n, W.columns, to.byteOffset, W.rows, parts, size];
    if (threads > 1) {
      given.push(threads, this.scratch);
      control.set(given, ARGUMENTS);
      Atomics.store(control, DONE, 0);
      Atomics.add(control, JOB, 1);
      Atomics.notify(control, JOB);
    } else given.push(1, this.scratch);
    runPart(this.kernel, given, 0);
    if (threads > 1) {
      let spins = 0;
      while (Atomics.load(control, DONE) < threads - 1) {
        if (++spins > WAIT) Atomics.wait(control, DONE, Atomics.load(control, DONE), 1);
      }
    }
  }
}

/** What one thread does of a product. */
function runPart(kernel, [back, q, bytes, from, n, k, to, m, parts, size, threads, scratch], thread) {
  const first = Math.floor((parts * thread) / threads) * size, end = Math.floor((parts * (thread + 1)) / threads) * size;
  if (first < end) kernel[back ? "backward" : "forward"](q, bytes, from, n, k, first, end, to, m, scratch + thread * SCRATCH);
}

/** A helper's life: wait for a job, do its part, say so. */
export function help(memory, kernel, thread) {
  const control = new Int32Array(memory.buffer, 0, 16);
  let job = 0; // helpers are there before the first
  for (;;) {
    for (let spins = 0; Atomics.load(control, JOB) === job && spins < WAIT; spins++);
    Atomics.wait(control, JOB, job);
    job = Atomics.load(control, JOB);
    runPart(kernel, control.slice(ARGUMENTS, ARGUMENTS + 12), thread);
    Atomics.add(control, DONE, 1);
    Atomics.notify(control, DONE);
  }
}

/** A module worker from inside a blob: it has its maker's isolation, which GitHub Pages' answer for a file would lack. */
export function startWorker(file, base) {
  const source = `import ${JSON.stringify(new URL(file, base).href)};`;
  return new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })), { type: "module" });
}
