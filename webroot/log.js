// A log of entries that keeps the newest in view, unless the reader has scrolled up.
// Whatever comes from outside is put in as text, never as markup.

const MAX_ENTRIES = 500;
const NEAR_BOTTOM = 48; // pixels

export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "className") node.className = value;
    else node.setAttribute(name, value);
  }
  node.append(...children); // strings become text nodes
  return node;
}

export function timeOfDay(milliseconds, withSeconds = false) {
  const date = new Date(milliseconds);
  const format = withSeconds
    ? { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" }
    : { hour: "2-digit", minute: "2-digit" };
  return element("time", { datetime: date.toISOString() }, date.toLocaleTimeString([], format));
}

export class MessageLog {
  constructor(container) {
    this.container = container;
    this.following = true; // the newest entry is in view
    this.list = container.querySelector("ol");
    this.toNewest = container.parentElement.querySelector(".to-newest");
    this.toNewest.addEventListener("click", () => {
      this.scrollToNewest();
      container.focus();
    });
    container.addEventListener("scroll", () => {
      this.look();
      if (this.following) this.toNewest.hidden = true;
    }, { passive: true });
    // The frame changes its size when a phone is turned, or its keyboard comes up.
    new ResizeObserver(() => {
      if (this.following) this.scrollToNewest();
    }).observe(container);
  }

  look() {
    const { scrollHeight, scrollTop, clientHeight } = this.container;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM;
  }

  scrollToNewest() {
    this.following = true;
    this.container.scrollTop = this.container.scrollHeight;
    this.toNewest.hidden = true;
  }

  add(kind, ...children) {
    const entry = element("li", { "data-kind": kind }, ...children);
    this.look(); // the event of a scroll may still be on its way
    this.list.append(entry);
    if (this.list.childElementCount > MAX_ENTRIES) this.list.firstElementChild.remove();
    if (this.following) this.scrollToNewest();
    else this.toNewest.hidden = false;
    return entry;
  }

  // Many entries at once (the history) are not to be read out one by one.
  addQuietly(fill) {
    this.container.setAttribute("aria-busy", "true");
    fill();
    this.scrollToNewest();
    this.container.removeAttribute("aria-busy");
  }
}

// Shows a connection's state to the eye at once, and to a screen reader once for each change.
export class StateLabel {
  constructor(label, announcer) {
    this.label = label;
    this.announcer = announcer;
  }

  show(state, text, spoken = text) {
    const changed = this.label.dataset.state !== state;
    this.label.dataset.state = state;
    this.label.textContent = text;
    if (changed) this.announcer.textContent = spoken;
  }
}
