// What the mode asks the server for. Addresses are relative to the page's server: it may lie below a path.

import type { Box } from "./masks";

export interface ImageFacts {
  id: string;
  instances: string[]; // the DICOM objects of its frames, in order
  frames: number;
  height: number;
  width: number;
  warnings: string[];
  labelled: boolean;
  others: boolean;
}

export interface Reply {
  long_axis: number;
  short_axis: number;
  area: number;
  unit: string;
  presence: number | null;
  uncertainty: number | null;
  safety_rule: string | null;
  version: string;
  warnings: string[];
  points?: { foreground: number[][]; background: number[][] };
}

export interface Outlined {
  reply: Reply;
  masks: Record<string, string>;
}

export interface Prompts {
  foreground: number[][];
  background: number[][];
  box?: Box;
}

// /ohif/... is served below MONAI Label's prefix, wherever that is.
const root = location.pathname.split("/ohif/")[0];

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
  if (!answer.ok) throw new Error(found?.detail ?? `the server answers ${answer.status}`);
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
  outline(image: string, frame: number, prompts: Prompts, hint = false): Promise<Outlined> {
    return ask("POST", "/ultrarefiner/viewer/outline", { image, frame, ...prompts, hint, client_id: this.client });
  }

  label(image: string): Promise<{ masks: Record<string, string> | null }> {
    return ask("GET", `/ultrarefiner/viewer/label?${new URLSearchParams({ image })}`);
  }

  save(image: string, masks: Record<string, string>, confirm: boolean): Promise<{ warnings?: string[] }> {
    return ask("PUT", "/ultrarefiner/viewer/label", { image, masks, confirm, client_id: this.client });
  }

  next(): Promise<{ id?: string; message?: string; place?: string }> {
    return ask("POST", "/ultrarefiner/viewer/next", { client_id: this.client });
  }
}
