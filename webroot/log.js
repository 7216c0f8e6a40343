// A log that keeps its newest entry in view unless the user has scrolled up.
// Values come from outside, so they are inserted as text, never as markup.

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
      this.updateFollowing();
      if (this.following) this.toNewest.hidden = true;
    }, { passive: true });
    // The log is resized when a phone is rotated or its keyboard opens.
    new ResizeObserver(() => {
      if (this.following) this.scrollToNewest();
    }).observe(container);
  }

  updateFollowing() {
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
    this.updateFollowing(); // the event of the last scroll may not have arrived yet
    this.list.append(entry);
    if (this.list.childElementCount > MAX_ENTRIES) this.list.firstElementChild.remove();
    if (this.following) this.scrollToNewest();
    else this.toNewest.hidden = false;
    return entry;
  }

  // Adds many entries at once (the history), which a screen reader should not read out one by one.
  addQuietly(fill) {
    this.container.setAttribute("aria-busy", "true");
    fill();
    this.scrollToNewest();
    this.container.removeAttribute("aria-busy");
  }
}

// Shows the state of a connection. A screen reader announces it only when it changes.
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
