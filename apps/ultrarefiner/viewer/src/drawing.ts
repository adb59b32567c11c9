// The work on one image: what is asked for clicks, boxes and lines, what is painted, and the way back.

import { Click, FrameState, History } from "./history";
import { Box, Masks, Runs, boxOf, pack, unpack } from "./masks";
import { Label, marked } from "./saving";
import type { ImageFacts, Outlined, Prompts, Reply, Server } from "./server";
import { Point, along, edge, inside } from "./shapes";
import type { Surface } from "./surface";
import type { Tool } from "./tools";

const MOST_OF_A_SCRIBBLE = 4; // clicks that a scribble adds to its first one

// What the work tells the user.
export interface Words {
  state(text: string): void;
  answered(frame: number, found: Outlined): void;
  changed(text: string): void; // the mask of the frame that is shown
  failed(error: unknown): void;
}

interface Step {
  noted: boolean;
}

// Points that propose themselves, as clicks.
function proposed(points: NonNullable<Reply["points"]>): Click[] {
  const as = (positive: boolean) => ([x, y]: number[]) => ({ x, y, positive });
  return [...points.foreground.map(as(true)), ...points.background.map(as(false))];
}

export class Drawing {
  facts: ImageFacts | null = null; // of the image that is open
  tool: Tool = "positive";
  changed = false; // something is drawn that is not saved
  labelState = ""; // of the final label that is known here
  private pending = 0; // questions of the user's that are not answered
  busy = Promise.resolve(); // until the last question is answered
  private readonly history = new History();
  private readonly replies = new Map<number, Reply>(); // what the server said of the outline that is on a frame
  private readonly clicks = new Map<number, Click[]>();
  private stroke: [number, FrameState] | null = null;
  private latest: Click[] = []; // asked about last
  private scribbled: Step = { noted: false };

  constructor(
    private readonly surface: Surface,
    private readonly server: Server,
    private readonly words: Words,
  ) {}

  // From now on no image is open.
  close(): void {
    this.history.clear();
    this.clicks.clear();
    this.replies.clear();
    this.stroke = null;
    [this.facts, this.changed, this.pending] = [null, false, 0];
  }

  open(facts: ImageFacts, masks: Masks, labelState: string): void {
    [this.facts, this.labelState] = [facts, labelState];
    for (const [frame, runs] of Object.entries(masks)) this.put(+frame, runs);
  }

  get unsaved(): boolean {
    return this.changed || this.pending > 0;
  }

  get ready(): boolean {
    return this.facts !== null && this.surface.frame >= 0;
  }

  // --- masks and clicks ---------------------------------------------------------------------------------------------

  clicksHere(): Click[] {
    return this.clicks.get(this.surface.frame) ?? [];
  }

  private put(frame: number, runs: Runs): void {
    this.surface.setMask(frame, unpack(runs, this.facts!.width * this.facts!.height));
  }

  // What is drawn, and what it replaces.
  label(): Label {
    const shown = this.surface.frames;
    return { masks: marked(shown, (k) => this.surface.mask(k)), shown, state: this.labelState };
  }

  show(): void {
    if (this.facts) this.surface.draw(this.clicksHere(), null);
  }

  edited(frame: number): void {
    this.changed = true;
    this.replies.delete(frame);
    this.words.changed("Changed");
  }

  replyOf(frame: number): Reply | null {
    return this.replies.get(frame) ?? null;
  }

  runsOf(frame: number): Runs {
    return pack(this.surface.mask(frame));
  }

  private state(frame: number): FrameState {
    return { mask: this.surface.mask(frame), clicks: [...(this.clicks.get(frame) ?? [])] };
  }

  private restore(frame: number, state: FrameState): void {
    this.clicks.set(frame, state.clicks);
    this.surface.setMask(frame, state.mask);
    this.changed = true;
    this.replies.delete(frame);
    this.show();
  }

  // --- what is asked ------------------------------------------------------------------------------------------------

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
    this.words.state("Outlining …");
    const own = clicks.length > 0 || box !== null;
    if (own) this.pending++;
    this.busy = this.busy.then(async () => {
      try {
        const found = await this.server.outline(facts, frame, this.prompts(frame, box, clicks));
        if (this.facts !== facts) return;
        // The mask as it is now: answers of questions before this one, and what the brush painted meanwhile, are in it.
        if (!step.noted) this.history.note(frame, { mask: this.surface.mask(frame), clicks: before.clicks });
        step.noted = true;
        this.put(frame, found.masks[String(frame)]);
        if (this.latest === clicks && found.reply.points && !clicks.length) this.clicks.set(frame, proposed(found.reply.points));
        this.changed = this.changed || own;
        this.replies.set(frame, found.reply);
        this.words.answered(frame, found);
      } catch (error) {
        if (this.facts !== facts) return;
        if (this.latest === clicks) this.clicks.set(frame, before.clicks);
        this.words.failed(error);
      } finally {
        if (own && this.facts === facts) this.pending--;
      }
      this.show();
    });
    return this.busy;
  }

  private prompts(frame: number, box: Box | null, clicks: Click[]): Prompts {
    const points = (positive: boolean) => clicks.filter((c) => c.positive === positive).map((c) => [c.x, c.y, frame]);
    return { foreground: points(true), background: points(false), ...(box ? { box } : {}) };
  }

  private as([x, y]: Point): Click {
    return { x: Math.round(x), y: Math.round(y), positive: this.tool === "positive" };
  }

  click(point: Point): void {
    this.scribbled = { noted: false };
    this.ask(this.surface.frame, null, [...this.clicksHere(), this.as(point)], this.scribbled);
  }

  // The click where the line begins is asked about already.
  scribble(line: Point[]): void {
    const more = along(line, MOST_OF_A_SCRIBBLE).map((point) => this.as(point));
    this.ask(this.surface.frame, null, [...this.clicksHere(), ...more], this.scribbled);
  }

  // to: null takes the click away.
  move(click: Click, to: Point | null): void {
    const rest = this.clicksHere().filter((c) => c !== click);
    this.ask(this.surface.frame, null, to ? [...rest, { ...click, x: to[0], y: to[1] }] : rest);
  }

  boxed(box: Box): void {
    this.ask(this.surface.frame, box, this.clicksHere());
  }

  // The edge of what a click there would give (height x width).
  async edgeAt(point: Point): Promise<Uint8Array> {
    await this.busy; // a click goes first
    const facts = this.facts!;
    const { width, height } = facts;
    const frame = this.surface.frame;
    const found = await this.server.outline(facts, frame, this.prompts(frame, null, [...this.clicksHere(), this.as(point)]), true);
    if (this.facts !== facts) throw new Error("another image is shown");
    return edge(unpack(found.masks[String(frame)], width * height), width);
  }

  async toNextFrame(): Promise<void> {
    const facts = this.facts;
    const frame = this.surface.frame;
    const next = this.surface.frames.find((k) => k > frame);
    if (!facts || next === undefined) return this.words.state("This is the last frame");
    // A box stands for the outline of the frame before: the server takes clicks and boxes.
    const box = boxOf(this.surface.mask(frame), facts.width);
    if (!box) return this.words.state("There is no outline on this frame to take along");
    await this.surface.go(next);
    await this.ask(next, box, []);
  }

  // --- what is painted, and the way back ----------------------------------------------------------------------------

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
    const [frame, before] = this.stroke; // where it began
    this.stroke = null;
    this.history.note(frame, before);
    this.edited(frame);
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
    if (!state) return this.words.state(none);
    this.restore(frame, state);
    this.words.changed("Changed");
  }

  clear(): void {
    if (!this.facts) return;
    const frame = this.surface.frame;
    this.history.note(frame, this.state(frame));
    this.restore(frame, { mask: new Uint8Array(this.facts.width * this.facts.height), clicks: [] });
    this.words.changed("Cleared");
  }
}
