// A final label on its way to the server.

import { isEmpty, pack } from "./masks";
import type { Server } from "./server";

// frame -> packed mask, of the frames where something is marked.
export function marked(frames: number, maskOf: (frame: number) => Uint8Array): Record<string, string> {
  const masks: Record<string, string> = {};
  for (let k = 0; k < frames; k++) {
    const mask = maskOf(k);
    if (!isEmpty(mask)) masks[k] = pack(mask);
  }
  return masks;
}

// What the server doubts, the user may confirm.
export async function saveLabel(server: Server, image: string, masks: Record<string, string>): Promise<{ warnings?: string[] }> {
  try {
    return await server.save(image, masks, false);
  } catch (error) {
    const words = String((error as Error).message);
    if (!words.includes("confirm") || !window.confirm(`${words}\n\nSave it all the same?`)) throw error;
    return server.save(image, masks, true);
  }
}
