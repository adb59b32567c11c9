"use strict";
(() => {
  // src/history.ts
  var _History = class {
    constructor() {
      this.done = /* @__PURE__ */ new Map();
      this.undone = /* @__PURE__ */ new Map();
    }
    // Call before a step, with the state that it changes.
    note(frame, before) {
      const own = this.of(this.done, frame);
      own.push(before);
      if (own.length > _History.most)
        own.shift();
      this.undone.delete(frame);
    }
    // The state to go back to, null where there is none; now: what redo brings back.
    undo(frame, now) {
      return this.move(this.done, this.undone, frame, now);
    }
    redo(frame, now) {
      return this.move(this.undone, this.done, frame, now);
    }
    clear() {
      this.done.clear();
      this.undone.clear();
    }
    of(stacks, frame) {
      if (!stacks.has(frame))
        stacks.set(frame, []);
      return stacks.get(frame);
    }
    move(from, to, frame, now) {
      const state = this.of(from, frame).pop() ?? null;
      if (state)
        this.of(to, frame).push(now);
      return state;
    }
  };
  var History = _History;
  History.most = 100;

  // src/look.ts
  function build(node, keys) {
    const says = {};
    const style = document.createElement("style");
    style.textContent = ".ultrarefiner{color:#e5eef8;font:14px/1.45 system-ui,sans-serif;padding:12px;overflow:auto;height:100%}.ultrarefiner button{background:#0b3a6b;color:#fff;border:1px solid #5b9fd0;border-radius:4px;padding:6px 10px;margin:3px;cursor:pointer}.ultrarefiner button[aria-pressed=true]{background:#5acce6;color:#000}.ultrarefiner button:focus-visible{outline:3px solid #facc15}.ultrarefiner dl{display:grid;grid-template-columns:auto 1fr;gap:2px 12px;margin:10px 0}.ultrarefiner dt{color:#9fb6cc}.ultrarefiner dd{margin:0}.ultrarefiner .accept{background:#15803d;border-color:#86efac}.ultrarefiner ul{margin:6px 0;padding-left:18px;color:#fde68a}";
    const say = (name, element2) => says[name] = element2;
    const heading = say("image", document.createElement("h2"));
    heading.style.cssText = "font-weight:600;overflow-wrap:anywhere";
    const state = say("state", document.createElement("p"));
    state.setAttribute("role", "status");
    const buttons = document.createElement("div");
    for (const [key, words, act] of keys) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = words.charAt(0).toUpperCase() + words.slice(1);
      button.title = `Key ${key}`;
      button.dataset.key = key;
      const tool = { f: "positive", b: "negative", x: "box", p: "brush", e: "eraser", w: "window" }[key];
      if (tool)
        button.dataset.tool = tool;
      if (key === "a")
        button.className = "accept";
      button.addEventListener("click", () => act());
      buttons.append(button);
    }
    const facts = document.createElement("dl");
    for (const [name, words] of [["size", "Size"], ["presence", "Lesion at all"], ["uncertainty", "Unsure"], ["rule", "Safety rule"], ["version", "Model"]]) {
      const term = document.createElement("dt");
      term.textContent = words;
      facts.append(term, say(name, document.createElement("dd")));
    }
    const list = say("keys", document.createElement("ul"));
    list.hidden = true;
    for (const [key, words] of keys) {
      const item = document.createElement("li");
      item.textContent = `${key}: ${words}`;
      list.append(item);
    }
    const notice = document.createElement("p");
    notice.textContent = "Research use only. Not a medical device.";
    node.append(style, heading, state, buttons, facts, say("warnings", document.createElement("ul")), list, notice);
    return says;
  }

  // src/masks.ts
  function unpack(text, count) {
    const bits = atob(text);
    const mask = new Uint8Array(count);
    for (let i = 0; i < count; i++)
      mask[i] = bits.charCodeAt(i >> 3) >> 7 - (i & 7) & 1;
    return mask;
  }
  function pack(mask) {
    const bytes = new Uint8Array(Math.ceil(mask.length / 8));
    for (let i = 0; i < mask.length; i++)
      if (mask[i])
        bytes[i >> 3] |= 128 >> (i & 7);
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192)
      text += String.fromCharCode(...Array.from(bytes.subarray(i, i + 8192)));
    return btoa(text);
  }
  function isEmpty(mask) {
    for (let i = 0; i < mask.length; i++)
      if (mask[i])
        return false;
    return true;
  }
  function boxOf(mask, width) {
    let [x0, y0, x1, y1] = [Infinity, Infinity, -1, -1];
    for (let i = 0; i < mask.length; i++) {
      if (!mask[i])
        continue;
      const x = i % width;
      const y = (i - x) / width;
      [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x), Math.max(y1, y)];
    }
    return x1 < 0 ? null : [x0, y0, x1, y1];
  }

  // src/tools.ts
  var GROUP = "default";
  var BRUSHES = { brush: "UltraRefinerBrush", eraser: "UltraRefinerEraser" };
  function createTools(servicesManager, extensionManager) {
    const { toolGroupService } = servicesManager.services;
    const { toolNames, Enums } = extensionManager.getModuleEntry("@ohif/extension-cornerstone.utilityModule.tools").exports;
    const { Primary, Auxiliary, Secondary, Wheel } = Enums.MouseBindings;
    toolGroupService.createToolGroupAndAddTools(GROUP, {
      active: [
        { toolName: toolNames.WindowLevel, bindings: [{ mouseButton: Primary }] },
        { toolName: toolNames.Pan, bindings: [{ mouseButton: Auxiliary }] },
        { toolName: toolNames.Zoom, bindings: [{ mouseButton: Secondary }] },
        { toolName: toolNames.StackScroll, bindings: [{ mouseButton: Wheel }] }
      ],
      passive: [
        { toolName: BRUSHES.brush, parentTool: "Brush", configuration: { activeStrategy: "FILL_INSIDE_CIRCLE" } },
        { toolName: BRUSHES.eraser, parentTool: "Brush", configuration: { activeStrategy: "ERASE_INSIDE_CIRCLE" } }
      ]
    });
  }
  function choose(tool, radius) {
    const { ToolGroupManager, Enums, utilities } = window.cornerstoneTools;
    const group = ToolGroupManager.getToolGroup(GROUP);
    const primary = { bindings: [{ mouseButton: Enums.MouseBindings.Primary }] };
    for (const name of ["WindowLevel", ...Object.values(BRUSHES)])
      group.setToolPassive(name, { removeAllBindings: true });
    if (tool === "window")
      group.setToolActive("WindowLevel", primary);
    if (tool in BRUSHES) {
      utilities.segmentation.setBrushSizeForToolGroup(GROUP, radius, BRUSHES[tool]);
      group.setToolActive(BRUSHES[tool], primary);
    }
  }

  // src/panel.ts
  var KEYS = [
    ["o", "outline this frame", (d) => d.outline()],
    ["f", "click: this is lesion", (d) => d.use("positive")],
    ["b", "click: this is not", (d) => d.use("negative")],
    ["x", "draw a box around the lesion", (d) => d.use("box")],
    ["p", "brush", (d) => d.use("brush")],
    ["e", "eraser", (d) => d.use("eraser")],
    ["w", "brightness and contrast", (d) => d.use("window")],
    ["z", "undo", (d) => d.undo()],
    ["y", "redo", (d) => d.redo()],
    ["c", "clear the frame", (d) => d.clear()],
    ["t", "take the outline to the next frame", (d) => d.toNextFrame()],
    ["a", "accept: save as final", (d) => d.accept()],
    ["n", "next image", (d) => d.next()],
    ["?", "show these keys", (d) => d.help()]
  ];
  function proposed(points) {
    const as = (positive) => ([x, y]) => ({ x, y, positive });
    return [...points.foreground.map(as(true)), ...points.background.map(as(false))];
  }
  var Desk = class {
    constructor(surface, server, open2) {
      this.surface = surface;
      this.server = server;
      this.open = open2;
      this.facts = null;
      this.history = new History();
      this.clicks = /* @__PURE__ */ new Map();
      this.tool = "positive";
      this.box = null;
      this.changed = false;
      this.busy = Promise.resolve();
      this.stroke = null;
      this.radius = 8;
      this.node = document.createElement("section");
      this.node.setAttribute("aria-label", "UltraRefiner");
      this.node.className = "ultrarefiner";
      this.says = build(this.node, KEYS.map(([key, words, act]) => [key, words, () => act(this)]));
      this.surface.onShown = () => this.show();
      window.addEventListener("keydown", (e) => this.key(e));
      window.addEventListener("beforeunload", (e) => {
        if (this.changed)
          e.preventDefault();
      });
    }
    // --- the image ----------------------------------------------------------------------------------------------------
    async begin(study, series) {
      this.tell("state", "Opening …");
      this.history.clear();
      this.clicks.clear();
      this.changed = false;
      this.facts = null;
      try {
        const facts = await this.server.image(study, series);
        await this.surface.begin();
        this.facts = facts;
        this.listen();
        this.use(this.tool);
        this.tell("image", facts.id);
        this.warn([...facts.others ? ["Another user works on this image."] : [], ...facts.warnings]);
        if (facts.labelled)
          await this.showLabel();
        else
          await this.outline();
      } catch (error) {
        this.failed(error);
      }
    }
    async showLabel() {
      const { masks } = await this.server.label(this.facts.id);
      for (const [frame, text] of Object.entries(masks ?? {}))
        this.put(+frame, text);
      this.tell("state", "Final label");
    }
    put(frame, text) {
      this.surface.setMask(frame, unpack(text, this.facts.width * this.facts.height));
    }
    state(frame) {
      return { mask: this.surface.mask(frame), clicks: [...this.clicks.get(frame) ?? []] };
    }
    restore(frame, state) {
      this.clicks.set(frame, state.clicks);
      this.surface.setMask(frame, state.mask);
      this.changed = true;
      this.show();
    }
    // --- what the user does -------------------------------------------------------------------------------------------
    // Without clicks this is the automatic outline; or, where the server begins with points that propose themselves, theirs.
    outline() {
      return this.ask(this.surface.frame, null, []);
    }
    // Answers come in the order of the questions; a step is noted when its answer is there.
    ask(frame, box, clicks) {
      const facts = this.facts;
      if (!facts)
        return this.busy;
      const before = this.state(frame);
      this.clicks.set(frame, clicks);
      this.show();
      this.tell("state", "Outlining …");
      const points = (positive) => clicks.filter((c) => c.positive === positive).map((c) => [c.x, c.y, frame]);
      const prompts = { foreground: points(true), background: points(false), ...box ? { box } : {} };
      this.busy = this.busy.then(async () => {
        try {
          const found = await this.server.outline(facts.id, frame, prompts);
          if (this.facts !== facts)
            return;
          this.history.note(frame, before);
          this.put(frame, found.masks[String(frame)]);
          if (found.reply.points && !clicks.length)
            this.clicks.set(frame, proposed(found.reply.points));
          this.changed = this.changed || clicks.length > 0 || box !== null;
          this.answered(found);
        } catch (error) {
          this.clicks.set(frame, before.clicks);
          this.failed(error);
        }
        this.show();
      });
      return this.busy;
    }
    use(tool) {
      this.tool = tool;
      choose(tool, this.radius);
      for (const button of Array.from(this.node.querySelectorAll("[data-tool]")))
        button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    }
    undo() {
      this.step((frame, now) => this.history.undo(frame, now), "Nothing to undo on this frame");
    }
    redo() {
      this.step((frame, now) => this.history.redo(frame, now), "Nothing to redo on this frame");
    }
    step(move, none) {
      if (!this.facts)
        return;
      const frame = this.surface.frame;
      const state = move(frame, this.state(frame));
      if (state)
        this.restore(frame, state);
      this.tell("state", state ? "Changed" : none);
    }
    clear() {
      if (!this.facts)
        return;
      const frame = this.surface.frame;
      this.history.note(frame, this.state(frame));
      this.restore(frame, { mask: new Uint8Array(this.facts.width * this.facts.height), clicks: [] });
      this.tell("state", "Cleared");
    }
    async toNextFrame() {
      const facts = this.facts;
      const frame = this.surface.frame;
      if (!facts || frame + 1 >= facts.frames)
        return this.tell("state", "This is the last frame");
      const box = boxOf(this.surface.mask(frame), facts.width);
      await this.surface.go(frame + 1);
      await this.ask(frame + 1, box, []);
    }
    async accept() {
      const facts = this.facts;
      if (!facts)
        return;
      await this.busy;
      const masks = {};
      for (let k = 0; k < facts.frames; k++) {
        const mask = this.surface.mask(k);
        if (!isEmpty(mask))
          masks[k] = pack(mask);
      }
      if (!Object.keys(masks).length && !window.confirm("Nothing is marked. Save that there is no lesion?"))
        return;
      this.tell("state", "Saving …");
      try {
        const saved = await this.save(facts.id, masks);
        if (!saved)
          return this.tell("state", "Not saved");
        this.changed = false;
        this.tell("state", "Saved");
        this.warn(saved.warnings ?? []);
      } catch (error) {
        this.failed(error);
      }
    }
    async save(image, masks) {
      try {
        return await this.server.save(image, masks, false);
      } catch (error) {
        const words = String(error.message);
        if (!words.includes("confirm") || !window.confirm(`${words}

Save it all the same?`))
          throw error;
        return this.server.save(image, masks, true);
      }
    }
    async next() {
      if (this.changed && !window.confirm("What you changed is not saved. Go on without it?"))
        return;
      try {
        const found = await this.server.next();
        if (!found.study)
          return this.tell("state", found.message ?? "There is no other image");
        this.changed = false;
        this.open(found.study);
      } catch (error) {
        this.failed(error);
      }
    }
    help() {
      this.says.keys.hidden = !this.says.keys.hidden;
    }
    // --- pointer and keys ---------------------------------------------------------------------------------------------
    listen() {
      const element2 = this.surface.element;
      if (element2.dataset.ultrarefiner)
        return;
      element2.dataset.ultrarefiner = "1";
      let start = null;
      let held = null;
      element2.addEventListener("pointerdown", (event) => {
        if (event.button !== 0 || !this.facts)
          return;
        const frame = this.surface.frame;
        if (this.tool === "brush" || this.tool === "eraser")
          this.stroke = this.state(frame);
        const pixel = this.surface.pixelAt(event);
        if (!pixel || this.tool === "window" || this.stroke)
          return;
        const click = this.surface.clickAt(event, this.clicks.get(frame) ?? []);
        if (click)
          held = { click, moved: false };
        else if (this.tool === "box")
          start = pixel;
        else {
          const [x, y] = pixel.map(Math.round);
          this.ask(frame, null, [...this.clicks.get(frame) ?? [], { x, y, positive: this.tool === "positive" }]);
        }
      });
      window.addEventListener("pointermove", (event) => {
        const pixel = (start || held) && this.surface.pixelAt(event);
        if (!pixel)
          return;
        if (held) {
          const [x, y] = pixel.map(Math.round);
          held.moved = held.moved || Math.hypot(x - held.click.x, y - held.click.y) > 2;
          const others = (this.clicks.get(this.surface.frame) ?? []).filter((c) => c !== held.click);
          this.surface.draw(held.moved ? [...others, { ...held.click, x, y }] : [...others, held.click], null);
        }
        if (!start)
          return;
        this.box = [Math.min(start[0], pixel[0]), Math.min(start[1], pixel[1]), Math.max(start[0], pixel[0]), Math.max(start[1], pixel[1])];
        this.show();
      });
      window.addEventListener("pointerup", (event) => {
        if (held) {
          const { click, moved } = held;
          held = null;
          const frame = this.surface.frame;
          const rest = (this.clicks.get(frame) ?? []).filter((c) => c !== click);
          const pixel = moved ? this.surface.pixelAt(event) : null;
          if (pixel)
            rest.push({ ...click, x: Math.round(pixel[0]), y: Math.round(pixel[1]) });
          this.ask(frame, null, rest);
          return;
        }
        const box = this.box;
        [start, this.box] = [null, null];
        if (box)
          this.ask(this.surface.frame, box, this.clicks.get(this.surface.frame) ?? []);
        else if (this.stroke)
          setTimeout(() => this.painted(), 0);
      });
    }
    painted() {
      if (!this.stroke)
        return;
      this.history.note(this.surface.frame, this.stroke);
      this.stroke = null;
      this.changed = true;
      this.tell("state", "Changed");
    }
    key(event) {
      const target = event.target;
      if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|TEXTAREA|SELECT/.test(target.tagName))
        return;
      const found = KEYS.find(([key]) => key === event.key.toLowerCase());
      if (!found || !this.facts)
        return;
      event.preventDefault();
      event.stopPropagation();
      found[2](this);
    }
    // --- what is shown ------------------------------------------------------------------------------------------------
    show() {
      if (this.facts)
        this.surface.draw(this.clicks.get(this.surface.frame) ?? [], this.box);
    }
    answered(found) {
      const r = found.reply;
      const share = (value) => value === null || value === void 0 ? "–" : `${Math.round(100 * value)} %`;
      this.tell("size", r.area ? `${r.long_axis.toFixed(1)} × ${r.short_axis.toFixed(1)} ${r.unit}` : "nothing marked");
      this.tell("presence", share(r.presence));
      this.tell("uncertainty", share(r.uncertainty));
      this.tell("rule", r.safety_rule || "none");
      this.tell("version", r.version);
      this.tell("state", "Proposed");
      this.warn(r.warnings ?? []);
    }
    failed(error) {
      this.tell("state", `Not done: ${error.message ?? error}`);
    }
    tell(name, text) {
      this.says[name].textContent = text;
    }
    warn(texts) {
      this.says.warnings.replaceChildren(
        ...texts.map((text) => {
          const item = document.createElement("li");
          item.textContent = text;
          return item;
        })
      );
    }
  };

  // src/server.ts
  var root = location.pathname.split("/ohif/")[0];
  async function ask(method, path, body) {
    const answer = await fetch(`${root}${path}`, {
      method,
      headers: body === void 0 ? {} : { "Content-Type": "application/json" },
      body: body === void 0 ? void 0 : JSON.stringify(body)
    });
    const text = await answer.text();
    let found = null;
    try {
      found = JSON.parse(text);
    } catch {
      found = null;
    }
    if (!answer.ok)
      throw new Error(found?.detail ?? `the server answers ${answer.status}`);
    return found;
  }
  var Server = class {
    constructor(client2) {
      this.client = client2;
    }
    image(study, series) {
      const query = new URLSearchParams({ study, series, client_id: this.client });
      return ask("GET", `/ultrarefiner/viewer/image?${query}`);
    }
    outline(image, frame, prompts) {
      return ask("POST", "/ultrarefiner/viewer/outline", { image, frame, ...prompts, client_id: this.client });
    }
    label(image) {
      return ask("GET", `/ultrarefiner/viewer/label?${new URLSearchParams({ image })}`);
    }
    save(image, masks, confirm) {
      return ask("PUT", "/ultrarefiner/viewer/label", { image, masks, confirm, client_id: this.client });
    }
    next() {
      return ask("POST", "/ultrarefiner/viewer/next", { client_id: this.client });
    }
  };

  // src/surface.ts
  var SEGMENT = 1;
  var Surface = class {
    constructor(services) {
      this.services = services;
      this.segmentationId = "";
      this.images = [];
      // the labelmap's, one a frame
      this.marks = document.createElement("div");
      this.onShown = () => {
      };
      this.marks.className = "ultrarefiner-marks";
      this.marks.style.cssText = "position:absolute;inset:0;pointer-events:none;overflow:hidden;z-index:5";
    }
    get viewportId() {
      return this.services.viewportGridService.getState().activeViewportId;
    }
    get viewport() {
      return this.services.cornerstoneViewportService.getCornerstoneViewport(this.viewportId);
    }
    get element() {
      return this.viewport?.element ?? null;
    }
    get frame() {
      return this.viewport?.getCurrentImageIdIndex?.() ?? 0;
    }
    async go(frame) {
      await this.viewport.setImageIdIndex(frame);
    }
    // A labelmap over the frames that are shown; empty at first.
    async begin() {
      const { imageLoader } = window.cornerstone;
      const { segmentation, Enums } = window.cornerstoneTools;
      const ids = this.viewport.getImageIds();
      this.end();
      this.images = await imageLoader.createAndCacheDerivedLabelmapImages(ids);
      this.segmentationId = `lesion-${Date.now()}`;
      const type = Enums.SegmentationRepresentations.Labelmap;
      segmentation.addSegmentations([
        {
          segmentationId: this.segmentationId,
          representation: { type, data: { imageIds: this.images.map((i) => i.imageId) } },
          config: { label: "lesion", segments: { [SEGMENT]: { segmentIndex: SEGMENT, label: "lesion", active: true } } }
        }
      ]);
      await segmentation.addLabelmapRepresentationToViewport(this.viewportId, [{ segmentationId: this.segmentationId, type }]);
      segmentation.activeSegmentation.setActiveSegmentation(this.viewportId, this.segmentationId);
      segmentation.segmentIndex.setActiveSegmentIndex(this.segmentationId, SEGMENT);
      this.element.append(this.marks);
      this.element.addEventListener(window.cornerstone.Enums.Events.IMAGE_RENDERED, () => this.onShown());
    }
    end() {
      this.marks.remove();
      if (!this.segmentationId)
        return;
      window.cornerstoneTools.segmentation.removeSegmentation(this.segmentationId);
      this.segmentationId = "";
      this.images = [];
    }
    mask(frame) {
      return Uint8Array.from(this.images[frame].voxelManager.getScalarData(), (v) => v ? 1 : 0);
    }
    setMask(frame, mask) {
      const manager = this.images[frame].voxelManager;
      const data = manager.getScalarData();
      for (let i = 0; i < data.length; i++)
        data[i] = mask[i] ? SEGMENT : 0;
      manager.setScalarData(data);
      window.cornerstoneTools.segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(this.segmentationId);
    }
    // Pixels of the frame under the pointer, centres at whole numbers; null outside the image.
    pixelAt(event) {
      const bounds = this.element.getBoundingClientRect();
      const world = this.viewport.canvasToWorld([event.clientX - bounds.left, event.clientY - bounds.top]);
      const { imageData, dimensions } = this.viewport.getImageData();
      const [x, y] = imageData.worldToIndex(world);
      const inside = x >= -0.5 && y >= -0.5 && x <= dimensions[0] - 0.5 && y <= dimensions[1] - 0.5;
      return inside ? [x, y] : null;
    }
    toCanvas(x, y) {
      return this.viewport.worldToCanvas(this.viewport.getImageData().imageData.indexToWorld([x, y, 0]));
    }
    // The click under the pointer, null where there is none.
    clickAt(event, clicks) {
      const bounds = this.element.getBoundingClientRect();
      const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
      const far = (c) => Math.hypot(this.toCanvas(c.x, c.y)[0] - x, this.toCanvas(c.x, c.y)[1] - y);
      return clicks.find((c) => far(c) <= 9) ?? null;
    }
    // Clicks and a box that is being drawn, over the picture.
    draw(clicks, box) {
      this.marks.replaceChildren();
      if (!this.viewport?.getImageData?.())
        return;
      for (const click of clicks) {
        const [x, y] = this.toCanvas(click.x, click.y);
        const mark2 = document.createElement("div");
        mark2.textContent = click.positive ? "+" : "−";
        mark2.style.cssText = `position:absolute;left:${x - 9}px;top:${y - 9}px;width:18px;height:18px;border-radius:9px;font:bold 15px/17px sans-serif;text-align:center;color:#000;border:1px solid #000;background:${click.positive ? "#4ade80" : "#f87171"}`;
        this.marks.append(mark2);
      }
      if (!box)
        return;
      const [left, top] = this.toCanvas(box[0], box[1]);
      const [right, bottom] = this.toCanvas(box[2], box[3]);
      const mark = document.createElement("div");
      mark.style.cssText = `position:absolute;left:${Math.min(left, right)}px;top:${Math.min(top, bottom)}px;width:${Math.abs(right - left)}px;height:${Math.abs(bottom - top)}px;border:2px dashed #facc15`;
      this.marks.append(mark);
    }
  };

  // src/index.ts
  var ID = "ultrarefiner";
  var desk = null;
  var leave = [];
  function client() {
    const kept = sessionStorage.getItem(ID);
    const name = kept ?? `viewer-${Math.random().toString(36).slice(2, 10)}`;
    sessionStorage.setItem(ID, name);
    return name;
  }
  function element(node) {
    const ref = (parent) => parent?.replaceChildren(node);
    const props = { style: { height: "100%" } };
    return { $$typeof: Symbol.for("react.element"), type: "div", key: null, ref, props, _owner: null, _store: {} };
  }
  function open(study) {
    window.location.assign(`${window.location.pathname}?StudyInstanceUIDs=${encodeURIComponent(study)}`);
  }
  var extension = {
    id: ID,
    preRegistration({ servicesManager }) {
      desk = new Desk(new Surface(servicesManager.services), new Server(client()), open);
    },
    getPanelModule: () => [
      { name: "panel", iconName: "tab-segmentation", iconLabel: "UltraRefiner", label: "UltraRefiner", component: () => element(desk.node) }
    ]
  };
  var mode = {
    id: ID,
    routeName: ID,
    displayName: "UltraRefiner",
    isValidMode: ({ modalities }) => ({
      valid: modalities.split("\\").includes("US"),
      description: "UltraRefiner outlines lesions on ultrasound"
    }),
    routes: [
      {
        path: ID,
        layoutTemplate: () => ({
          id: "@ohif/extension-default.layoutTemplateModule.viewerLayout",
          props: {
            leftPanels: ["@ohif/extension-default.panelModule.seriesList"],
            leftPanelClosed: true,
            rightPanels: [`${ID}.panelModule.panel`],
            viewports: [
              {
                namespace: "@ohif/extension-cornerstone.viewportModule.cornerstone",
                displaySetsToDisplay: ["@ohif/extension-default.sopClassHandlerModule.stack"]
              }
            ]
          }
        })
      }
    ],
    extensions: { "@ohif/extension-default": "^3.0.0", "@ohif/extension-cornerstone": "^3.0.0" },
    hangingProtocol: "default",
    sopClassHandlers: ["@ohif/extension-default.sopClassHandlerModule.stack"],
    onModeEnter({ servicesManager, extensionManager }) {
      createTools(servicesManager, extensionManager);
      const { displaySetService, viewportGridService, cornerstoneViewportService } = servicesManager.services;
      const events = cornerstoneViewportService.EVENTS;
      let shown = "";
      const begin = () => {
        const { viewports, activeViewportId } = viewportGridService.getState();
        const uid = viewports.get(activeViewportId)?.displaySetInstanceUIDs?.[0];
        const set = uid && displaySetService.getDisplaySetByUID(uid);
        if (!set || uid === shown || !cornerstoneViewportService.getCornerstoneViewport(activeViewportId)?.getImageIds?.().length)
          return;
        shown = uid;
        void desk.begin(set.StudyInstanceUID, set.SeriesInstanceUID);
      };
      const ways = [cornerstoneViewportService.subscribe(events.VIEWPORT_DATA_CHANGED, () => setTimeout(begin, 50))];
      leave = ways.map((way) => () => way.unsubscribe());
    },
    onModeExit() {
      leave.forEach((end) => end());
      leave = [];
    }
  };
  window.config.extensions.push(extension);
  window.config.modes.push(mode);
})();
