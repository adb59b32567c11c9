// Masks as the server sends them: the bits of (height, width), row by row, base64. Here one byte a pixel, 0 or 1.

export type Box = [number, number, number, number]; // x0, y0, x1, y1 in pixels, the last ones included

export function unpack(text: string, count: number): Uint8Array {
  const bits = atob(text);
  const mask = new Uint8Array(count);
  for (let i = 0; i < count; i++) mask[i] = (bits.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1;
  return mask;
}

export function pack(mask: ArrayLike<number>): string {
  const bytes = new Uint8Array(Math.ceil(mask.length / 8));
  for (let i = 0; i < mask.length; i++) if (mask[i]) bytes[i >> 3] |= 128 >> (i & 7);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...Array.from(bytes.subarray(i, i + 8192)));
  return btoa(text);
}

export function isEmpty(mask: ArrayLike<number>): boolean {
  for (let i = 0; i < mask.length; i++) if (mask[i]) return false;
  return true;
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
