// What the panel looks like: buttons, figures, keys.

import type { Reply, Size } from "./server";
import type { Tool } from "./tools";

export type Key = [string, string, () => void]; // the key, what it does in words, what it does

const STYLE =
  ".ultrarefiner{color:#e5eef8;font:14px/1.45 system-ui,sans-serif;padding:12px;overflow:auto;height:100%}" +
  ".ultrarefiner button{background:#0b3a6b;color:#fff;border:1px solid #5b9fd0;border-radius:4px;padding:4px 8px;margin:2px;font-size:13px;cursor:pointer}" +
  ".ultrarefiner button[aria-pressed=true]{background:#5acce6;color:#000}.ultrarefiner button:focus-visible{outline:3px solid #facc15}" +
  ".ultrarefiner dl{display:grid;grid-template-columns:auto 1fr;gap:2px 12px;margin:10px 0}.ultrarefiner dt{color:#9fb6cc}.ultrarefiner dt{white-space:nowrap}.ultrarefiner dd{margin:0;min-width:0;overflow-wrap:anywhere}" +
  ".ultrarefiner a{color:#9cd3f5;text-decoration:underline}" +
  ".ultrarefiner .accept{background:#15803d;border-color:#86efac}.ultrarefiner button[hidden]{display:none}.ultrarefiner ul{margin:6px 0;padding-left:18px;color:#fde68a}";
const TOOLS: Record<string, Tool> = { f: "positive", b: "negative", x: "box", l: "lasso", p: "brush", e: "eraser", w: "window" };
const FIGURES: [string, string][] = [
  ["size", "Size"],
  ["presence", "Lesion at all"],
  ["uncertainty", "Unsure"],
  ["rule", "Safety rule"],
  ["version", "Model"],
];

function make<K extends keyof HTMLElementTagNameMap>(name: K, text = ""): HTMLElementTagNameMap[K] {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

export class Look {
  readonly node = make("section");
  private readonly parts: Record<string, HTMLElement> = {};
  private readonly buttons = new Map<string, HTMLButtonElement>();

  // links: what else is one click away, [address, words].
  constructor(keys: Key[], links: [string, string][]) {
    this.node.setAttribute("aria-label", "UltraRefiner");
    this.node.className = "ultrarefiner";
    const heading = this.part("image", make("h2"));
    heading.style.cssText = "font-weight:600;overflow-wrap:anywhere";
    const state = this.part("state", make("p"));
    state.setAttribute("role", "status");
    const buttons = make("div");
    buttons.append(...keys.map((key) => this.button(key)));
    const facts = make("dl");
    for (const [name, words] of FIGURES) facts.append(make("dt", words), this.part(name, make("dd")));
    const list = this.part("keys", make("ul"));
    list.hidden = true;
    this.list("keys", keys.map(([key, words]) => `${key}: ${words}`));
    const ways = make("p");
    for (const [address, words] of links) {
      const link = make("a", words);
      link.href = address;
      ways.append(link, " ");
    }
    const notice = make("p", "Research use only. Not a medical device.");
    this.node.append(make("style", STYLE), ways, heading, state, buttons, facts, this.part("warnings", make("ul")), list, notice);
    this.parts.warnings.hidden = true;
  }

  private part(name: string, element: HTMLElement): HTMLElement {
    return (this.parts[name] = element);
  }

  private button([key, words, act]: Key): HTMLButtonElement {
    const button = make("button", words.charAt(0).toUpperCase() + words.slice(1));
    button.type = "button";
    button.title = `Key ${key}`;
    button.setAttribute("aria-keyshortcuts", key);
    if (key === "a") button.className = "accept";
    button.addEventListener("click", () => act());
    this.buttons.set(key, button);
    return button;
  }

  offer(keys: string[], on: boolean): void {
    for (const key of keys) this.buttons.get(key)!.hidden = !on;
  }

  press(key: string, on: boolean): void {
    this.buttons.get(key)!.setAttribute("aria-pressed", String(on));
  }

  choose(tool: Tool): void {
    for (const [key, own] of Object.entries(TOOLS)) this.press(key, own === tool);
  }

  say(name: string, text: string): void {
    this.parts[name].textContent = text;
  }

  list(name: string, texts: string[]): void {
    this.parts[name].replaceChildren(...texts.map((text) => make("li", text)));
    if (name === "warnings") this.parts[name].hidden = !texts.length;
  }

  toggle(name: string): void {
    this.parts[name].hidden = !this.parts[name].hidden;
  }

  size(s: Size | null): void {
    this.say("size", s === null ? "" : s.area ? `${s.long_axis.toFixed(1)} × ${s.short_axis.toFixed(1)} ${s.unit}` : "nothing marked");
  }

  // What the server says of an outline; null: what is drawn is not the server's.
  figures(r: Reply | null): void {
    this.size(r);
    if (r === null) return ["presence", "uncertainty", "rule", "version"].forEach((name) => this.say(name, "–"));
    const share = (value: number | null) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`);
    this.say("presence", share(r.presence));
    this.say("uncertainty", share(r.uncertainty));
    this.say("rule", r.safety_rule || "none");
    this.say("version", r.version);
  }
}
