/* From a text to the tokens that the model reads, with the place of a subject in it, as minilib's LM.encode does it. */

import { Tokenizer } from "../real_data/tokenizers.mjs";

const CONTROL = 3; // a kind of token in the GGUF file: a special one
const SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
const BYTE_LEVEL = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
export const LONGEST = { text: 300, target: 40 }; // tokens

/** The chat prompt around a user's message, and where in it the message starts. */
export function inChat(message) {
  const before = `<|im_start|>system\n${SYSTEM}<|im_end|>\n<|im_start|>user\n`;
  return { text: `${before}${message}<|im_end|>\n<|im_start|>assistant\n`, start: before.length };
}

export class Tokens {
  /** From the head of the GGUF file. */
  constructor(about) {
    const words = about["tokenizer.ggml.tokens"], kinds = about["tokenizer.ggml.token_type"];
    const special = words.map((content, id) => ({
      id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true,
    })).filter(({ id }) => kinds[id] === CONTROL);
    this.stop = about["tokenizer.ggml.eos_token_id"];
    this.special = new Map(special.map(({ id, content }) => [id, content]));
    this.library = new Tokenizer({
      version: "1.0", added_tokens: special, normalizer: null, post_processor: null,
      pre_tokenizer: BYTE_LEVEL, decoder: BYTE_LEVEL,
      model: {
        type: "BPE", dropout: null, unk_token: null, fuse_unk: false, byte_fallback: false, ignore_merges: false,
        vocab: Object.fromEntries(words.map((word, id) => [word, id])),
        merges: about["tokenizer.ggml.merges"].map((merge) => merge.split(" ")),
      },
    }, { clean_up_tokenization_spaces: false, add_bos_token: false });
    this.words = words;
    this.bytes = bytesOfLetters();
  }

  encode(text) {
    return this.library.encode(text, { add_special_tokens: false }).ids;
  }

  /** What tokens say; bytes that are no whole letter yet are left out, special tokens too. */
  decode(ids) {
    const bytes = ids.filter((id) => !this.special.has(id)).flatMap((id) => this.bytesOf(id));
    return new TextDecoder().decode(Uint8Array.from(bytes)).replace(/\ufffd+$/, "");
  }

  bytesOf(id) {
    if (this.special.has(id)) return [...new TextEncoder().encode(this.special.get(id))];
    return [...this.words[id]].map((letter) => this.bytes.get(letter));
  }

  /** Of a prompt with `{}`, a subject and whether it is a chat message: the tokens, and the index of the subject's last. */
  prompt(prompt, subject, chat) {
    const [before, after] = prompt.split("{}");
    const message = before + subject + after, { text, start } = chat ? inChat(message) : { text: message, start: 0 };
    const end = new TextEncoder().encode(text.slice(0, start + before.length + subject.length)).length;
    const ids = this.encode(text);
    let reached = 0;
    const last = ids.findIndex((id) => (reached += this.bytesOf(id).length) >= end);
    return { ids, last };
  }
}

/** Byte-level BPE writes each byte as a letter: those that can be seen as themselves, the others from letter 256 on. */
function bytesOfLetters() {
  const seen = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return new Map(Array.from({ length: 256 }, (_, b) => [String.fromCodePoint(seen(b) ? b : next++), b]));
}
