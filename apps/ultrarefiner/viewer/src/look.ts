// What the panel is made of: buttons, figures, keys. It says into the elements that it gives back, by their names.

export type Key = [string, string, () => void]; // the key, what it does in words, what it does

export function build(node: HTMLElement, keys: Key[]): Record<string, HTMLElement> {
  const says: Record<string, HTMLElement> = {};
  const style = document.createElement("style");
  style.textContent =
    ".ultrarefiner{color:#e5eef8;font:14px/1.45 system-ui,sans-serif;padding:12px;overflow:auto;height:100%}" +
    ".ultrarefiner button{background:#0b3a6b;color:#fff;border:1px solid #5b9fd0;border-radius:4px;padding:6px 10px;margin:3px;cursor:pointer}" +
    ".ultrarefiner button[aria-pressed=true]{background:#5acce6;color:#000}.ultrarefiner button:focus-visible{outline:3px solid #facc15}" +
    ".ultrarefiner dl{display:grid;grid-template-columns:auto 1fr;gap:2px 12px;margin:10px 0}.ultrarefiner dt{color:#9fb6cc}.ultrarefiner dd{margin:0}" +
    ".ultrarefiner .accept{background:#15803d;border-color:#86efac}.ultrarefiner ul{margin:6px 0;padding-left:18px;color:#fde68a}";
  const say = (name: string, element: HTMLElement) => (says[name] = element);
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
    if (tool) button.dataset.tool = tool;
    if (key === "a") button.className = "accept";
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
