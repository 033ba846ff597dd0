/* One more thread for the engine: it has nothing but the shared memory and the kernel. */

import { help } from "./engine.js";

self.onmessage = async ({ data: { memory, module, thread } }) => {
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  self.postMessage("ready");
  help(memory, exports, thread);
};
