/* The worker in which the model lives. The page sends {id, what, …}; to each it hears {id, done} or {id, error}, and
 * before that what comes meanwhile, {id, news}. One thing is done at a time; "stop" ends it early. */

import { answer, lens, softmax } from "./answers.js";
import { Engine, FILE, makeMemory, startWorker } from "./engine.js";
import { fetchWeights } from "./fetching.js";
import { dot, Model } from "./model.js";
import { findValue, solver, write } from "./rome.js";
import { inChat, LONGEST, Tokens } from "./tokens.js";

const ANSWER = 24; // tokens of an answer
const solvers = new Map(); // by layer
let model, tokens, folders, stopped = false;

/** Let messages in: without it a "stop" would wait for the end. */
const breathe = () => new Promise((done) => { const { port1, port2 } = new MessageChannel(); port1.onmessage = done; port2.postMessage(0); });

const actions = {
  /** Fetch the weights and set the threads up. */
  async load({ manifest, weights, data, threads }, news) {
    folders = { weights, data };
    const shared = threads > 1, kernel = await fetch(`${data}real_kernel${shared ? "_shared" : ""}.wasm`);
    if (!kernel.ok) throw new Error(`the kernel could not be fetched (${kernel.status})`);
    const module = await WebAssembly.compile(await kernel.arrayBuffer());
    const memory = makeMemory(manifest.bytes, shared);
    const kept = await fetchWeights(manifest, weights, new Uint8Array(memory.buffer, FILE, manifest.bytes), news);
    const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
    for (let thread = 1; thread < threads; thread++) await helper(memory, module, thread);
    const engine = new Engine(memory, exports, manifest.bytes, threads);
    model = new Model(engine, manifest.bytes);
    tokens = new Tokens(model.about);
    return { kept, threads, memory: memory.buffer.byteLength };
  },

  /** Answers to questions [{text, chat}], with the edits in force or without any; each word is news. None when stopped. */
  async ask({ questions, edited }, news) {
    const prompts = questions.map(({ text, chat }) => encode(text, chat));
    return without(edited ? model.edits : [], async () => {
      const show = (answers) => answers.map(({ ids, tops, done }) => ({
        text: tokens.decode(ids), done, words: ids.map((id) => tokens.decode([id])),
        tops: tops.map((top) => top.map(([id, p]) => ({ word: word(id), p }))),
      }));
      const said = async (answers) => { news(show(answers)); await breathe(); return !stopped; };
      const answers = await answer(model, tokens.stop, prompts, ANSWER, said);
      return stopped ? null : show(answers);
    });
  },

  /** One edit: the search, each step of which is news, and the write. */
  async edit({ prompt, subject, target, chat, layer, settings }, news) {
    const request = tokens.prompt(prompt, subject, chat), about = tokens.prompt("{} is a", subject, false);
    const wanted = tokens.encode(target);
    if (request.ids.length > LONGEST.text) throw new Error(`the question has ${request.ids.length} tokens, and the page takes ${LONGEST.text}: shorten it`);
    if (wanted.length > LONGEST.target) throw new Error(`the answer has ${wanted.length} tokens, and the page takes ${LONGEST.target}: shorten it`);
    const solve = await inverse(layer);
    const told = async (row) => { news(row); await breathe(); return !stopped; };
    const found = await findValue(model, { ids: request.ids, subject: request.last, target: wanted },
      { ids: about.ids, subject: about.last }, layer, settings, told);
    if (!found) return null; // stopped
    const made = write(layer, found, solve), { delta, v0, key, trace } = found;
    const value = v0.map((x, j) => x + delta[j]); // v*
    const edit = { ...made, id: crypto.randomUUID(), key, before: v0, value, prompt, subject, target, chat };
    model.edits.push(edit);
    const size = (x) => Math.sqrt(dot(x, x, 0, 0, x.length));
    return {
      id: edit.id, trace, size: size(edit.Lambda) * size(edit.u), weight: model.size(layer), layer,
      key: size(key), before: size(v0), after: size(value), delta: size(delta),
    };
  },

  /** The strength of an edit; nothing of it is left at 0, and `undo` takes it off the list. */
  async strength({ edit, strength }) {
    model.edits.find(({ id }) => id === edit).strength = strength;
  },

  async undo({ edit }) {
    model.edits = model.edits.filter(({ id }) => id !== edit);
  },

  /** The reach ρ = u·k / u·k* of an edit in each question: the token where it is largest. */
  async reach({ edit, questions }) {
    const { u, key, layer } = model.edits.find(({ id }) => id === edit), { dk } = model, most = dot(u, key, 0, 0, dk);
    return questions.map(({ text, chat }) => {
      const ids = encode(text, chat), rho = new Float32Array(ids.length);
      const watch = (l, part, k) => {
        if (l === layer && part === "key") for (let i = 0; i < ids.length; i++) rho[i] = dot(u, k, 0, i * dk, dk) / most;
      };
      model.read([{ cache: model.cache(ids.length), tokens: ids }], { to: layer + 1, watch });
      const at = rho.reduce((best, x, i) => (Math.abs(x) > Math.abs(rho[best]) ? i : best), 0);
      return { word: tokens.decode([ids[at]]), rho: rho[at] };
    });
  },

  /** What an edit is made of, its key and values; and the logit lens at the end of its question, without edits and with
   *  those in force, with the target's first token followed. */
  async inside({ edit, question, target }) {
    const { key, before, value } = model.edits.find(({ id }) => id === edit);
    const ids = encode(question.text, question.chat), followed = [tokens.encode(target)[0]];
    const read = () => lens(model, ids, followed).map(({ top: [id, p], p: [q] }) => ({ word: word(id), p, target: q }));
    return { key, before, value, lens: { before: await without([], read), after: read() } };
  },

  /** Of the last token: all probabilities of the next. For the tests. */
  async probabilities({ question, edited }) {
    const ids = encode(question.text, question.chat);
    return without(edited ? model.edits : [], () => {
      const x = model.read([{ cache: model.cache(ids.length), tokens: ids }]);
      return softmax(model.logits(x, [ids.length - 1]), 0, model.vocabulary);
    });
  },

  /** Λ, u and what else an edit is made of. For the tests. */
  async numbers({ edit }) {
    return model.edits.find(({ id }) => id === edit);
  },
};

/** A token as the reader sees it, a special one by its name. */
function word(id) {
  return tokens.special.get(id) ?? tokens.decode([id]);
}

/** Do something with these edits in force alone. */
async function without(edits, act) {
  const before = model.edits;
  model.edits = edits;
  try {
    return await act();
  } finally {
    model.edits = before;
  }
}

function encode(text, chat) {
  const ids = tokens.encode(chat ? inChat(text).text : text);
  if (ids.length > LONGEST.text) throw new Error(`the question has ${ids.length} tokens, and the page takes ${LONGEST.text}: shorten it`);
  return ids;
}

async function inverse(layer) {
  if (!solvers.has(layer)) {
    const answer = await fetch(`${folders.data}real_factor${layer}.bin`);
    if (!answer.ok) throw new Error(`the second moment of layer ${layer} could not be fetched (${answer.status})`);
    solvers.set(layer, solver(await answer.arrayBuffer(), model.dk));
  }
  return solvers.get(layer);
}

function helper(memory, module, thread) {
  const worker = startWorker("helper.js", import.meta.url);
  return new Promise((ready, failed) => {
    worker.onmessage = ready;
    worker.onerror = () => failed(new Error("a thread could not be started"));
    worker.postMessage({ memory, module, thread });
  });
}

let queue = Promise.resolve();
self.onmessage = ({ data: { id, what, ...given } }) => {
  if (what === "stop") { stopped = true; return; }
  queue = queue.then(async () => {
    stopped = false;
    try {
      self.postMessage({ id, done: await actions[what](given, (news) => self.postMessage({ id, news })) });
    } catch (error) {
      const small = error instanceof RangeError;
      self.postMessage({ id, error: small ? "This device lacks the memory that the model needs (about 500 MB)." : error.message });
    }
  });
};
