// What the pointer does on the picture, in the words of the work: clicks, scribbles, boxes, lassos, strokes of the brush, hints.

import type { Drawing } from "./drawing";
import type { Click } from "./history";
import type { Box } from "./masks";
import type { Point } from "./shapes";
import type { Surface } from "./surface";

const SCRIBBLE = 14; // pixels of the screen: a shorter line is a click by a hand that trembles

const whole = ([x, y]: Point): Point => [Math.round(x), Math.round(y)];

// At most one of these is under way, from pointerdown to pointerup.
type Way =
  | { kind: "held"; click: Click; moved: boolean }
  | { kind: "box"; start: Point; box: Box | null }
  | { kind: "line"; line: Point[]; length: number; last: Point; lasso: boolean }
  | { kind: "stroke" };

export class Pointer {
  private way: Way | null = null;
  private frame = 0; // where it began

  constructor(
    private readonly surface: Surface,
    private readonly work: Drawing,
    private readonly hint: (point: Point | null) => void, // null: where a click is not meant
  ) {
    window.addEventListener("pointermove", (event) => this.moved(event));
    window.addEventListener("pointerup", (event) => this.up(event));
    window.addEventListener("pointercancel", () => this.dropped());
  }

  listen(element: HTMLElement): void {
    if (element.dataset.ultrarefiner) return;
    element.dataset.ultrarefiner = "1";
    element.addEventListener("pointerdown", (event) => this.down(event));
    // OHIF's tools do not see what is the mode's own: a click that waits for a second one would be a brush's, once that is chosen.
    const own = (event: MouseEvent) => {
      if (event.button === 0 && this.own) event.stopPropagation();
    };
    element.addEventListener("mousedown", own, true);
    element.addEventListener("pointerleave", () => this.hint(null));
  }

  private get own(): boolean {
    return this.work.ready && !["brush", "eraser", "window"].includes(this.work.tool);
  }

  private down(event: PointerEvent): void {
    if (event.button !== 0 || !this.work.ready) return;
    const { tool } = this.work;
    this.frame = this.surface.frame;
    this.hint(null);
    if (tool === "brush" || tool === "eraser") {
      this.way = { kind: "stroke" };
      return this.work.strokeBegins();
    }
    const point = this.surface.pixelAt(event);
    if (!point || tool === "window") return;
    const last: Point = [event.clientX, event.clientY];
    const click = tool === "lasso" ? null : this.surface.clickAt(event, this.work.clicksHere());
    if (click) this.way = { kind: "held", click, moved: false };
    else if (tool === "box") this.way = { kind: "box", start: point, box: null };
    else {
      this.way = { kind: "line", line: [point], length: 0, last, lasso: tool === "lasso" };
      if (tool !== "lasso") this.work.click(whole(point)); // at once; what a drag adds comes with its end
    }
  }

  private moved(event: PointerEvent): void {
    const { way } = this;
    if (!this.work.ready) return;
    const point = this.surface.pixelAt(event);
    if (!way) return this.hover(event, point);
    if (!point) return;
    if (way.kind === "held") {
      const [x, y] = whole(point);
      way.moved = way.moved || Math.hypot(x - way.click.x, y - way.click.y) > 2;
      const others = this.work.clicksHere().filter((c) => c !== way.click);
      this.surface.draw([...others, way.moved ? { ...way.click, x, y } : way.click], null);
    } else if (way.kind === "box") {
      const [[x0, y0], [x1, y1]] = [way.start, point];
      way.box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
      this.surface.draw(this.work.clicksHere(), way.box);
    } else if (way.kind === "line") {
      way.length += Math.hypot(event.clientX - way.last[0], event.clientY - way.last[1]);
      way.last = [event.clientX, event.clientY];
      way.line.push(point);
      this.surface.draw(this.work.clicksHere(), null, way.line);
    }
  }

  private hover(event: PointerEvent, point: Point | null): void {
    const here = this.surface.element?.contains(event.target as Node) ?? false;
    this.hint(here && this.work.ready && event.buttons === 0 && point ? whole(point) : null);
  }

  private up(event: PointerEvent): void {
    const { way } = this;
    this.way = null;
    if (!way) return;
    if (way.kind === "stroke") setTimeout(() => this.work.strokeEnds(), 0); // OHIF's brush ends with the same event
    else if (!this.work.ready || this.surface.frame !== this.frame) return; // the wheel turned to another frame: not meant for it
    else if (way.kind === "held") {
      const to = way.moved ? this.surface.pixelAt(event) : null;
      this.work.move(way.click, to && whole(to));
    } else if (way.kind === "box") {
      if (way.box) this.work.boxed(way.box);
    } else if (way.length >= SCRIBBLE) {
      if (way.lasso) this.work.lasso(way.line);
      else this.work.scribble(way.line);
    }
    if (way.kind === "line") this.surface.draw(this.work.clicksHere(), null);
  }

  private dropped(): void {
    if (this.way?.kind === "stroke") this.work.strokeEnds();
    this.way = null;
    if (this.work.ready) this.surface.draw(this.work.clicksHere(), null);
  }
}
