// Masks as the server sends them: lengths of the runs of equal pixels, row by row, in turn not marked and marked. Here one byte a pixel,
// 0 or 1.

export type Runs = number[];
export type Masks = Record<string, Runs>; // by frame
export type Box = [number, number, number, number]; // x0, y0, x1, y1 in pixels, the last ones included

export function unpack(runs: Runs, count: number): Uint8Array {
  const mask = new Uint8Array(count);
  let at = 0;
  runs.forEach((length, k) => {
    if (k % 2) mask.fill(1, at, at + length);
    at += length;
  });
  return mask;
}

export function pack(mask: Uint8Array): Runs {
  const runs: Runs = [];
  let value = 0;
  for (let at = 0; at < mask.length; value = 1 - value) {
    const found = mask.indexOf(1 - value, at);
    const end = found < 0 ? mask.length : found;
    runs.push(end - at);
    at = end;
  }
  return runs;
}

export function isEmpty(mask: Uint8Array): boolean {
  return !mask.includes(1);
}

export function boxOf(mask: ArrayLike<number>, width: number): Box | null {
  let [x0, y0, x1, y1] = [Infinity, Infinity, -1, -1];
  for (let i = 0; i < mask.length; i++) {
    if (!mask[i]) continue;
    const x = i % width;
    const y = (i - x) / width;
    [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x), Math.max(y1, y)];
  }
  return x1 < 0 ? null : [x0, y0, x1, y1];
}
