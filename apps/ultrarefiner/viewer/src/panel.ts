// The panel beside the picture: which image is open, keys and buttons, accept and next, and what the user is told.
//
// Plain DOM: OHIF's React is not reachable from outside its bundle. OHIF gives the panel a node and leaves it alone.

import { Drawing } from "./drawing";
import { Hints } from "./hints";
import { KEYS, OF_LOOPS } from "./keys";
import { Look } from "./look";
import { Player } from "./player";
import { Pointer } from "./pointer";
import type { Masks } from "./masks";
import { forget, keep, keptOf, saveLabel } from "./saving";
import type { Outlined, Server } from "./server";
import type { Point } from "./shapes";
import type { Surface } from "./surface";
import { Tool, choose } from "./tools";

export class Desk {
  readonly drawing: Drawing;
  readonly player: Player;
  private place: [string, string] = ["", ""]; // study and series
  private begun = 0; // how many images were opened
  private frame = 0; // that was on the screen last
  private returning = false; // to that frame, from a picture of another image
  private saving: Promise<void> | null = null;
  private radius = 8; // of the brush, pixels of the screen
  private standing = ""; // the state of the work, while a frame says something of its own
  private about: string[] = []; // what the user should know of the image
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
      answered: (frame, found) => this.answered(frame, found),
      changed: (text) => this.changed(text),
      failed: (error) => this.failed(error),
    });
    this.hints = new Hints(surface, (point) => this.drawing.edgeAt(point));
    this.player = new Player(surface, (on) => {
      this.look.press("k", on);
      if (!on) this.describe();
    });
    this.pointer = new Pointer(surface, this.drawing, (point) => this.hint(point));
    this.surface.onShown = () => this.shown();
    window.addEventListener("keydown", (e) => this.key(e));
    window.addEventListener("pointerdown", (e) => {
      if (this.surface.element?.contains(e.target as Node)) this.player.stop();
    }, true);
    window.addEventListener("beforeunload", (e) => {
      if (this.drawing.unsaved || this.saving) e.preventDefault();
    });
  }

  get node(): HTMLElement {
    return this.look.node;
  }

  // --- the image ----------------------------------------------------------------------------------------------------

  // kept: masks that were drawn before and are not saved, to be shown again. Nothing can be drawn before a final label is there.
  async begin(study: string, series: string, kept: Masks | null = null): Promise<void> {
    const own = ++this.begun;
    this.player.stop();
    this.tell("Opening …");
    this.drawing.close();
    this.place = [study, series];
    try {
      const facts = await this.server.image(study, series, this.surface.instance);
      const label = facts.label_state ? await this.server.label(facts.id) : null;
      if (own !== this.begun) return; // another image was opened meanwhile
      await this.surface.begin(facts.instances);
      if (own !== this.begun) return;
      const left = kept ?? this.left(facts.id);
      this.drawing.open(facts, left ?? label?.masks ?? {}, label?.label_state ?? "");
      this.pointer.listen(this.surface.element!);
      this.use(this.drawing.tool);
      this.look.say("image", facts.id);
      this.look.offer(OF_LOOPS, facts.frames > 1);
      this.about = [...(facts.others ? ["Another user works on this image."] : []), ...facts.warnings];
      const parts = facts.frames - this.surface.frames.length;
      if (parts) this.about.push(`${parts} more frames of this image are shown with another picture of the series.`);
      this.warn([]);
      this.frame = this.surface.frame;
      if (left) this.drawing.edited(this.frame);
      else if (label?.masks) this.changed("Final label");
      else await this.drawing.outline();
    } catch (error) {
      if (own === this.begun) this.failed(error);
    }
  }

  // What was drawn on an image and could not be saved when it was left.
  private left(image: string): Masks | null {
    const masks = keptOf(image);
    forget(image);
    return masks && window.confirm("What you drew on this image before was not saved. Show it again?") ? masks : null;
  }

  // The wheel may have turned to a picture of the series that is another image.
  private shown(): void {
    if (!this.drawing.facts || this.returning) return;
    const { frame } = this.surface;
    if (frame >= 0) {
      this.drawing.show();
      if (frame !== this.frame) {
        this.frame = frame;
        this.describe();
      }
      return;
    }
    if (this.leaves()) return void this.begin(...this.place);
    this.returning = true;
    void this.surface.go(this.frame).finally(() => (this.returning = false));
  }

  // Whether what is shown may be left: nothing changed, or the user says so.
  leaves(): boolean {
    return !this.drawing.unsaved || window.confirm("What you changed is not saved. Go on without it?");
  }

  // The mode is left: what is not saved may be saved now. Until it is, it is kept.
  end(): void {
    const { facts, unsaved } = this.drawing;
    if (facts && unsaved && window.confirm("What you changed is not saved. Save it as final now?")) {
      const label = this.drawing.label();
      keep(facts.id, label.masks);
      void saveLabel(this.server, facts, label).then(
        () => forget(facts.id),
        (error) => window.alert(`Not saved: ${error.message ?? error}\n\nOpen ${facts.id} again in this tab to see what you drew.`),
      );
    }
    this.begun++;
    this.player.stop();
    this.drawing.close();
    this.surface.end();
  }

  // --- what the user does -------------------------------------------------------------------------------------------

  // Where an image could not be opened, it is opened again.
  outline(): Promise<void> {
    return this.drawing.facts || !this.place[0] ? this.drawing.outline() : this.begin(...this.place);
  }

  use(tool: Tool): void {
    this.drawing.tool = tool;
    choose(tool, this.radius);
    this.look.choose(tool);
  }

  brush(times: number): void {
    this.radius = Math.min(100, Math.max(1, this.radius * times));
    if (this.drawing.tool !== "eraser") this.use("brush");
    else this.use("eraser");
  }

  hide(): void {
    this.look.press("v", !this.surface.toggle());
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

  accept(): Promise<void> {
    const own: Promise<void> = (this.saving ?? Promise.resolve())
      .then(() => this.save())
      .finally(() => {
        if (this.saving === own) this.saving = null;
      });
    return (this.saving = own);
  }

  private async save(): Promise<void> {
    const { drawing } = this;
    const { facts } = drawing;
    if (!facts) return;
    await drawing.busy;
    if (drawing.facts !== facts) return; // the answer to the last click came after another image was opened
    const label = drawing.label();
    if (!Object.keys(label.masks).length && !window.confirm("Nothing is marked. Save that there is no lesion?")) return;
    this.tell("Saving …");
    drawing.changed = false; // what is drawn from now on is not in it
    try {
      const saved = await saveLabel(this.server, facts, label);
      if (drawing.facts !== facts) return;
      drawing.labelState = saved.label_state;
      this.tell(drawing.changed ? "Changed" : "Saved");
      const [marked, all] = [Object.keys(label.masks).length, label.shown.length];
      const some = all > 1 ? [`${marked} of ${all} frames have an outline.`] : [];
      this.warn([...some, ...(saved.warnings ?? [])]);
    } catch (error) {
      if (drawing.facts === facts) {
        drawing.changed = true;
        return this.failed(error);
      }
      keep(facts.id, label.masks);
      window.alert(`The label of ${facts.id} was not saved: ${(error as Error).message}\n\nOpen it again in this tab to see what you drew.`);
    }
  }

  async next(): Promise<void> {
    const { facts } = this.drawing;
    await this.drawing.busy;
    await this.saving;
    if (this.drawing.facts !== facts || !this.leaves()) return;
    try {
      const found = await this.server.next(facts?.id);
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
    if (!found || !(this.drawing.ready || found[0] === "o")) return;
    event.preventDefault();
    event.stopPropagation();
    if (found[0] !== "k") this.player.stop();
    found[2](this);
  }

  // --- what the user is told ----------------------------------------------------------------------------------------

  private answered(frame: number, found: Outlined): void {
    this.standing = "Proposed";
    this.tell(this.standing);
    if (!this.surface.seen) this.hide(); // nothing is changed unseen
    if (frame === this.surface.frame) this.look.figures(found.reply);
    this.warn(found.reply.warnings ?? []);
  }

  private changed(text: string): void {
    this.standing = text;
    this.describe();
  }

  // Figures and state of the frame that is shown. What is not the server's outline is measured there.
  private describe(): void {
    const { facts } = this.drawing;
    const { frame } = this.surface;
    if (!facts || frame < 0 || this.player.on) return;
    const reply = this.drawing.replyOf(frame);
    const runs = this.drawing.runsOf(frame);
    const empty = runs.length < 2;
    this.tell(empty && facts.frames > 1 && this.standing !== "Cleared" ? "Nothing is marked on this frame" : this.standing);
    this.look.figures(reply);
    if (reply) return;
    const still = () => this.drawing.facts === facts && this.surface.frame === frame && this.drawing.replyOf(frame) === null;
    void this.server.measure(facts.id, frame, runs).then(
      (size) => still() && this.look.size(size),
      () => still() && this.look.say("size", "–"),
    );
  }

  private failed(error: unknown): void {
    const again = this.drawing.facts ? "" : ". Key o: try again";
    this.tell(`Not done: ${(error as Error).message ?? error}${again}`);
  }

  private tell(text: string): void {
    this.look.say("state", text);
  }

  // What is to be said of the image stays beside it.
  private warn(texts: string[]): void {
    this.look.list("warnings", [...new Set([...this.about, ...texts])]);
  }
}
