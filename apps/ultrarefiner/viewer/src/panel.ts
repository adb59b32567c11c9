// The panel beside the picture, and the work on one image: outline, clicks, box, brush, undo, accept, next.
//
// Plain DOM: OHIF's React is not reachable from outside its bundle. OHIF gives the panel a node and leaves it alone.

import { Click, FrameState, History } from "./history";
import { Hints } from "./hints";
import { Look } from "./look";
import { Box, boxOf, unpack } from "./masks";
import { Pointer, Work } from "./pointer";
import { marked, saveLabel } from "./saving";
import type { ImageFacts, Outlined, Prompts, Reply, Server } from "./server";
import { Point, along, edge, inside } from "./shapes";
import type { Surface } from "./surface";
import { Tool, choose } from "./tools";

const KEYS: [string, string, (desk: Desk) => void][] = [
  ["o", "outline this frame", (d) => d.outline()],
  ["f", "click: this is lesion", (d) => d.use("positive")],
  ["b", "click: this is not", (d) => d.use("negative")],
  ["h", "hints while the pointer moves", (d) => d.toggleHints()],
  ["x", "draw a box around the lesion", (d) => d.use("box")],
  ["p", "brush", (d) => d.use("brush")],
  ["e", "eraser", (d) => d.use("eraser")],
  ["l", "lasso: what it encloses is lesion", (d) => d.use("lasso")],
  ["w", "brightness and contrast", (d) => d.use("window")],
  ["z", "undo", (d) => d.undo()],
  ["y", "redo", (d) => d.redo()],
  ["c", "clear the frame", (d) => d.clear()],
  ["t", "take the outline to the next frame", (d) => d.toNextFrame()],
  ["a", "accept: save as final", (d) => d.accept()],
  ["n", "next image", (d) => d.next()],
  ["?", "show these keys", (d) => d.help()],
];

const MOST_OF_A_SCRIBBLE = 4; // clicks that a scribble adds to its first one

// Points that propose themselves, as clicks.
function proposed(points: NonNullable<Reply["points"]>): Click[] {
  const as = (positive: boolean) => ([x, y]: number[]) => ({ x, y, positive });
  return [...points.foreground.map(as(true)), ...points.background.map(as(false))];
}

interface Step {
  noted: boolean;
}

export class Desk implements Work {
  private facts: ImageFacts | null = null;
  private history = new History();
  private clicks = new Map<number, Click[]>();
  tool: Tool = "positive";
  private changed = false;
  private place: [string, string] = ["", ""]; // study and series
  private begun = 0; // how many images were opened
  private frame = 0; // that was on the screen last
  private returning = false; // to that frame, from a picture of another image
  private busy = Promise.resolve();
  private stroke: [number, FrameState] | null = null;
  private latest: Click[] = []; // asked about last
  private drawing: Step = { noted: false };
  private radius = 8;
  private readonly hints: Hints;
  private readonly pointer: Pointer;
  private readonly look: Look;

  constructor(
    private readonly surface: Surface,
    private readonly server: Server,
    private readonly open: (place: string) => void,
  ) {
    const links: [string, string][] = [["worklist", "Worklist"], ["status", "What it learns"]];
    this.look = new Look(
      KEYS.map(([key, words, act]) => [key, words, () => act(this)]),
      links.map(([page, words]) => [server.page(page), words]),
    );
    this.pointer = new Pointer(surface, this);
    this.hints = new Hints(surface, (point) => this.edgeAt(point));
    this.surface.onShown = () => this.shown();
    window.addEventListener("keydown", (e) => this.key(e));
    window.addEventListener("beforeunload", (e) => {
      if (this.changed) e.preventDefault();
    });
  }

  get node(): HTMLElement {
    return this.look.node;
  }

  // --- the image ----------------------------------------------------------------------------------------------------

  // kept: masks that were drawn before and are not saved, to be shown again.
  async begin(study: string, series: string, kept: Record<string, string> | null = null): Promise<void> {
    const own = ++this.begun;
    this.tell("state", "Opening …");
    this.history.clear();
    this.clicks.clear();
    this.changed = false;
    this.facts = null;
    try {
      const facts = await this.server.image(study, series, this.surface.instance);
      if (own !== this.begun) return; // another image was opened meanwhile
      await this.surface.begin(facts.instances);
      if (own !== this.begun) return;
      this.place = [study, series];
      this.facts = facts;
      this.pointer.listen(this.surface.element!);
      this.use(this.tool);
      this.tell("image", facts.id);
      this.warn([...(facts.others ? ["Another user works on this image."] : []), ...facts.warnings]);
      if (kept) {
        for (const [frame, text] of Object.entries(kept)) this.put(+frame, text);
        this.edited();
      } else if (facts.labelled) await this.showLabel(facts);
      else await this.outline();
    } catch (error) {
      this.failed(error);
    }
  }

  private async showLabel(facts: ImageFacts): Promise<void> {
    const { masks } = await this.server.label(facts.id);
    if (this.facts !== facts) return;
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

  // The wheel may have turned to a picture of the series that is another image.
  private shown(): void {
    if (!this.facts || this.returning) return;
    if (this.surface.frame >= 0) {
      this.frame = this.surface.frame;
      return this.show();
    }
    if (this.leaves()) return void this.begin(...this.place);
    this.returning = true;
    void this.surface.go(this.frame).finally(() => (this.returning = false));
  }

  // Whether what is shown may be left: nothing changed, or the user says so.
  leaves(): boolean {
    return !this.changed || window.confirm("What you changed is not saved. Go on without it?");
  }

  // --- what the user does -------------------------------------------------------------------------------------------

  // Without clicks this is the automatic outline; or, where the server begins with points that propose themselves, theirs.
  outline(): Promise<void> {
    return this.ask(this.surface.frame, null, []);
  }

  // Answers come in the order of the questions; a step is noted when its answer is there. Questions of one step (a scribble asks
  // twice) share it, so that one undo takes it back.
  private ask(frame: number, box: Box | null, clicks: Click[], step: Step = { noted: false }): Promise<void> {
    const facts = this.facts;
    if (!facts) return this.busy;
    const before = this.state(frame);
    this.clicks.set(frame, clicks);
    this.latest = clicks;
    this.show();
    this.tell("state", "Outlining …");
    this.busy = this.busy.then(async () => {
      try {
        const found = await this.server.outline(facts.id, frame, this.prompts(frame, box, clicks));
        if (this.facts !== facts) return;
        // The mask as it is now: answers of questions before this one, and what the brush painted meanwhile, are in it.
        if (!step.noted) this.history.note(frame, { mask: this.surface.mask(frame), clicks: before.clicks });
        step.noted = true;
        this.put(frame, found.masks[String(frame)]);
        if (this.latest === clicks && found.reply.points && !clicks.length) this.clicks.set(frame, proposed(found.reply.points));
        this.changed = this.changed || clicks.length > 0 || box !== null;
        this.answered(found);
      } catch (error) {
        if (this.facts !== facts) return;
        if (this.latest === clicks) this.clicks.set(frame, before.clicks);
        this.failed(error);
      }
      this.show();
    });
    return this.busy;
  }

  private prompts(frame: number, box: Box | null, clicks: Click[]): Prompts {
    const points = (positive: boolean) => clicks.filter((c) => c.positive === positive).map((c) => [c.x, c.y, frame]);
    return { foreground: points(true), background: points(false), ...(box ? { box } : {}) };
  }

  get ready(): boolean {
    return this.facts !== null && this.surface.frame >= 0;
  }

  clicksHere(): Click[] {
    return this.clicks.get(this.surface.frame) ?? [];
  }

  private as([x, y]: Point): Click {
    return { x: Math.round(x), y: Math.round(y), positive: this.tool === "positive" };
  }

  click(point: Point): void {
    this.drawing = { noted: false };
    this.ask(this.surface.frame, null, [...this.clicksHere(), this.as(point)], this.drawing);
  }

  // The click where the line begins is asked about already.
  scribble(line: Point[]): void {
    const more = along(line, MOST_OF_A_SCRIBBLE).map((point) => this.as(point));
    this.ask(this.surface.frame, null, [...this.clicksHere(), ...more], this.drawing);
  }

  move(click: Click, to: Point | null): void {
    const rest = this.clicksHere().filter((c) => c !== click);
    this.ask(this.surface.frame, null, to ? [...rest, { ...click, x: to[0], y: to[1] }] : rest);
  }

  boxed(box: Box): void {
    this.ask(this.surface.frame, box, this.clicksHere());
  }

  lasso(line: Point[]): void {
    const frame = this.surface.frame;
    const { width, height } = this.facts!;
    this.strokeBegins();
    const added = inside(line, width, height);
    this.surface.setMask(frame, this.surface.mask(frame).map((v, i) => v | added[i]));
    this.strokeEnds();
  }

  strokeBegins(): void {
    this.stroke = [this.surface.frame, this.state(this.surface.frame)];
  }

  strokeEnds(): void {
    if (!this.stroke) return;
    this.history.note(...this.stroke); // on the frame where it began
    this.stroke = null;
    this.edited();
  }

  private edited(): void {
    this.changed = true;
    this.tell("state", "Changed");
  }

  hint(point: Point | null): void {
    this.hints.look(this.tool === "positive" || this.tool === "negative" ? point : null);
  }

  toggleHints(): void {
    this.hints.on = !this.hints.on;
    this.look.press("h", this.hints.on);
    this.hint(null);
  }

  private async edgeAt(point: Point): Promise<Uint8Array> {
    await this.busy; // a click goes first
    const facts = this.facts!;
    const { id, width, height } = facts;
    const frame = this.surface.frame;
    const found = await this.server.outline(id, frame, this.prompts(frame, null, [...this.clicksHere(), this.as(point)]), true);
    if (this.facts !== facts) throw new Error("another image is shown");
    return edge(unpack(found.masks[String(frame)], width * height), width);
  }

  use(tool: Tool): void {
    this.tool = tool;
    choose(tool, this.radius);
    this.look.choose(tool);
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
    if (this.facts !== facts) return; // the answer to the last click came after another image was opened
    const masks = this.drawn();
    if (!Object.keys(masks).length && !window.confirm("Nothing is marked. Save that there is no lesion?")) return;
    this.tell("state", "Saving …");
    this.changed = false; // what is drawn from now on is not in it
    try {
      const saved = await saveLabel(this.server, facts.id, masks);
      if (this.facts !== facts) return;
      this.tell("state", this.changed ? "Changed" : "Saved");
      this.warn(saved.warnings ?? []);
    } catch (error) {
      if (this.facts === facts) this.changed = true;
      this.failed(error);
    }
  }

  // What is drawn on each frame, packed.
  drawn(): Record<string, string> {
    return this.facts ? marked(this.facts.frames, (k) => this.surface.mask(k)) : {};
  }

  // The mode is left: what is not saved may be saved now.
  end(): void {
    if (this.facts && this.changed && window.confirm("What you changed is not saved. Save it as final now?"))
      void saveLabel(this.server, this.facts.id, this.drawn()).catch((error) => window.alert(`Not saved: ${error.message ?? error}`));
    this.begun++;
    [this.facts, this.changed] = [null, false];
    this.surface.end();
  }

  async next(): Promise<void> {
    if (!this.leaves()) return;
    try {
      const found = await this.server.next();
      if (!found.place) return this.tell("state", found.message ?? "There is no other image");
      this.changed = false;
      this.open(found.place);
    } catch (error) {
      this.failed(error);
    }
  }

  help(): void {
    this.look.toggle("keys");
  }

  // --- keys ----------------------------------------------------------------------------------------------------------

  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|TEXTAREA|SELECT/.test(target.tagName)) return;
    const found = KEYS.find(([key]) => key === event.key.toLowerCase());
    if (!found || !this.ready) return;
    event.preventDefault();
    event.stopPropagation();
    found[2](this);
  }

  // --- what is shown ------------------------------------------------------------------------------------------------

  show(): void {
    if (this.facts) this.surface.draw(this.clicksHere(), null);
  }

  private answered(found: Outlined): void {
    this.look.figures(found.reply);
    this.tell("state", "Proposed");
    this.warn(found.reply.warnings ?? []);
  }

  private failed(error: unknown): void {
    this.tell("state", `Not done: ${(error as Error).message ?? error}`);
  }

  private tell(name: string, text: string): void {
    this.look.say(name, text);
  }

  private warn(texts: string[]): void {
    this.look.list("warnings", texts);
  }
}
