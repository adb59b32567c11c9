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

  // src/masks.ts
  function unpack(runs, count) {
    const mask = new Uint8Array(count);
    let at = 0;
    runs.forEach((length, k) => {
      if (k % 2)
        mask.fill(1, at, at + length);
      at += length;
    });
    return mask;
  }
  function pack(mask) {
    const runs = [];
    let value = 0;
    for (let at = 0; at < mask.length; value = 1 - value) {
      const found = mask.indexOf(1 - value, at);
      const end = found < 0 ? mask.length : found;
      runs.push(end - at);
      at = end;
    }
    return runs;
  }
  function isEmpty(mask) {
    return !mask.includes(1);
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

  // src/server.ts
  var Refused = class extends Error {
    constructor(words, labelState) {
      super(words);
      this.labelState = labelState;
    }
  };
  var root = location.pathname.split("/ohif/")[0];
  var NO_ANSWER = "the server's answer is not understood. Perhaps you are logged out: log in in another tab of this browser, then try again here";
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
    const words = found?.detail ? String(found.detail) : `the server answers ${answer.status}`;
    if (answer.status === 401)
      throw new Refused(`${words}. Log in in another tab of this browser, then try again here`);
    if (!answer.ok)
      throw new Refused(words, found?.label_state);
    if (found === null || answer.redirected)
      throw new Refused(NO_ANSWER);
    return found;
  }
  var Server = class {
    constructor(client2) {
      this.client = client2;
    }
    // The address of one of the app's own pages.
    page(name) {
      return `${root}/ultrarefiner/${name}`;
    }
    // instance: the DICOM object that is shown; a series may hold several images.
    image(study, series, instance) {
      const query = new URLSearchParams({ study, series, instance, client_id: this.client });
      return ask("GET", `/ultrarefiner/viewer/image?${query}`);
    }
    // hint: what a click would give, asked while the pointer moves; the server keeps no record of it.
    outline({ id, instances }, frame, prompts, hint = false) {
      return ask("POST", "/ultrarefiner/viewer/outline", { image: id, instances, frame, ...prompts, hint, client_id: this.client });
    }
    measure(image, frame, runs) {
      return ask("POST", "/ultrarefiner/viewer/measure", { image, frame, runs });
    }
    label(image) {
      return ask("GET", `/ultrarefiner/viewer/label?${new URLSearchParams({ image })}`);
    }
    // shown: the frames that masks are all of; label_state: of the label that they replace.
    save({ id, instances }, masks, shown, label_state, confirm) {
      const label = { image: id, instances, masks, shown, label_state, confirm, client_id: this.client };
      return ask("PUT", "/ultrarefiner/viewer/label", label);
    }
    // image: the one that is open.
    next(image) {
      return ask("POST", "/ultrarefiner/viewer/next", { image, client_id: this.client });
    }
  };

  // src/saving.ts
  function marked(frames, maskOf) {
    const masks = {};
    for (const k of frames) {
      const mask = maskOf(k);
      if (!isEmpty(mask))
        masks[k] = pack(mask);
    }
    return masks;
  }
  async function saveLabel(server, facts, label) {
    let { state } = label;
    let confirmed = false;
    for (; ; ) {
      try {
        return await server.save(facts, label.masks, label.shown, state, confirmed);
      } catch (error) {
        const words = String(error.message);
        const other = error instanceof Refused ? error.labelState : void 0;
        if (other !== void 0) {
          if (!window.confirm(`${words}.

Save yours in its place? The other one is kept on the server.`))
            throw error;
          state = other;
        } else if (!confirmed && words.includes("confirm")) {
          if (!window.confirm(`${words}

Save it all the same?`))
            throw error;
          confirmed = true;
        } else
          throw error;
      }
    }
  }
  var KEPT = "ultrarefiner-kept:";
  function keep(image, masks) {
    try {
      sessionStorage.setItem(KEPT + image, JSON.stringify(masks));
    } catch {
    }
  }
  function forget(image) {
    sessionStorage.removeItem(KEPT + image);
  }
  function keptOf(image) {
    const text = sessionStorage.getItem(KEPT + image);
    return text ? JSON.parse(text) : null;
  }

  // src/shapes.ts
  function along(line, count) {
    const steps = line.slice(1).map((p, i) => Math.hypot(p[0] - line[i][0], p[1] - line[i][1]));
    const whole2 = steps.reduce((sum, step) => sum + step, 0);
    const found = [];
    let passed = 0;
    for (let i = 0; i < steps.length; i++) {
      while (found.length < count && passed + steps[i] >= whole2 * (found.length + 1) / count - 1e-9) {
        const t = steps[i] ? (whole2 * (found.length + 1) / count - passed) / steps[i] : 0;
        found.push([line[i][0] + t * (line[i + 1][0] - line[i][0]), line[i][1] + t * (line[i + 1][1] - line[i][1])]);
      }
      passed += steps[i];
    }
    return found;
  }
  function inside(line, width, height) {
    const mask = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const crossings = [];
      for (let i = 0; i < line.length; i++) {
        const [a, b] = [line[i], line[(i + 1) % line.length]];
        if (a[1] <= y !== b[1] <= y)
          crossings.push(a[0] + (y - a[1]) / (b[1] - a[1]) * (b[0] - a[0]));
      }
      crossings.sort((a, b) => a - b);
      for (let i = 0; i + 1 < crossings.length; i += 2)
        for (let x = Math.max(0, Math.ceil(crossings[i])); x <= Math.min(width - 1, crossings[i + 1]); x++)
          mask[y * width + x] = 1;
    }
    return mask;
  }
  function edge(mask, width) {
    const found = new Uint8Array(mask.length);
    for (let i = 0; i < mask.length; i++) {
      const x = i % width;
      const within = x > 0 && x < width - 1 && mask[i - 1] && mask[i + 1] && mask[i - width] && mask[i + width];
      if (mask[i] && !within)
        found[i] = 1;
    }
    return found;
  }

  // src/drawing.ts
  var MOST_OF_A_SCRIBBLE = 4;
  function proposed(points) {
    const as = (positive) => ([x, y]) => ({ x, y, positive });
    return [...points.foreground.map(as(true)), ...points.background.map(as(false))];
  }
  var Drawing = class {
    constructor(surface, server, words) {
      this.surface = surface;
      this.server = server;
      this.words = words;
      this.facts = null;
      // of the image that is open
      this.tool = "positive";
      this.changed = false;
      // something is drawn that is not saved
      this.labelState = "";
      // of the final label that is known here
      this.pending = 0;
      // questions of the user's that are not answered
      this.busy = Promise.resolve();
      // until the last question is answered
      this.history = new History();
      this.replies = /* @__PURE__ */ new Map();
      // what the server said of the outline that is on a frame
      this.clicks = /* @__PURE__ */ new Map();
      this.stroke = null;
      this.latest = [];
      // asked about last
      this.scribbled = { noted: false };
    }
    // From now on no image is open.
    close() {
      this.history.clear();
      this.clicks.clear();
      this.replies.clear();
      this.stroke = null;
      [this.facts, this.changed, this.pending] = [null, false, 0];
    }
    open(facts, masks, labelState) {
      [this.facts, this.labelState] = [facts, labelState];
      for (const [frame, runs] of Object.entries(masks))
        this.put(+frame, runs);
    }
    get unsaved() {
      return this.changed || this.pending > 0;
    }
    get ready() {
      return this.facts !== null && this.surface.frame >= 0;
    }
    // --- masks and clicks ---------------------------------------------------------------------------------------------
    clicksHere() {
      return this.clicks.get(this.surface.frame) ?? [];
    }
    put(frame, runs) {
      this.surface.setMask(frame, unpack(runs, this.facts.width * this.facts.height));
    }
    // What is drawn, and what it replaces.
    label() {
      const shown = this.surface.frames;
      return { masks: marked(shown, (k) => this.surface.mask(k)), shown, state: this.labelState };
    }
    show() {
      if (this.facts)
        this.surface.draw(this.clicksHere(), null);
    }
    edited(frame) {
      this.changed = true;
      this.replies.delete(frame);
      this.words.changed("Changed");
    }
    replyOf(frame) {
      return this.replies.get(frame) ?? null;
    }
    runsOf(frame) {
      return pack(this.surface.mask(frame));
    }
    state(frame) {
      return { mask: this.surface.mask(frame), clicks: [...this.clicks.get(frame) ?? []] };
    }
    restore(frame, state) {
      this.clicks.set(frame, state.clicks);
      this.surface.setMask(frame, state.mask);
      this.changed = true;
      this.replies.delete(frame);
      this.show();
    }
    // --- what is asked ------------------------------------------------------------------------------------------------
    // Without clicks this is the automatic outline; or, where the server begins with points that propose themselves, theirs.
    outline() {
      return this.ask(this.surface.frame, null, []);
    }
    // Answers come in the order of the questions; a step is noted when its answer is there. Questions of one step (a scribble asks
    // twice) share it, so that one undo takes it back.
    ask(frame, box, clicks, step = { noted: false }) {
      const facts = this.facts;
      if (!facts)
        return this.busy;
      const before = this.state(frame);
      this.clicks.set(frame, clicks);
      this.latest = clicks;
      this.show();
      this.words.state("Outlining …");
      const own = clicks.length > 0 || box !== null;
      if (own)
        this.pending++;
      this.busy = this.busy.then(async () => {
        try {
          const found = await this.server.outline(facts, frame, this.prompts(frame, box, clicks));
          if (this.facts !== facts)
            return;
          if (!step.noted)
            this.history.note(frame, { mask: this.surface.mask(frame), clicks: before.clicks });
          step.noted = true;
          this.put(frame, found.masks[String(frame)]);
          if (this.latest === clicks && found.reply.points && !clicks.length)
            this.clicks.set(frame, proposed(found.reply.points));
          this.changed = this.changed || own;
          this.replies.set(frame, found.reply);
          this.words.answered(frame, found);
        } catch (error) {
          if (this.facts !== facts)
            return;
          if (this.latest === clicks)
            this.clicks.set(frame, before.clicks);
          this.words.failed(error);
        } finally {
          if (own && this.facts === facts)
            this.pending--;
        }
        this.show();
      });
      return this.busy;
    }
    prompts(frame, box, clicks) {
      const points = (positive) => clicks.filter((c) => c.positive === positive).map((c) => [c.x, c.y, frame]);
      return { foreground: points(true), background: points(false), ...box ? { box } : {} };
    }
    as([x, y]) {
      return { x: Math.round(x), y: Math.round(y), positive: this.tool === "positive" };
    }
    click(point) {
      this.scribbled = { noted: false };
      this.ask(this.surface.frame, null, [...this.clicksHere(), this.as(point)], this.scribbled);
    }
    // The click where the line begins is asked about already.
    scribble(line) {
      const more = along(line, MOST_OF_A_SCRIBBLE).map((point) => this.as(point));
      this.ask(this.surface.frame, null, [...this.clicksHere(), ...more], this.scribbled);
    }
    // to: null takes the click away.
    move(click, to) {
      const rest = this.clicksHere().filter((c) => c !== click);
      this.ask(this.surface.frame, null, to ? [...rest, { ...click, x: to[0], y: to[1] }] : rest);
    }
    boxed(box) {
      this.ask(this.surface.frame, box, this.clicksHere());
    }
    // The edge of what a click there would give (height x width).
    async edgeAt(point) {
      await this.busy;
      const facts = this.facts;
      const { width, height } = facts;
      const frame = this.surface.frame;
      const found = await this.server.outline(facts, frame, this.prompts(frame, null, [...this.clicksHere(), this.as(point)]), true);
      if (this.facts !== facts)
        throw new Error("another image is shown");
      return edge(unpack(found.masks[String(frame)], width * height), width);
    }
    async toNextFrame() {
      const facts = this.facts;
      const frame = this.surface.frame;
      const next = this.surface.frames.find((k) => k > frame);
      if (!facts || next === void 0)
        return this.words.state("This is the last frame");
      const box = boxOf(this.surface.mask(frame), facts.width);
      if (!box)
        return this.words.state("There is no outline on this frame to take along");
      await this.surface.go(next);
      await this.ask(next, box, []);
    }
    // --- what is painted, and the way back ----------------------------------------------------------------------------
    lasso(line) {
      const frame = this.surface.frame;
      const { width, height } = this.facts;
      this.strokeBegins();
      const added = inside(line, width, height);
      this.surface.setMask(frame, this.surface.mask(frame).map((v, i) => v | added[i]));
      this.strokeEnds();
    }
    strokeBegins() {
      this.stroke = [this.surface.frame, this.state(this.surface.frame)];
    }
    strokeEnds() {
      if (!this.stroke)
        return;
      const [frame, before] = this.stroke;
      this.stroke = null;
      this.history.note(frame, before);
      this.edited(frame);
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
      if (!state)
        return this.words.state(none);
      this.restore(frame, state);
      this.words.changed("Changed");
    }
    clear() {
      if (!this.facts)
        return;
      const frame = this.surface.frame;
      this.history.note(frame, this.state(frame));
      this.restore(frame, { mask: new Uint8Array(this.facts.width * this.facts.height), clicks: [] });
      this.words.changed("Cleared");
    }
  };

  // src/hints.ts
  var Hints = class {
    // edgeAt: the edge of what a click there would give (height x width).
    constructor(surface, edgeAt) {
      this.surface = surface;
      this.edgeAt = edgeAt;
      this.on = false;
      this.at = null;
      this.asking = false;
    }
    // The pointer is there; null: where a click is not meant.
    look(point) {
      this.at = this.on ? point : null;
      if (!this.at)
        this.surface.hint(null);
      else if (!this.asking)
        void this.ask();
    }
    async ask() {
      this.asking = true;
      try {
        for (let point = this.at; point; point = this.at === point ? null : this.at) {
          const frame = this.surface.frame;
          const edge2 = await this.edgeAt(point);
          if (this.at && this.surface.frame === frame)
            this.surface.hint(edge2);
        }
      } catch {
        this.surface.hint(null);
      } finally {
        this.asking = false;
      }
    }
  };

  // src/keys.ts
  var KEYS = [
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
    ["k", "play, stop", (d) => d.player.on ? d.player.stop() : d.player.start()],
    ["t", "outline to next frame", (d) => d.drawing.toNextFrame()],
    ["a", "accept: save as final", (d) => d.accept()],
    ["n", "next image", (d) => d.next()],
    ["?", "show these keys", (d) => d.help()]
  ];
  var OF_LOOPS = ["k", "t"];

  // src/look.ts
  var STYLE = ".ultrarefiner{color:#e5eef8;font:14px/1.45 system-ui,sans-serif;padding:12px;overflow:auto;height:100%}.ultrarefiner button{background:#0b3a6b;color:#fff;border:1px solid #5b9fd0;border-radius:4px;padding:4px 8px;margin:2px;font-size:13px;cursor:pointer}.ultrarefiner button[aria-pressed=true]{background:#5acce6;color:#000}.ultrarefiner button:focus-visible{outline:3px solid #facc15}.ultrarefiner dl{display:grid;grid-template-columns:auto 1fr;gap:2px 12px;margin:10px 0}.ultrarefiner dt{color:#9fb6cc}.ultrarefiner dt{white-space:nowrap}.ultrarefiner dd{margin:0;min-width:0;overflow-wrap:anywhere}.ultrarefiner a{color:#9cd3f5;text-decoration:underline}.ultrarefiner .accept{background:#15803d;border-color:#86efac}.ultrarefiner button[hidden]{display:none}.ultrarefiner ul{margin:6px 0;padding-left:18px;color:#fde68a}";
  var TOOLS = { f: "positive", b: "negative", x: "box", l: "lasso", p: "brush", e: "eraser", w: "window" };
  var FIGURES = [
    ["size", "Size"],
    ["presence", "Lesion at all"],
    ["uncertainty", "Unsure"],
    ["rule", "Safety rule"],
    ["version", "Model"]
  ];
  function make(name, text = "") {
    const element2 = document.createElement(name);
    element2.textContent = text;
    return element2;
  }
  var Look = class {
    // links: what else is one click away, [address, words].
    constructor(keys, links) {
      this.node = make("section");
      this.parts = {};
      this.buttons = /* @__PURE__ */ new Map();
      this.node.setAttribute("aria-label", "UltraRefiner");
      this.node.className = "ultrarefiner";
      const heading = this.part("image", make("h2"));
      heading.style.cssText = "font-weight:600;overflow-wrap:anywhere";
      const state = this.part("state", make("p"));
      state.setAttribute("role", "status");
      const buttons = make("div");
      buttons.append(...keys.map((key) => this.button(key)));
      const facts = make("dl");
      for (const [name, words] of FIGURES)
        facts.append(make("dt", words), this.part(name, make("dd")));
      const list = this.part("keys", make("ul"));
      list.hidden = true;
      this.list("keys", keys.map(([key, words]) => `${key}: ${words}`));
      const ways = make("p");
      for (const [address, words] of links) {
        const link = make("a", words);
        link.href = address;
        ways.append(link, " ");
      }
      const notice = make("p", "Research use only. Not a medical device.");
      this.node.append(make("style", STYLE), ways, heading, state, buttons, facts, this.part("warnings", make("ul")), list, notice);
      this.parts.warnings.hidden = true;
    }
    part(name, element2) {
      return this.parts[name] = element2;
    }
    button([key, words, act]) {
      const button = make("button", words.charAt(0).toUpperCase() + words.slice(1));
      button.type = "button";
      button.title = `Key ${key}`;
      button.setAttribute("aria-keyshortcuts", key);
      if (key === "a")
        button.className = "accept";
      button.addEventListener("click", () => act());
      this.buttons.set(key, button);
      return button;
    }
    offer(keys, on) {
      for (const key of keys)
        this.buttons.get(key).hidden = !on;
    }
    press(key, on) {
      this.buttons.get(key).setAttribute("aria-pressed", String(on));
    }
    choose(tool) {
      for (const [key, own] of Object.entries(TOOLS))
        this.press(key, own === tool);
    }
    say(name, text) {
      this.parts[name].textContent = text;
    }
    list(name, texts) {
      this.parts[name].replaceChildren(...texts.map((text) => make("li", text)));
      if (name === "warnings")
        this.parts[name].hidden = !texts.length;
    }
    toggle(name) {
      this.parts[name].hidden = !this.parts[name].hidden;
    }
    size(s) {
      this.say("size", s === null ? "" : s.area ? `${s.long_axis.toFixed(1)} × ${s.short_axis.toFixed(1)} ${s.unit}` : "nothing marked");
    }
    // What the server says of an outline; null: what is drawn is not the server's.
    figures(r) {
      this.size(r);
      if (r === null)
        return ["presence", "uncertainty", "rule", "version"].forEach((name) => this.say(name, "–"));
      const share = (value) => value === null || value === void 0 ? "–" : `${Math.round(100 * value)} %`;
      this.say("presence", share(r.presence));
      this.say("uncertainty", share(r.uncertainty));
      this.say("rule", r.safety_rule || "none");
      this.say("version", r.version);
    }
  };

  // src/player.ts
  var PAUSE = 60;
  var Player = class {
    // changed: it began or stopped.
    constructor(surface, changed) {
      this.surface = surface;
      this.changed = changed;
      this.turn = 0;
      // counts starts and stops
      this.on = false;
    }
    async start() {
      const own = ++this.turn;
      this.set(true);
      while (own === this.turn) {
        const { frames } = this.surface;
        if (frames.length < 2)
          break;
        await this.surface.go(frames[(frames.indexOf(this.surface.frame) + 1) % frames.length]);
        await new Promise((done) => setTimeout(done, PAUSE));
      }
      if (own === this.turn)
        this.stop();
    }
    stop() {
      this.turn++;
      if (this.on)
        this.set(false);
    }
    set(on) {
      this.on = on;
      this.changed(on);
    }
  };

  // src/pointer.ts
  var SCRIBBLE = 14;
  var whole = ([x, y]) => [Math.round(x), Math.round(y)];
  var Pointer = class {
    // where it began
    constructor(surface, work, hint) {
      this.surface = surface;
      this.work = work;
      this.hint = hint;
      this.way = null;
      this.frame = 0;
      window.addEventListener("pointermove", (event) => this.moved(event));
      window.addEventListener("pointerup", (event) => this.up(event));
      window.addEventListener("pointercancel", () => this.dropped());
    }
    listen(element2) {
      if (element2.dataset.ultrarefiner)
        return;
      element2.dataset.ultrarefiner = "1";
      element2.addEventListener("pointerdown", (event) => this.down(event));
      const own = (event) => {
        if (event.button === 0 && this.own)
          event.stopPropagation();
      };
      element2.addEventListener("mousedown", own, true);
      element2.addEventListener("pointerleave", () => this.hint(null));
    }
    get own() {
      return this.work.ready && !["brush", "eraser", "window"].includes(this.work.tool);
    }
    down(event) {
      if (event.button !== 0 || !this.work.ready)
        return;
      const { tool } = this.work;
      this.frame = this.surface.frame;
      this.hint(null);
      if (tool === "brush" || tool === "eraser") {
        this.way = { kind: "stroke" };
        return this.work.strokeBegins();
      }
      const point = this.surface.pixelAt(event);
      if (!point || tool === "window")
        return;
      const last = [event.clientX, event.clientY];
      const click = tool === "lasso" ? null : this.surface.clickAt(event, this.work.clicksHere());
      if (click)
        this.way = { kind: "held", click, moved: false };
      else if (tool === "box")
        this.way = { kind: "box", start: point, box: null };
      else {
        this.way = { kind: "line", line: [point], length: 0, last, lasso: tool === "lasso" };
        if (tool !== "lasso")
          this.work.click(whole(point));
      }
    }
    moved(event) {
      const { way } = this;
      if (!this.work.ready)
        return;
      const point = this.surface.pixelAt(event);
      if (!way)
        return this.hover(event, point);
      if (!point)
        return;
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
    hover(event, point) {
      const here = this.surface.element?.contains(event.target) ?? false;
      this.hint(here && this.work.ready && event.buttons === 0 && point ? whole(point) : null);
    }
    up(event) {
      const { way } = this;
      this.way = null;
      if (!way)
        return;
      if (way.kind === "stroke")
        setTimeout(() => this.work.strokeEnds(), 0);
      else if (!this.work.ready || this.surface.frame !== this.frame)
        return;
      else if (way.kind === "held") {
        const to = way.moved ? this.surface.pixelAt(event) : null;
        this.work.move(way.click, to && whole(to));
      } else if (way.kind === "box") {
        if (way.box)
          this.work.boxed(way.box);
      } else if (way.length >= SCRIBBLE) {
        if (way.lasso)
          this.work.lasso(way.line);
        else
          this.work.scribble(way.line);
      }
      if (way.kind === "line")
        this.surface.draw(this.work.clicksHere(), null);
    }
    dropped() {
      if (this.way?.kind === "stroke")
        this.work.strokeEnds();
      this.way = null;
      if (this.work.ready)
        this.surface.draw(this.work.clicksHere(), null);
    }
  };

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
  var Desk = class {
    constructor(surface, server, open2) {
      this.surface = surface;
      this.server = server;
      this.open = open2;
      this.place = ["", ""];
      // study and series
      this.begun = 0;
      // how many images were opened
      this.frame = 0;
      // that was on the screen last
      this.returning = false;
      // to that frame, from a picture of another image
      this.saving = null;
      this.radius = 8;
      // of the brush, pixels of the screen
      this.standing = "";
      // the state of the work, while a frame says something of its own
      this.about = [];
      const links = [["worklist", "Worklist"], ["status", "What it learns"]];
      this.look = new Look(
        KEYS.map(([key, words, act]) => [key, words, () => act(this)]),
        links.map(([page, words]) => [server.page(page), words])
      );
      this.drawing = new Drawing(surface, server, {
        state: (text) => this.tell(text),
        answered: (frame, found) => this.answered(frame, found),
        changed: (text) => this.changed(text),
        failed: (error) => this.failed(error)
      });
      this.hints = new Hints(surface, (point) => this.drawing.edgeAt(point));
      this.player = new Player(surface, (on) => {
        this.look.press("k", on);
        if (!on)
          this.describe();
      });
      this.pointer = new Pointer(surface, this.drawing, (point) => this.hint(point));
      this.surface.onShown = () => this.shown();
      window.addEventListener("keydown", (e) => this.key(e));
      window.addEventListener("pointerdown", (e) => {
        if (this.surface.element?.contains(e.target))
          this.player.stop();
      }, true);
      window.addEventListener("beforeunload", (e) => {
        if (this.drawing.unsaved || this.saving)
          e.preventDefault();
      });
    }
    get node() {
      return this.look.node;
    }
    // --- the image ----------------------------------------------------------------------------------------------------
    // kept: masks that were drawn before and are not saved, to be shown again. Nothing can be drawn before a final label is there.
    async begin(study, series, kept = null) {
      const own = ++this.begun;
      this.player.stop();
      this.tell("Opening …");
      this.drawing.close();
      this.place = [study, series];
      try {
        const facts = await this.server.image(study, series, this.surface.instance);
        const label = facts.label_state ? await this.server.label(facts.id) : null;
        if (own !== this.begun)
          return;
        await this.surface.begin(facts.instances);
        if (own !== this.begun)
          return;
        const left = kept ?? this.left(facts.id);
        this.drawing.open(facts, left ?? label?.masks ?? {}, label?.label_state ?? "");
        this.pointer.listen(this.surface.element);
        this.use(this.drawing.tool);
        this.look.say("image", facts.id);
        this.look.offer(OF_LOOPS, facts.frames > 1);
        this.about = [...facts.others ? ["Another user works on this image."] : [], ...facts.warnings];
        const parts = facts.frames - this.surface.frames.length;
        if (parts)
          this.about.push(`${parts} more frames of this image are shown with another picture of the series.`);
        this.warn([]);
        this.frame = this.surface.frame;
        if (left)
          this.drawing.edited(this.frame);
        else if (label?.masks)
          this.changed("Final label");
        else
          await this.drawing.outline();
      } catch (error) {
        if (own === this.begun)
          this.failed(error);
      }
    }
    // What was drawn on an image and could not be saved when it was left.
    left(image) {
      const masks = keptOf(image);
      forget(image);
      return masks && window.confirm("What you drew on this image before was not saved. Show it again?") ? masks : null;
    }
    // The wheel may have turned to a picture of the series that is another image.
    shown() {
      if (!this.drawing.facts || this.returning)
        return;
      const { frame } = this.surface;
      if (frame >= 0) {
        this.drawing.show();
        if (frame !== this.frame) {
          this.frame = frame;
          this.describe();
        }
        return;
      }
      if (this.leaves())
        return void this.begin(...this.place);
      this.returning = true;
      void this.surface.go(this.frame).finally(() => this.returning = false);
    }
    // Whether what is shown may be left: nothing changed, or the user says so.
    leaves() {
      return !this.drawing.unsaved || window.confirm("What you changed is not saved. Go on without it?");
    }
    // The mode is left: what is not saved may be saved now. Until it is, it is kept.
    end() {
      const { facts, unsaved } = this.drawing;
      if (facts && unsaved && window.confirm("What you changed is not saved. Save it as final now?")) {
        const label = this.drawing.label();
        keep(facts.id, label.masks);
        void saveLabel(this.server, facts, label).then(
          () => forget(facts.id),
          (error) => window.alert(`Not saved: ${error.message ?? error}

Open ${facts.id} again in this tab to see what you drew.`)
        );
      }
      this.begun++;
      this.player.stop();
      this.drawing.close();
      this.surface.end();
    }
    // --- what the user does -------------------------------------------------------------------------------------------
    // Where an image could not be opened, it is opened again.
    outline() {
      return this.drawing.facts || !this.place[0] ? this.drawing.outline() : this.begin(...this.place);
    }
    use(tool) {
      this.drawing.tool = tool;
      choose(tool, this.radius);
      this.look.choose(tool);
    }
    brush(times) {
      this.radius = Math.min(100, Math.max(1, this.radius * times));
      if (this.drawing.tool !== "eraser")
        this.use("brush");
      else
        this.use("eraser");
    }
    hide() {
      this.look.press("v", !this.surface.toggle());
    }
    toggleHints() {
      this.hints.on = !this.hints.on;
      this.look.press("h", this.hints.on);
      this.hint(null);
    }
    hint(point) {
      const { tool } = this.drawing;
      this.hints.look(tool === "positive" || tool === "negative" ? point : null);
    }
    accept() {
      const own = (this.saving ?? Promise.resolve()).then(() => this.save()).finally(() => {
        if (this.saving === own)
          this.saving = null;
      });
      return this.saving = own;
    }
    async save() {
      const { drawing } = this;
      const { facts } = drawing;
      if (!facts)
        return;
      await drawing.busy;
      if (drawing.facts !== facts)
        return;
      const label = drawing.label();
      if (!Object.keys(label.masks).length && !window.confirm("Nothing is marked. Save that there is no lesion?"))
        return;
      this.tell("Saving …");
      drawing.changed = false;
      try {
        const saved = await saveLabel(this.server, facts, label);
        if (drawing.facts !== facts)
          return;
        drawing.labelState = saved.label_state;
        this.tell(drawing.changed ? "Changed" : "Saved");
        const [marked2, all] = [Object.keys(label.masks).length, label.shown.length];
        const some = all > 1 ? [`${marked2} of ${all} frames have an outline.`] : [];
        this.warn([...some, ...saved.warnings ?? []]);
      } catch (error) {
        if (drawing.facts === facts) {
          drawing.changed = true;
          return this.failed(error);
        }
        keep(facts.id, label.masks);
        window.alert(`The label of ${facts.id} was not saved: ${error.message}

Open it again in this tab to see what you drew.`);
      }
    }
    async next() {
      const { facts } = this.drawing;
      await this.drawing.busy;
      await this.saving;
      if (this.drawing.facts !== facts || !this.leaves())
        return;
      try {
        const found = await this.server.next(facts?.id);
        if (!found.place)
          return this.tell(found.message ?? "There is no other image");
        this.drawing.changed = false;
        this.open(found.place);
      } catch (error) {
        this.failed(error);
      }
    }
    help() {
      this.look.toggle("keys");
    }
    key(event) {
      const target = event.target;
      if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|TEXTAREA|SELECT/.test(target.tagName))
        return;
      const found = KEYS.find(([key]) => key === event.key.toLowerCase());
      if (!found || !(this.drawing.ready || found[0] === "o"))
        return;
      event.preventDefault();
      event.stopPropagation();
      if (found[0] !== "k")
        this.player.stop();
      found[2](this);
    }
    // --- what the user is told ----------------------------------------------------------------------------------------
    answered(frame, found) {
      this.standing = "Proposed";
      this.tell(this.standing);
      if (!this.surface.seen)
        this.hide();
      if (frame === this.surface.frame)
        this.look.figures(found.reply);
      this.warn(found.reply.warnings ?? []);
    }
    changed(text) {
      this.standing = text;
      this.describe();
    }
    // Figures and state of the frame that is shown. What is not the server's outline is measured there.
    describe() {
      const { facts } = this.drawing;
      const { frame } = this.surface;
      if (!facts || frame < 0 || this.player.on)
        return;
      const reply = this.drawing.replyOf(frame);
      const runs = this.drawing.runsOf(frame);
      const empty = runs.length < 2;
      this.tell(empty && facts.frames > 1 && this.standing !== "Cleared" ? "Nothing is marked on this frame" : this.standing);
      this.look.figures(reply);
      if (reply)
        return;
      const still = () => this.drawing.facts === facts && this.surface.frame === frame && this.drawing.replyOf(frame) === null;
      void this.server.measure(facts.id, frame, runs).then(
        (size) => still() && this.look.size(size),
        () => still() && this.look.say("size", "–")
      );
    }
    failed(error) {
      const again = this.drawing.facts ? "" : ". Key o: try again";
      this.tell(`Not done: ${error.message ?? error}${again}`);
    }
    tell(text) {
      this.look.say("state", text);
    }
    // What is to be said of the image stays beside it.
    warn(texts) {
      this.look.list("warnings", [.../* @__PURE__ */ new Set([...this.about, ...texts])]);
    }
  };

  // src/surface.ts
  var SEGMENT = 1;
  var Surface = class {
    constructor(services) {
      this.services = services;
      this.segmentationId = "";
      this.images = /* @__PURE__ */ new Map();
      // the labelmap's, by frame
      this.places = [];
      // where in what is shown each frame is; -1: OHIF shows it elsewhere
      this.seen = true;
      // the labelmap
      this.listened = null;
      this.marks = document.createElement("div");
      this.hinted = document.createElement("canvas");
      this.onShown = () => {
      };
      this.marks.className = "ultrarefiner-marks";
      this.marks.style.cssText = "position:absolute;inset:0;pointer-events:none;overflow:hidden;z-index:5";
      this.hinted.className = "ultrarefiner-hint";
      this.hinted.style.cssText = "position:absolute;left:0;top:0;transform-origin:0 0;image-rendering:pixelated;max-width:none";
      this.hinted.hidden = true;
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
    // The image's frames that are shown here: OHIF may show a series in parts.
    get frames() {
      return [...this.images.keys()];
    }
    // The frame of the image that is on the screen; -1: the series goes on with another image there.
    get frame() {
      return this.places.indexOf(this.viewport?.getCurrentImageIdIndex?.() ?? 0);
    }
    // The DICOM object on the screen.
    get instance() {
      return this.instanceOf(this.viewport?.getCurrentImageId?.());
    }
    instanceOf(imageId) {
      return imageId && window.cornerstone.metaData.get("instance", imageId)?.SOPInstanceUID || "";
    }
    async go(frame) {
      await this.viewport.setImageIdIndex(this.places[frame]);
    }
    // A labelmap over the frames that come from these DICOM objects, in this order, as far as they are shown; empty at first.
    async begin(instances) {
      const { imageLoader } = window.cornerstone;
      const { segmentation, Enums } = window.cornerstoneTools;
      const shown = this.viewport.getImageIds();
      const places = /* @__PURE__ */ new Map();
      shown.forEach((id, k) => places.set(this.instanceOf(id), [...places.get(this.instanceOf(id)) ?? [], k]));
      this.end();
      this.places = instances.flatMap(([uid, count]) => Array.from({ length: count }, (_, k) => places.get(uid)?.[k] ?? -1));
      const frames = this.places.flatMap((place, frame) => place >= 0 ? [frame] : []);
      const images = await imageLoader.createAndCacheDerivedLabelmapImages(frames.map((frame) => shown[this.places[frame]]));
      this.images = new Map(frames.map((frame, k) => [frame, images[k]]));
      this.segmentationId = `lesion-${Date.now()}`;
      const type = Enums.SegmentationRepresentations.Labelmap;
      segmentation.addSegmentations([
        {
          segmentationId: this.segmentationId,
          representation: { type, data: { imageIds: images.map((i) => i.imageId) } },
          config: { label: "lesion", segments: { [SEGMENT]: { segmentIndex: SEGMENT, label: "lesion", active: true } } }
        }
      ]);
      await segmentation.addLabelmapRepresentationToViewport(this.viewportId, [{ segmentationId: this.segmentationId, type }]);
      segmentation.activeSegmentation.setActiveSegmentation(this.viewportId, this.segmentationId);
      segmentation.segmentIndex.setActiveSegmentIndex(this.segmentationId, SEGMENT);
      this.element.append(this.marks);
      if (this.listened === this.element)
        return;
      this.listened = this.element;
      this.element.addEventListener(window.cornerstone.Enums.Events.IMAGE_RENDERED, () => this.onShown());
    }
    end() {
      this.marks.remove();
      if (!this.segmentationId)
        return;
      window.cornerstoneTools.segmentation.removeSegmentation(this.segmentationId);
      this.segmentationId = "";
      this.images = /* @__PURE__ */ new Map();
      this.places = [];
      this.seen = true;
    }
    // Hides the labelmap, or shows it again. Returns whether it is seen now.
    toggle() {
      const { segmentation, Enums } = window.cornerstoneTools;
      const which = { segmentationId: this.segmentationId, type: Enums.SegmentationRepresentations.Labelmap };
      this.seen = !this.seen;
      segmentation.config.visibility.setSegmentationRepresentationVisibility(this.viewportId, which, this.seen);
      return this.seen;
    }
    mask(frame) {
      return new Uint8Array(this.images.get(frame).voxelManager.getScalarData());
    }
    // A frame that is not shown here stays as it is.
    setMask(frame, mask) {
      const manager = this.images.get(frame)?.voxelManager;
      if (!manager)
        return;
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
      const inside2 = x >= -0.5 && y >= -0.5 && x <= dimensions[0] - 0.5 && y <= dimensions[1] - 0.5;
      return inside2 ? [x, y] : null;
    }
    toCanvas(x, y) {
      return this.viewport.worldToCanvas(this.viewport.getImageData().imageData.indexToWorld([x, y, 0]));
    }
    // The click under the pointer, null where there is none.
    clickAt(event, clicks) {
      const bounds = this.element.getBoundingClientRect();
      const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
      const reached = (c) => {
        const [left, top] = this.toCanvas(c.x, c.y);
        return Math.hypot(left - x, top - y) <= 9;
      };
      return clicks.find(reached) ?? null;
    }
    // The edge of what a click would give (height x width), null: none.
    hint(edge2) {
      this.hinted.hidden = edge2 === null;
      if (edge2 === null)
        return;
      const [width, height] = this.viewport.getImageData().dimensions;
      [this.hinted.width, this.hinted.height] = [width, height];
      const context = this.hinted.getContext("2d");
      const pixels = context.createImageData(width, height);
      for (let i = 0; i < edge2.length; i++)
        if (edge2[i])
          pixels.data.set([250, 204, 21, 255], 4 * i);
      context.putImageData(pixels, 0, 0);
      this.placeHint();
    }
    placeHint() {
      const { width, height } = this.hinted;
      const [[left, top], [right, bottom]] = [this.toCanvas(-0.5, -0.5), this.toCanvas(width - 0.5, height - 0.5)];
      const turn = `translate(${left}px,${top}px) scale(${(right - left) / width},${(bottom - top) / height})`;
      this.hinted.style.transform = turn;
    }
    // Clicks, a box or a line that is being drawn, over the picture.
    draw(clicks, box, line = []) {
      if (!this.viewport?.getImageData?.())
        return this.marks.replaceChildren();
      this.marks.replaceChildren(this.hinted);
      if (!this.hinted.hidden)
        this.placeHint();
      if (line.length > 1)
        this.marks.append(this.lineMark(line));
      for (const click of clicks) {
        const [x, y] = this.toCanvas(click.x, click.y);
        const mark = document.createElement("div");
        mark.textContent = click.positive ? "+" : "−";
        mark.style.cssText = `position:absolute;left:${x - 9}px;top:${y - 9}px;width:18px;height:18px;border-radius:9px;font:bold 15px/17px sans-serif;text-align:center;color:#000;border:1px solid #000;background:${click.positive ? "#4ade80" : "#f87171"}`;
        this.marks.append(mark);
      }
      if (box)
        this.marks.append(this.boxMark(box));
    }
    lineMark(line) {
      const space = "http://www.w3.org/2000/svg";
      const drawing = document.createElementNS(space, "svg");
      drawing.style.cssText = "position:absolute;inset:0;width:100%;height:100%";
      const path = document.createElementNS(space, "polyline");
      path.setAttribute("points", line.map(([x, y]) => this.toCanvas(x, y).join(",")).join(" "));
      path.setAttribute("style", "fill:none;stroke:#facc15;stroke-width:2");
      drawing.append(path);
      return drawing;
    }
    boxMark(box) {
      const [left, top] = this.toCanvas(box[0], box[1]);
      const [right, bottom] = this.toCanvas(box[2], box[3]);
      const mark = document.createElement("div");
      mark.style.cssText = `position:absolute;left:${Math.min(left, right)}px;top:${Math.min(top, bottom)}px;width:${Math.abs(right - left)}px;height:${Math.abs(bottom - top)}px;border:2px dashed #facc15`;
      return mark;
    }
  };

  // src/index.ts
  var ID = "ultrarefiner";
  var HOTKEYS = "ohif.hotkeyBindings";
  var CINE = "autoCineModalities";
  var desk = null;
  var leave = [];
  function client() {
    const kept = new URLSearchParams(window.location.search).get("client") ?? sessionStorage.getItem(ID);
    const name = kept ?? `viewer-${Math.random().toString(36).slice(2, 10)}`;
    sessionStorage.setItem(ID, name);
    return name;
  }
  function element(node) {
    const ref = (parent) => parent?.replaceChildren(node);
    const props = { style: { height: "100%" } };
    return { $$typeof: Symbol.for("react.element"), type: "div", key: null, ref, props, _owner: null, _store: {} };
  }
  function open(place) {
    window.location.assign(`${window.location.pathname}?${place}`);
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
  function quieten(customizationService) {
    if (customizationService.addModeCustomizations)
      customizationService.addModeCustomizations([{ id: CINE, modalities: [] }]);
    else
      customizationService.setCustomizations({ [CINE]: { $set: [] }, [HOTKEYS]: { $set: [] } });
  }
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
      const { customizationService } = servicesManager.services;
      quieten(customizationService);
      const { displaySetService, viewportGridService, cornerstoneViewportService } = servicesManager.services;
      const events = cornerstoneViewportService.EVENTS;
      let shown = "";
      let kept = null;
      const begin = () => {
        const { viewports, activeViewportId } = viewportGridService.getState();
        const uid = viewports.get(activeViewportId)?.displaySetInstanceUIDs?.[0];
        const set = uid && displaySetService.getDisplaySetByUID(uid);
        if (!set || uid === shown && !kept || !cornerstoneViewportService.getCornerstoneViewport(activeViewportId)?.getImageIds?.().length)
          return;
        if (shown && uid !== shown && !desk.leaves()) {
          kept = desk.drawing.label().masks;
          viewportGridService.setDisplaySetsForViewport({ viewportId: activeViewportId, displaySetInstanceUIDs: [shown] });
          return;
        }
        shown = uid;
        void desk.begin(set.StudyInstanceUID, set.SeriesInstanceUID, kept);
        kept = null;
      };
      const ways = [cornerstoneViewportService.subscribe(events.VIEWPORT_DATA_CHANGED, () => setTimeout(begin, 50))];
      leave = ways.map((way) => () => way.unsubscribe());
    },
    onModeExit() {
      desk?.end();
      leave.forEach((end) => end());
      leave = [];
    }
  };
  window.config.investigationalUseDialog = { option: "never" };
  window.config.showStudyList = false;
  window.config.extensions.push(extension);
  window.config.modes.push(mode);
})();
