// Plays a loop: frame after frame, from the one that is shown.

import type { Surface } from "./surface";

const PAUSE = 60; // milliseconds from frame to frame

export class Player {
  private turn = 0; // counts starts and stops
  on = false;

  // changed: it began or stopped.
  constructor(
    private readonly surface: Surface,
    private readonly changed: (on: boolean) => void,
  ) {}

  async start(): Promise<void> {
    const own = ++this.turn;
    this.set(true);
    while (own === this.turn) {
      const { frames } = this.surface;
      if (frames.length < 2) break;
      await this.surface.go(frames[(frames.indexOf(this.surface.frame) + 1) % frames.length]);
      await new Promise((done) => setTimeout(done, PAUSE));
    }
    if (own === this.turn) this.stop();
  }

  stop(): void {
    this.turn++;
    if (this.on) this.set(false);
  }

  private set(on: boolean): void {
    this.on = on;
    this.changed(on);
  }
}
