/* The weights, in parts: from the browser's cache where they are, else from the site; each part's digest is checked.
 *
 * A part that is whole is kept at once, so a fetch that broke off goes on at its part. A wrong one is fetched again.
 */

const KEPT = "smollm2-weights-";
const TRIES = 3;

/** Fill `memory` (bytes) with the parts that `manifest` lists; `told({bytes, all, kept})` hears of each piece.
 *
 *  Returns whether all parts are kept for the next visit: a full disk or a private window keeps none.
 */
export async function fetchWeights(manifest, folder, memory, told) {
  if (!globalThis.crypto?.subtle) throw new Error("a browser checks digests only on https and on localhost");
  const cache = await openCache(KEPT + manifest.sha256.slice(0, 16));
  let done = 0, kept = Boolean(cache);
  for (const { name, bytes, sha256 } of manifest.parts) {
    const before = done, url = new URL(name, folder).href;
    const part = memory.subarray(done, done + bytes);
    const progress = (count) => told({ bytes: before + count, all: manifest.bytes, kept });
    if (!(await fromCache(cache, url, part, sha256))) {
      await fromSite(url, part, sha256, progress);
      kept = (await keep(cache, url, part)) && kept;
    }
    done += bytes;
    progress(bytes);
  }
  return kept;
}

/** This model's cache, and no other's; null where the browser has none to give. */
async function openCache(name) {
  try {
    for (const other of await caches.keys()) if (other.startsWith(KEPT) && other !== name) await caches.delete(other);
    return await caches.open(name);
  } catch {
    return null;
  }
}

async function fromCache(cache, url, part, sha256) {
  const answer = await cache?.match(url).catch(() => null);
  if (!answer) return false;
  const content = new Uint8Array(await answer.arrayBuffer());
  if (content.length !== part.length || (await digest(content)) !== sha256) {
    await cache.delete(url);
    return false;
  }
  part.set(content);
  return true;
}

async function fromSite(url, part, sha256, progress) {
  for (let attempt = 1; ; attempt++) {
    try {
      const answer = await fetch(url, { cache: attempt > 1 ? "reload" : "default" });
      if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
      const reader = answer.body.getReader();
      let at = 0;
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        if (at + piece.value.length > part.length) throw new Error("the server sends another file");
        part.set(piece.value, at);
        progress((at += piece.value.length));
      }
      if (at < part.length) throw new Error("the connection broke off");
      if ((await digest(part)) !== sha256) throw new Error("its digest is wrong");
      return;
    } catch (error) {
      if (attempt === TRIES) throw new Error(`a part of the model could not be fetched: ${error.message}`);
      await new Promise((done) => setTimeout(done, 500 * attempt));
    }
  }
}

/** Whether the browser keeps a part; it may be out of room. */
async function keep(cache, url, part) {
  try {
    await cache.put(url, new Response(part.slice()));
    return true;
  } catch {
    return false;
  }
}

async function digest(content) {
  const hash = await crypto.subtle.digest("SHA-256", content.slice()); // a copy: threads share the memory
  return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
