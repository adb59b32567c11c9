// Keys and buttons of the panel, in the order in which they are shown.

import type { Desk } from "./panel";

export const KEYS: [string, string, (desk: Desk) => void][] = [
  ["o", "outline this frame", (d) => d.outline()],
  ["f", "click: lesion", (d) => d.use("positive")],
  ["b", "click: not lesion", (d) => d.use("negative")],
  ["x", "box", (d) => d.use("box")],
  ["l", "lasso", (d) => d.use("lasso")],
  ["p", "brush", (d) => d.use("brush")],
  ["e", "eraser", (d) => d.use("eraser")],
  ["[", "smaller brush", (d) => d.brush(1 / 1.4)],
  ["]", "larger brush", (d) => d.brush(1.4)],
  ["z", "undo", (d) => d.drawing.undo()],
  ["y", "redo", (d) => d.drawing.redo()],
  ["c", "clear the frame", (d) => d.drawing.clear()],
  ["h", "live hints", (d) => d.toggleHints()],
  ["v", "hide outline", (d) => d.hide()],
  ["w", "brightness", (d) => d.use("window")],
  ["k", "play, stop", (d) => (d.player.on ? d.player.stop() : d.player.start())],
  ["t", "outline to next frame", (d) => d.drawing.toNextFrame()],
  ["a", "accept: save as final", (d) => d.accept()],
  ["n", "next image", (d) => d.next()],
  ["?", "show these keys", (d) => d.help()],
];
export const OF_LOOPS = ["k", "t"];
