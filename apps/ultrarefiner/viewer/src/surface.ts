// The picture: where the pointer is in pixels of the frame, the labelmap over it, markers of the clicks.

import type { Click } from "./history";
import type { Box } from "./masks";
import type { Point } from "./shapes";

declare const window: any;
const SEGMENT = 1;

export class Surface {
  private segmentationId = "";
  private images = new Map<number, any>(); // the labelmap's, by frame
  private places: number[] = []; // where in what is shown each frame is; -1: OHIF shows it elsewhere
  seen = true; // the labelmap
  private listened: HTMLElement | null = null;
  private readonly marks = document.createElement("div");
  private readonly hinted = document.createElement("canvas");
  onShown: () => void = () => {};

  constructor(private readonly services: any) {
    this.marks.className = "ultrarefiner-marks";
    this.marks.style.cssText = "position:absolute;inset:0;pointer-events:none;overflow:hidden;z-index:5";
    this.hinted.className = "ultrarefiner-hint";
    this.hinted.style.cssText = "position:absolute;left:0;top:0;transform-origin:0 0;image-rendering:pixelated;max-width:none";
    this.hinted.hidden = true;
  }

  get viewportId(): string {
    return this.services.viewportGridService.getState().activeViewportId;
  }

  get viewport(): any {
    return this.services.cornerstoneViewportService.getCornerstoneViewport(this.viewportId);
  }

  get element(): HTMLElement | null {
    return this.viewport?.element ?? null;
  }

  // The image's frames that are shown here: OHIF may show a series in parts.
  get frames(): number[] {
    return [...this.images.keys()];
  }

  // The frame of the image that is on the screen; -1: the series goes on with another image there.
  get frame(): number {
    return this.places.indexOf(this.viewport?.getCurrentImageIdIndex?.() ?? 0);
  }

  // The DICOM object on the screen.
  get instance(): string {
    return this.instanceOf(this.viewport?.getCurrentImageId?.());
  }

  private instanceOf(imageId: string | undefined): string {
    return (imageId && window.cornerstone.metaData.get("instance", imageId)?.SOPInstanceUID) || "";
  }

  async go(frame: number): Promise<void> {
    await this.viewport.setImageIdIndex(this.places[frame]);
  }

  // A labelmap over the frames that come from these DICOM objects, in this order, as far as they are shown; empty at first.
  async begin(instances: [string, number][]): Promise<void> {
    const { imageLoader } = window.cornerstone;
    const { segmentation, Enums } = window.cornerstoneTools;
    const shown: string[] = this.viewport.getImageIds();
    const places = new Map<string, number[]>();
    shown.forEach((id, k) => places.set(this.instanceOf(id), [...(places.get(this.instanceOf(id)) ?? []), k]));
    this.end();
    this.places = instances.flatMap(([uid, count]) => Array.from({ length: count }, (_, k) => places.get(uid)?.[k] ?? -1));
    const frames = this.places.flatMap((place, frame) => (place >= 0 ? [frame] : []));
    const images = await imageLoader.createAndCacheDerivedLabelmapImages(frames.map((frame) => shown[this.places[frame]]));
    this.images = new Map(frames.map((frame, k) => [frame, images[k]]));
    this.segmentationId = `lesion-${Date.now()}`;
    const type = Enums.SegmentationRepresentations.Labelmap;
    segmentation.addSegmentations([
      {
        segmentationId: this.segmentationId,
        representation: { type, data: { imageIds: images.map((i: any) => i.imageId) } },
        config: { label: "lesion", segments: { [SEGMENT]: { segmentIndex: SEGMENT, label: "lesion", active: true } } },
      },
    ]);
    await segmentation.addLabelmapRepresentationToViewport(this.viewportId, [{ segmentationId: this.segmentationId, type }]);
    segmentation.activeSegmentation.setActiveSegmentation(this.viewportId, this.segmentationId);
    segmentation.segmentIndex.setActiveSegmentIndex(this.segmentationId, SEGMENT);
    this.element!.append(this.marks);
    if (this.listened === this.element) return;
    this.listened = this.element;
    this.element!.addEventListener(window.cornerstone.Enums.Events.IMAGE_RENDERED, () => this.onShown());
  }

  end(): void {
    this.marks.remove();
    if (!this.segmentationId) return;
    window.cornerstoneTools.segmentation.removeSegmentation(this.segmentationId);
    this.segmentationId = "";
    this.images = new Map();
    this.places = [];
    this.seen = true;
  }

  // Hides the labelmap, or shows it again. Returns whether it is seen now.
  toggle(): boolean {
    const { segmentation, Enums } = window.cornerstoneTools;
    const which = { segmentationId: this.segmentationId, type: Enums.SegmentationRepresentations.Labelmap };
    this.seen = !this.seen;
    segmentation.config.visibility.setSegmentationRepresentationVisibility(this.viewportId, which, this.seen);
    return this.seen;
  }

  mask(frame: number): Uint8Array {
    return new Uint8Array(this.images.get(frame).voxelManager.getScalarData()); // 0 and SEGMENT, which is 1
  }

  // A frame that is not shown here stays as it is.
  setMask(frame: number, mask: ArrayLike<number>): void {
    const manager = this.images.get(frame)?.voxelManager;
    if (!manager) return;
    const data = manager.getScalarData();
    for (let i = 0; i < data.length; i++) data[i] = mask[i] ? SEGMENT : 0;
    manager.setScalarData(data);
    window.cornerstoneTools.segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(this.segmentationId);
  }

  // Pixels of the frame under the pointer, centres at whole numbers; null outside the image.
  pixelAt(event: PointerEvent): [number, number] | null {
    const bounds = this.element!.getBoundingClientRect();
    const world = this.viewport.canvasToWorld([event.clientX - bounds.left, event.clientY - bounds.top]);
    const { imageData, dimensions } = this.viewport.getImageData();
    const [x, y] = imageData.worldToIndex(world);
    const inside = x >= -0.5 && y >= -0.5 && x <= dimensions[0] - 0.5 && y <= dimensions[1] - 0.5;
    return inside ? [x, y] : null;
  }

  private toCanvas(x: number, y: number): [number, number] {
    return this.viewport.worldToCanvas(this.viewport.getImageData().imageData.indexToWorld([x, y, 0]));
  }

  // The click under the pointer, null where there is none.
  clickAt(event: PointerEvent, clicks: Click[]): Click | null {
    const bounds = this.element!.getBoundingClientRect();
    const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
    const reached = (c: Click) => {
      const [left, top] = this.toCanvas(c.x, c.y);
      return Math.hypot(left - x, top - y) <= 9;
    };
    return clicks.find(reached) ?? null;
  }

  // The edge of what a click would give (height x width), null: none.
  hint(edge: Uint8Array | null): void {
    this.hinted.hidden = edge === null;
    if (edge === null) return;
    const [width, height] = this.viewport.getImageData().dimensions;
    [this.hinted.width, this.hinted.height] = [width, height];
    const context = this.hinted.getContext("2d")!;
    const pixels = context.createImageData(width, height);
    for (let i = 0; i < edge.length; i++) if (edge[i]) pixels.data.set([250, 204, 21, 255], 4 * i);
    context.putImageData(pixels, 0, 0);
    this.placeHint();
  }

  private placeHint(): void {
    const { width, height } = this.hinted;
    const [[left, top], [right, bottom]] = [this.toCanvas(-0.5, -0.5), this.toCanvas(width - 0.5, height - 0.5)];
    const turn = `translate(${left}px,${top}px) scale(${(right - left) / width},${(bottom - top) / height})`;
    this.hinted.style.transform = turn;
  }

  // Clicks, a box or a line that is being drawn, over the picture.
  draw(clicks: Click[], box: Box | null, line: Point[] = []): void {
    if (!this.viewport?.getImageData?.()) return this.marks.replaceChildren();
    this.marks.replaceChildren(this.hinted);
    if (!this.hinted.hidden) this.placeHint();
    if (line.length > 1) this.marks.append(this.lineMark(line));
    for (const click of clicks) {
      const [x, y] = this.toCanvas(click.x, click.y);
      const mark = document.createElement("div");
      mark.textContent = click.positive ? "+" : "\u2212";
      mark.style.cssText =
        `position:absolute;left:${x - 9}px;top:${y - 9}px;width:18px;height:18px;border-radius:9px;font:bold 15px/17px sans-serif;` +
        `text-align:center;color:#000;border:1px solid #000;background:${click.positive ? "#4ade80" : "#f87171"}`;
      this.marks.append(mark);
    }
    if (box) this.marks.append(this.boxMark(box));
  }

  private lineMark(line: Point[]): SVGElement {
    const space = "http://www.w3.org/2000/svg";
    const drawing = document.createElementNS(space, "svg");
    drawing.style.cssText = "position:absolute;inset:0;width:100%;height:100%";
    const path = document.createElementNS(space, "polyline");
    path.setAttribute("points", line.map(([x, y]) => this.toCanvas(x, y).join(",")).join(" "));
    path.setAttribute("style", "fill:none;stroke:#facc15;stroke-width:2");
    drawing.append(path);
    return drawing;
  }

  private boxMark(box: Box): HTMLElement {
    const [left, top] = this.toCanvas(box[0], box[1]);
    const [right, bottom] = this.toCanvas(box[2], box[3]);
    const mark = document.createElement("div");
    mark.style.cssText =
      `position:absolute;left:${Math.min(left, right)}px;top:${Math.min(top, bottom)}px;width:${Math.abs(right - left)}px;` +
      `height:${Math.abs(bottom - top)}px;border:2px dashed #facc15`;
    return mark;
  }
}
