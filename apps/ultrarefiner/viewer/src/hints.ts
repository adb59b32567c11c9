// Live hints: while the pointer moves, what a click there would give, as a thin edge. Off until they are asked for: each one costs the
// server an answer. One question at a time, always about the newest place.

import type { Point } from "./shapes";
import type { Surface } from "./surface";

export class Hints {
  on = false;
  private at: Point | null = null;
  private asking = false;

  // edgeAt: the edge of what a click there would give (height x width).
  constructor(
    private readonly surface: Surface,
    private readonly edgeAt: (point: Point) => Promise<Uint8Array>,
  ) {}

  // The pointer is there; null: where a click is not meant.
  look(point: Point | null): void {
    this.at = this.on ? point : null;
    if (!this.at) this.surface.hint(null);
    else if (!this.asking) void this.ask();
  }

  private async ask(): Promise<void> {
    this.asking = true;
    try {
      for (let point = this.at; point; point = this.at === point ? null : this.at) {
        const frame = this.surface.frame;
        const edge = await this.edgeAt(point);
        if (this.at && this.surface.frame === frame) this.surface.hint(edge);
      }
    } catch {
      this.surface.hint(null); // no hint, then; a click says what is wrong
    } finally {
      this.asking = false;
    }
  }
}
