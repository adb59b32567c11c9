// Lines that the pointer draws, and what they make: clicks along a scribble, the pixels inside a lasso, the edge of a mask.

export type Point = [number, number]; // x, y in pixels of the frame, centres at whole numbers

// So many points of a line, evenly along it, without its start.
export function along(line: Point[], count: number): Point[] {
  const steps = line.slice(1).map((p, i) => Math.hypot(p[0] - line[i][0], p[1] - line[i][1]));
  const whole = steps.reduce((sum, step) => sum + step, 0);
  const found: Point[] = [];
  let passed = 0;
  for (let i = 0; i < steps.length; i++) {
    while (found.length < count && passed + steps[i] >= (whole * (found.length + 1)) / count - 1e-9) {
      const t = steps[i] ? ((whole * (found.length + 1)) / count - passed) / steps[i] : 0;
      found.push([line[i][0] + t * (line[i + 1][0] - line[i][0]), line[i][1] + t * (line[i + 1][1] - line[i][1])]);
    }
    passed += steps[i];
  }
  return found;
}

// The pixels whose centres lie inside a closed line (even-odd).
export function inside(line: Point[], width: number, height: number): Uint8Array {
  const mask = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const crossings: number[] = [];
    for (let i = 0; i < line.length; i++) {
      const [a, b] = [line[i], line[(i + 1) % line.length]];
      if (a[1] <= y !== b[1] <= y) crossings.push(a[0] + ((y - a[1]) / (b[1] - a[1])) * (b[0] - a[0]));
    }
    crossings.sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossings.length; i += 2)
      for (let x = Math.max(0, Math.ceil(crossings[i])); x <= Math.min(width - 1, crossings[i + 1]); x++) mask[y * width + x] = 1;
  }
  return mask;
}

// The mask's pixels that touch what is not marked, or the border.
export function edge(mask: ArrayLike<number>, width: number): Uint8Array {
  const found = new Uint8Array(mask.length);
  for (let i = 0; i < mask.length; i++) {
    const x = i % width;
    const within = x > 0 && x < width - 1 && mask[i - 1] && mask[i + 1] && mask[i - width] && mask[i + width];
    if (mask[i] && !within) found[i] = 1;
  }
  return found;
}
