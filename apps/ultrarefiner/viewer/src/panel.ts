// The panel beside the picture: which image is open, keys and buttons, accept and next, and what the user is told.
//
// Plain DOM: OHIF's React is not reachable from outside its bundle. OHIF gives the panel a node and leaves it alone.

import { Drawing } from "./drawing";
import { Hints } from "./hints";
import { Look } from "./look";
import { Pointer } from "./pointer";
import { saveLabel } from "./saving";
import type { ImageFacts, Outlined, Server } from "./server";
import type { Point } from "./shapes";
import type { Surface } from "./surface";
import { Tool, choose } from "./tools";

const KEYS: [string, string, (desk: Desk) => void][] = [
  ["o", "outline this frame", (d) => d.drawing.outline()],
  ["f", "click: this is lesion", (d) => d.use("positive")],
  ["b", "click: this is not", (d) => d.use("negative")],
  ["h", "hints while the pointer moves", (d) => d.toggleHints()],
  ["x", "draw a box around the lesion", (d) => d.use("box")],
  ["p", "brush", (d) => d.use("brush")],
  ["e", "eraser", (d) => d.use("eraser")],
  ["l", "lasso: what it encloses is lesion", (d) => d.use("lasso")],
  ["w", "brightness and contrast", (d) => d.use("window")],
  ["z", "undo", (d) => d.drawing.undo()],
  ["y", "redo", (d) => d.drawing.redo()],
  ["c", "clear the frame", (d) => d.drawing.clear()],
  ["t", "take the outline to the next frame", (d) => d.drawing.toNextFrame()],
  ["a", "accept: save as final", (d) => d.accept()],
  ["n", "next image", (d) => d.next()],
  ["?", "show these keys", (d) => d.help()],
];
const BRUSH_RADIUS = 8;

export class Desk {
  readonly drawing: Drawing;
  private place: [string, string] = ["", ""]; // study and series
  private begun = 0; // how many images were opened
  private frame = 0; // that was on the screen last
  private returning = false; // to that frame, from a picture of another image
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
    this.drawing = new Drawing(surface, server, {
      state: (text) => this.tell(text),
      answered: (found) => this.answered(found),
      failed: (error) => this.failed(error),
    });
    this.hints = new Hints(surface, (point) => this.drawing.edgeAt(point));
    this.pointer = new Pointer(surface, this.drawing, (point) => this.hint(point));
    this.surface.onShown = () => this.shown();
    window.addEventListener("keydown", (e) => this.key(e));
    window.addEventListener("beforeunload", (e) => {
      if (this.drawing.changed) e.preventDefault();
    });
  }

  get node(): HTMLElement {
    return this.look.node;
  }

  // --- the image ----------------------------------------------------------------------------------------------------

  // kept: masks that were drawn before and are not saved, to be shown again.
  async begin(study: string, series: string, kept: Record<string, string> | null = null): Promise<void> {
    const own = ++this.begun;
    this.tell("Opening …");
    this.drawing.close();
    try {
      const facts = await this.server.image(study, series, this.surface.instance);
      if (own !== this.begun) return; // another image was opened meanwhile
      await this.surface.begin(facts.instances);
      if (own !== this.begun) return;
      this.place = [study, series];
      this.drawing.facts = facts;
      this.pointer.listen(this.surface.element!);
      this.use(this.drawing.tool);
      this.look.say("image", facts.id);
      this.warn([...(facts.others ? ["Another user works on this image."] : []), ...facts.warnings]);
      if (kept) {
        this.put(kept);
        this.drawing.edited();
      } else if (facts.labelled) await this.showLabel(facts);
      else await this.drawing.outline();
    } catch (error) {
      this.failed(error);
    }
  }

  private async showLabel(facts: ImageFacts): Promise<void> {
    const { masks } = await this.server.label(facts.id);
    if (this.drawing.facts !== facts) return;
    this.put(masks ?? {});
    this.tell("Final label");
  }

  private put(masks: Record<string, string>): void {
    for (const [frame, text] of Object.entries(masks)) this.drawing.put(+frame, text);
  }

  // The wheel may have turned to a picture of the series that is another image.
  private shown(): void {
    if (!this.drawing.facts || this.returning) return;
    if (this.surface.frame >= 0) {
      this.frame = this.surface.frame;
      return this.drawing.show();
    }
    if (this.leaves()) return void this.begin(...this.place);
    this.returning = true;
    void this.surface.go(this.frame).finally(() => (this.returning = false));
  }

  // Whether what is shown may be left: nothing changed, or the user says so.
  leaves(): boolean {
    return !this.drawing.changed || window.confirm("What you changed is not saved. Go on without it?");
  }

  // The mode is left: what is not saved may be saved now.
  end(): void {
    const { facts, changed } = this.drawing;
    if (facts && changed && window.confirm("What you changed is not saved. Save it as final now?"))
      void saveLabel(this.server, facts.id, this.drawing.drawn()).catch((error) => window.alert(`Not saved: ${error.message ?? error}`));
    this.begun++;
    this.drawing.close();
    this.surface.end();
  }

  // --- what the user does -------------------------------------------------------------------------------------------

  use(tool: Tool): void {
    this.drawing.tool = tool;
    choose(tool, BRUSH_RADIUS);
    this.look.choose(tool);
  }

  toggleHints(): void {
    this.hints.on = !this.hints.on;
    this.look.press("h", this.hints.on);
    this.hint(null);
  }

  private hint(point: Point | null): void {
    const { tool } = this.drawing;
    this.hints.look(tool === "positive" || tool === "negative" ? point : null);
  }

  async accept(): Promise<void> {
    const { drawing } = this;
    const { facts } = drawing;
    if (!facts) return;
    await drawing.busy;
    if (drawing.facts !== facts) return; // the answer to the last click came after another image was opened
    const masks = drawing.drawn();
    if (!Object.keys(masks).length && !window.confirm("Nothing is marked. Save that there is no lesion?")) return;
    this.tell("Saving …");
    drawing.changed = false; // what is drawn from now on is not in it
    try {
      const saved = await saveLabel(this.server, facts.id, masks);
      if (drawing.facts !== facts) return;
      this.tell(drawing.changed ? "Changed" : "Saved");
      this.warn(saved.warnings ?? []);
    } catch (error) {
      if (drawing.facts === facts) drawing.changed = true;
      this.failed(error);
    }
  }

  async next(): Promise<void> {
    if (!this.leaves()) return;
    try {
      const found = await this.server.next();
      if (!found.place) return this.tell(found.message ?? "There is no other image");
      this.drawing.changed = false;
      this.open(found.place);
    } catch (error) {
      this.failed(error);
    }
  }

  help(): void {
    this.look.toggle("keys");
  }

  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|TEXTAREA|SELECT/.test(target.tagName)) return;
    const found = KEYS.find(([key]) => key === event.key.toLowerCase());
    if (!found || !this.drawing.ready) return;
    event.preventDefault();
    event.stopPropagation();
    found[2](this);
  }

  // --- what the user is told ----------------------------------------------------------------------------------------

  private answered(found: Outlined): void {
    this.look.figures(found.reply);
    this.tell("Proposed");
    this.warn(found.reply.warnings ?? []);
  }

  private failed(error: unknown): void {
    this.tell(`Not done: ${(error as Error).message ?? error}`);
  }

  private tell(text: string): void {
    this.look.say("state", text);
  }

  private warn(texts: string[]): void {
    this.look.list("warnings", texts);
  }
}
