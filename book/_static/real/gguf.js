/* A GGUF file: what its head says, and where its tensors begin. */

const Q4_1 = 3, Q8_0 = 8; // the kinds of blocks that kernel.wat unpacks, of 20 and of 34 bytes for 32 numbers
export const BLOCK_BYTES = { [Q4_1]: 20, [Q8_0]: 34 };

/** The file's head as {about: {key: value}, tensors: {name: {at, rows, columns, kind}}}, `at` in bytes from its start. */
export function readHead(file) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const decoder = new TextDecoder();
  let at = 0;
  const u32 = () => view.getUint32((at += 4) - 4, true);
  const u64 = () => Number(view.getBigUint64((at += 8) - 8, true));
  // slice: a decoder reads no memory that threads share
  const text = () => { const n = u64(); at += n; return decoder.decode(file.slice(at - n, at)); };
  const value = {
    0: () => view.getUint8(at++), 1: () => view.getInt8(at++), 2: () => view.getUint16((at += 2) - 2, true),
    3: () => view.getInt16((at += 2) - 2, true), 4: u32, 5: () => view.getInt32((at += 4) - 4, true),
    6: () => view.getFloat32((at += 4) - 4, true), 7: () => Boolean(view.getUint8(at++)), 8: text,
    9: () => { const kind = u32(), n = u64(); return Array.from({ length: n }, value[kind]); },
    10: u64, 11: () => Number(view.getBigInt64((at += 8) - 8, true)), 12: () => view.getFloat64((at += 8) - 8, true),
  };
  if (u32() !== 0x46554747) throw new Error("this is no GGUF file");
  u32(); // its version
  const count = u64(), keys = u64(), about = {}, tensors = {};
  for (let i = 0; i < keys; i++) { const key = text(); about[key] = value[u32()](); }
  for (let i = 0; i < count; i++) {
    const name = text(), [columns, rows = 1] = Array.from({ length: u32() }, u64), kind = u32();
    tensors[name] = { at: u64(), rows, columns, kind };
  }
  const start = Math.ceil(at / (about["general.alignment"] || 32)) * (about["general.alignment"] || 32);
  for (const tensor of Object.values(tensors)) tensor.at += start;
  return { about, tensors };
}
