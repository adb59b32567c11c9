// A final label on its way to the server, and what is kept of it until it is there.

import { Masks, isEmpty, pack } from "./masks";
import { ImageFacts, Refused, Saved, Server } from "./server";

// What is marked on these frames.
export function marked(frames: number[], maskOf: (frame: number) => Uint8Array): Masks {
  const masks: Masks = {};
  for (const k of frames) {
    const mask = maskOf(k);
    if (!isEmpty(mask)) masks[k] = pack(mask);
  }
  return masks;
}

export interface Label {
  masks: Masks;
  shown: number[]; // frames that these masks are all of
  state: string; // the label's that they replace
}

// What the server doubts, the user may confirm; and that another label is replaced.
export async function saveLabel(server: Server, facts: ImageFacts, label: Label): Promise<Saved> {
  let { state } = label;
  let confirmed = false;
  for (;;) {
    try {
      return await server.save(facts, label.masks, label.shown, state, confirmed);
    } catch (error) {
      const words = String((error as Error).message);
      const other = error instanceof Refused ? error.labelState : undefined;
      if (other !== undefined) {
        if (!window.confirm(`${words}.\n\nSave yours in its place? The other one is kept on the server.`)) throw error;
        state = other;
      } else if (!confirmed && words.includes("confirm")) {
        if (!window.confirm(`${words}\n\nSave it all the same?`)) throw error;
        confirmed = true;
      } else throw error;
    }
  }
}

// --- what could not be saved when its image was left, in this tab -------------------------------------------------------

const KEPT = "ultrarefiner-kept:";

export function keep(image: string, masks: Masks): void {
  try {
    sessionStorage.setItem(KEPT + image, JSON.stringify(masks));
  } catch {
    // the browser has no room for it
  }
}

export function forget(image: string): void {
  sessionStorage.removeItem(KEPT + image);
}

export function keptOf(image: string): Masks | null {
  const text = sessionStorage.getItem(KEPT + image);
  return text ? JSON.parse(text) : null;
}
