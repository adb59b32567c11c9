// The panel beside the picture, and the work on one image: outline, clicks, box, brush, undo, accept, next.
//
// Plain DOM: OHIF's React is not reachable from outside its bundle. OHIF gives the panel a node and leaves it alone.

import { Click, FrameState, History } from "./history";
import { build } from "./look";
import { Box, boxOf, isEmpty, pack, unpack } from "./masks";
import type { ImageFacts, Outlined, Reply, Server } from "./server";
import type { Surface } from "./surface";
import { Tool, choose } from "./tools";

const KEYS: [string, string, (desk: Desk) => void][] = [
  ["o", "outline this frame", (d) => d.outline()],
  ["f", "click: this is lesion", (d) => d.use("positive")],
  ["b", "click: this is not", (d) => d.use("negative")],
  ["x", "draw a box around the lesion", (d) => d.use("box")],
  ["p", "brush", (d) => d.use("brush")],
  ["e", "eraser", (d) => d.use("eraser")],
  ["w", "brightness and contrast", (d) => d.use("window")],
  ["z", "undo", (d) => d.undo()],
  ["y", "redo", (d) => d.redo()],
  ["c", "clear the frame", (d) => d.clear()],
  ["t", "take the outline to the next frame", (d) => d.toNextFrame()],
  ["a", "accept: save as final", (d) => d.accept()],
  ["n", "next image", (d) => d.next()],
  ["?", "show these keys", (d) => d.help()],
];

// Points that propose themselves, as clicks.
function proposed(points: NonNullable<Reply["points"]>): Click[] {
  const as = (positive: boolean) => ([x, y]: number[]) => ({ x, y, positive });
  return [...points.foreground.map(as(true)), ...points.background.map(as(false))];
}

export class Desk {
  private facts: ImageFacts | null = null;
  private history = new History();
  private clicks = new Map<number, Click[]>();
  private tool: Tool = "positive";
  private box: Box | null = null;
  private changed = false;
  private busy = Promise.resolve();
  private stroke: FrameState | null = null;
  private radius = 8;
  readonly node = document.createElement("section");
  private readonly says: Record<string, HTMLElement>;

  constructor(
    private readonly surface: Surface,
    private readonly server: Server,
    private readonly open: (study: string) => void,
  ) {
    this.node.setAttribute("aria-label", "UltraRefiner");
    this.node.className = "ultrarefiner";
    this.says = build(this.node, KEYS.map(([key, words, act]) => [key, words, () => act(this)]));
    this.surface.onShown = () => this.show();
    window.addEventListener("keydown", (e) => this.key(e));
    window.addEventListener("beforeunload", (e) => {
      if (this.changed) e.preventDefault();
    });
  }

  // --- the image ----------------------------------------------------------------------------------------------------

  async begin(study: string, series: string): Promise<void> {
    this.tell("state", "Opening …");
    this.history.clear();
    this.clicks.clear();
    this.changed = false;
    this.facts = null;
    try {
      const facts = await this.server.image(study, series);
      await this.surface.begin();
      this.facts = facts;
      this.listen();
      this.use(this.tool);
      this.tell("image", facts.id);
      this.warn([...(facts.others ? ["Another user works on this image."] : []), ...facts.warnings]);
      if (facts.labelled) await this.showLabel();
      else await this.outline();
    } catch (error) {
      this.failed(error);
    }
  }

  private async showLabel(): Promise<void> {
    const { masks } = await this.server.label(this.facts!.id);
    for (const [frame, text] of Object.entries(masks ?? {})) this.put(+frame, text);
    this.tell("state", "Final label");
  }

  private put(frame: number, text: string): void {
    this.surface.setMask(frame, unpack(text, this.facts!.width * this.facts!.height));
  }

  private state(frame: number): FrameState {
    return { mask: this.surface.mask(frame), clicks: [...(this.clicks.get(frame) ?? [])] };
  }

  private restore(frame: number, state: FrameState): void {
    this.clicks.set(frame, state.clicks);
    this.surface.setMask(frame, state.mask);
    this.changed = true;
    this.show();
  }

  // --- what the user does -------------------------------------------------------------------------------------------

  // Without clicks this is the automatic outline; or, where the server begins with points that propose themselves, theirs.
  outline(): Promise<void> {
    return this.ask(this.surface.frame, null, []);
  }

  // Answers come in the order of the questions; a step is noted when its answer is there.
  private ask(frame: number, box: Box | null, clicks: Click[]): Promise<void> {
    const facts = this.facts;
    if (!facts) return this.busy;
    const before = this.state(frame);
    this.clicks.set(frame, clicks);
    this.show();
    this.tell("state", "Outlining …");
    const points = (positive: boolean) => clicks.filter((c) => c.positive === positive).map((c) => [c.x, c.y, frame]);
    const prompts = { foreground: points(true), background: points(false), ...(box ? { box } : {}) };
    this.busy = this.busy.then(async () => {
      try {
        const found = await this.server.outline(facts.id, frame, prompts);
        if (this.facts !== facts) return;
        this.history.note(frame, before);
        this.put(frame, found.masks[String(frame)]);
        if (found.reply.points && !clicks.length) this.clicks.set(frame, proposed(found.reply.points));
        this.changed = this.changed || clicks.length > 0 || box !== null;
        this.answered(found);
      } catch (error) {
        this.clicks.set(frame, before.clicks);
        this.failed(error);
      }
      this.show();
    });
    return this.busy;
  }

  use(tool: Tool): void {
    this.tool = tool;
    choose(tool, this.radius);
    for (const button of Array.from(this.node.querySelectorAll<HTMLElement>("[data-tool]")))
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }

  undo(): void {
    this.step((frame, now) => this.history.undo(frame, now), "Nothing to undo on this frame");
  }

  redo(): void {
    this.step((frame, now) => this.history.redo(frame, now), "Nothing to redo on this frame");
  }

  private step(move: (frame: number, now: FrameState) => FrameState | null, none: string): void {
    if (!this.facts) return;
    const frame = this.surface.frame;
    const state = move(frame, this.state(frame));
    if (state) this.restore(frame, state);
    this.tell("state", state ? "Changed" : none);
  }

  clear(): void {
    if (!this.facts) return;
    const frame = this.surface.frame;
    this.history.note(frame, this.state(frame));
    this.restore(frame, { mask: new Uint8Array(this.facts.width * this.facts.height), clicks: [] });
    this.tell("state", "Cleared");
  }

  async toNextFrame(): Promise<void> {
    const facts = this.facts;
    const frame = this.surface.frame;
    if (!facts || frame + 1 >= facts.frames) return this.tell("state", "This is the last frame");
    // A box stands for the outline of the frame before: the server takes clicks and boxes.
    const box = boxOf(this.surface.mask(frame), facts.width);
    await this.surface.go(frame + 1);
    await this.ask(frame + 1, box, []);
  }

  async accept(): Promise<void> {
    const facts = this.facts;
    if (!facts) return;
    await this.busy;
    const masks: Record<string, string> = {};
    for (let k = 0; k < facts.frames; k++) {
      const mask = this.surface.mask(k);
      if (!isEmpty(mask)) masks[k] = pack(mask);
    }
    if (!Object.keys(masks).length && !window.confirm("Nothing is marked. Save that there is no lesion?")) return;
    this.tell("state", "Saving …");
    try {
      const saved = await this.save(facts.id, masks);
      if (!saved) return this.tell("state", "Not saved");
      this.changed = false;
      this.tell("state", "Saved");
      this.warn(saved.warnings ?? []);
    } catch (error) {
      this.failed(error);
    }
  }

  private async save(image: string, masks: Record<string, string>): Promise<{ warnings?: string[] } | null> {
    try {
      return await this.server.save(image, masks, false);
    } catch (error) {
      const words = String((error as Error).message);
      if (!words.includes("confirm") || !window.confirm(`${words}\n\nSave it all the same?`)) throw error;
      return this.server.save(image, masks, true);
    }
  }

  async next(): Promise<void> {
    if (this.changed && !window.confirm("What you changed is not saved. Go on without it?")) return;
    try {
      const found = await this.server.next();
      if (!found.study) return this.tell("state", found.message ?? "There is no other image");
      this.changed = false;
      this.open(found.study);
    } catch (error) {
      this.failed(error);
    }
  }

  help(): void {
    this.says.keys.hidden = !this.says.keys.hidden;
  }

  // --- pointer and keys ---------------------------------------------------------------------------------------------

  private listen(): void {
    const element = this.surface.element!;
    if (element.dataset.ultrarefiner) return;
    element.dataset.ultrarefiner = "1";
    let start: [number, number] | null = null;
    let held: { click: Click; moved: boolean } | null = null; // a click that the pointer has taken hold of
    element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.facts) return;
      const frame = this.surface.frame;
      if (this.tool === "brush" || this.tool === "eraser") this.stroke = this.state(frame);
      const pixel = this.surface.pixelAt(event);
      if (!pixel || this.tool === "window" || this.stroke) return;
      const click = this.surface.clickAt(event, this.clicks.get(frame) ?? []);
      if (click) held = { click, moved: false };
      else if (this.tool === "box") start = pixel;
      else {
        const [x, y] = pixel.map(Math.round);
        this.ask(frame, null, [...(this.clicks.get(frame) ?? []), { x, y, positive: this.tool === "positive" }]);
      }
    });
    window.addEventListener("pointermove", (event) => {
      const pixel = (start || held) && this.surface.pixelAt(event);
      if (!pixel) return;
      if (held) {
        const [x, y] = pixel.map(Math.round);
        held.moved = held.moved || Math.hypot(x - held.click.x, y - held.click.y) > 2;
        const others = (this.clicks.get(this.surface.frame) ?? []).filter((c) => c !== held!.click);
        this.surface.draw(held.moved ? [...others, { ...held.click, x, y }] : [...others, held.click], null);
      }
      if (!start) return;
      this.box = [Math.min(start[0], pixel[0]), Math.min(start[1], pixel[1]), Math.max(start[0], pixel[0]), Math.max(start[1], pixel[1])];
      this.show();
    });
    window.addEventListener("pointerup", (event) => {
      if (held) {
        // Moved to another place, or taken away where it was only clicked on.
        const { click, moved } = held;
        held = null;
        const frame = this.surface.frame;
        const rest = (this.clicks.get(frame) ?? []).filter((c) => c !== click);
        const pixel = moved ? this.surface.pixelAt(event) : null;
        if (pixel) rest.push({ ...click, x: Math.round(pixel[0]), y: Math.round(pixel[1]) });
        this.ask(frame, null, rest);
        return;
      }
      const box = this.box;
      [start, this.box] = [null, null];
      if (box) this.ask(this.surface.frame, box, this.clicks.get(this.surface.frame) ?? []);
      // OHIF's brush ends with the same event: what it painted is there after it.
      else if (this.stroke) setTimeout(() => this.painted(), 0);
    });
  }

  private painted(): void {
    if (!this.stroke) return;
    this.history.note(this.surface.frame, this.stroke);
    this.stroke = null;
    this.changed = true;
    this.tell("state", "Changed");
  }

  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|TEXTAREA|SELECT/.test(target.tagName)) return;
    const found = KEYS.find(([key]) => key === event.key.toLowerCase());
    if (!found || !this.facts) return;
    event.preventDefault();
    event.stopPropagation();
    found[2](this);
  }

  // --- what is shown ------------------------------------------------------------------------------------------------

  show(): void {
    if (this.facts) this.surface.draw(this.clicks.get(this.surface.frame) ?? [], this.box);
  }

  private answered(found: Outlined): void {
    const r: Reply = found.reply;
    const share = (value: number | null) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`);
    this.tell("size", r.area ? `${r.long_axis.toFixed(1)} × ${r.short_axis.toFixed(1)} ${r.unit}` : "nothing marked");
    this.tell("presence", share(r.presence));
    this.tell("uncertainty", share(r.uncertainty));
    this.tell("rule", r.safety_rule || "none");
    this.tell("version", r.version);
    this.tell("state", "Proposed");
    this.warn(r.warnings ?? []);
  }

  private failed(error: unknown): void {
    this.tell("state", `Not done: ${(error as Error).message ?? error}`);
  }

  private tell(name: string, text: string): void {
    this.says[name].textContent = text;
  }

  private warn(texts: string[]): void {
    this.says.warnings.replaceChildren(
      ...texts.map((text) => {
        const item = document.createElement("li");
        item.textContent = text;
        return item;
      }),
    );
  }
}
