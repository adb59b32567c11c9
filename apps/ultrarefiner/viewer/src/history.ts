// What undo goes back to: the mask of one frame and the clicks on it, as they were before a step.

export interface Click {
  x: number;
  y: number;
  positive: boolean;
}

export interface FrameState {
  mask: Uint8Array;
  clicks: Click[];
}

export class History {
  private readonly done = new Map<number, FrameState[]>();
  private readonly undone = new Map<number, FrameState[]>();
  private static readonly most = 100;

  // Call before a step, with the state that it changes.
  note(frame: number, before: FrameState): void {
    const own = this.of(this.done, frame);
    own.push(before);
    if (own.length > History.most) own.shift();
    this.undone.delete(frame);
  }

  // The state to go back to, null where there is none; now: what redo brings back.
  undo(frame: number, now: FrameState): FrameState | null {
    return this.move(this.done, this.undone, frame, now);
  }

  redo(frame: number, now: FrameState): FrameState | null {
    return this.move(this.undone, this.done, frame, now);
  }

  clear(): void {
    this.done.clear();
    this.undone.clear();
  }

  private of(stacks: Map<number, FrameState[]>, frame: number): FrameState[] {
    if (!stacks.has(frame)) stacks.set(frame, []);
    return stacks.get(frame)!;
  }

  private move(from: Map<number, FrameState[]>, to: Map<number, FrameState[]>, frame: number, now: FrameState): FrameState | null {
    const state = this.of(from, frame).pop() ?? null;
    if (state) this.of(to, frame).push(now);
    return state;
  }
}
