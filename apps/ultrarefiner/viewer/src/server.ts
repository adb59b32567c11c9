// What the mode asks the server for. Addresses are relative to the page's server: it may lie below a path.

import type { Box, Masks, Runs } from "./masks";

export interface ImageFacts {
  id: string;
  instances: [string, number][]; // the DICOM objects of its frames, in order, and how many frames each has
  frames: number;
  height: number;
  width: number;
  warnings: string[];
  label_state: string; // of its final label; empty: there is none
  others: boolean;
}

export interface Size {
  long_axis: number;
  short_axis: number;
  area: number;
  unit: string;
}

export interface Reply extends Size {
  presence: number | null;
  uncertainty: number | null;
  safety_rule: string | null;
  version: string;
  warnings: string[];
  points?: { foreground: number[][]; background: number[][] };
}

export interface Outlined {
  reply: Reply;
  masks: Masks;
}

export interface Saved {
  warnings?: string[];
  label_state: string;
}

// The server says no. labelState: of the label that is there, where it is another one than the viewer knows.
export class Refused extends Error {
  constructor(
    words: string,
    readonly labelState?: string,
  ) {
    super(words);
  }
}

export interface Prompts {
  foreground: number[][];
  background: number[][];
  box?: Box;
}

// /ohif/... is served below MONAI Label's prefix, wherever that is.
const root = location.pathname.split("/ohif/")[0];

const NO_ANSWER = "the server's answer is not understood. Perhaps you are logged out: log in in another tab of this browser, then try again here";

async function ask(method: string, path: string, body?: unknown): Promise<any> {
  const answer = await fetch(`${root}${path}`, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await answer.text();
  let found: any = null;
  try {
    found = JSON.parse(text);
  } catch {
    found = null; // a proxy's page
  }
  const words = found?.detail ? String(found.detail) : `the server answers ${answer.status}`;
  if (answer.status === 401) throw new Refused(`${words}. Log in in another tab of this browser, then try again here`);
  if (!answer.ok) throw new Refused(words, found?.label_state);
  if (found === null || answer.redirected) throw new Refused(NO_ANSWER);
  return found;
}

export class Server {
  constructor(readonly client: string) {}

  // The address of one of the app's own pages.
  page(name: string): string {
    return `${root}/ultrarefiner/${name}`;
  }

  // instance: the DICOM object that is shown; a series may hold several images.
  image(study: string, series: string, instance: string): Promise<ImageFacts> {
    const query = new URLSearchParams({ study, series, instance, client_id: this.client });
    return ask("GET", `/ultrarefiner/viewer/image?${query}`);
  }

  // hint: what a click would give, asked while the pointer moves; the server keeps no record of it.
  outline({ id, instances }: ImageFacts, frame: number, prompts: Prompts, hint = false): Promise<Outlined> {
    return ask("POST", "/ultrarefiner/viewer/outline", { image: id, instances, frame, ...prompts, hint, client_id: this.client });
  }

  measure(image: string, frame: number, runs: Runs): Promise<Size> {
    return ask("POST", "/ultrarefiner/viewer/measure", { image, frame, runs });
  }

  label(image: string): Promise<{ masks: Masks | null; label_state: string }> {
    return ask("GET", `/ultrarefiner/viewer/label?${new URLSearchParams({ image })}`);
  }

  // shown: the frames that masks are all of; label_state: of the label that they replace.
  save({ id, instances }: ImageFacts, masks: Masks, shown: number[], label_state: string, confirm: boolean): Promise<Saved> {
    const label = { image: id, instances, masks, shown, label_state, confirm, client_id: this.client };
    return ask("PUT", "/ultrarefiner/viewer/label", label);
  }

  // image: the one that is open.
  next(image?: string): Promise<{ id?: string; message?: string; place?: string }> {
    return ask("POST", "/ultrarefiner/viewer/next", { image, client_id: this.client });
  }
}
