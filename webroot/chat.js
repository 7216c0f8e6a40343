// The chat room. Messages are JSON objects; demo/chat.py documents them. The page's address names
// the room (?room=garden); the default is the lobby.

import { MessageLog, StateLabel, element, timeOfDay } from "./log.js";
import { ReconnectingSocket } from "./reconnecting.js";

const NAME_KEY = "greenws.chat.name";
const INSIDE_KEY = "greenws.chat.inside"; // set while in the room, so that a reload joins again
const PERSON_KEY = "greenws.chat.person"; // the same in all tabs: the person is a member once
const REMOVED = 4001; // close code
const GROUPED = 300000; // milliseconds within which messages of one name stand under it together

const byId = (id) => document.getElementById(id);
const entrance = byId("chat-entrance");
const joinForm = byId("chat-join-form");
const nameInput = byId("chat-name");
const joinError = byId("chat-join-error");
const room = byId("chat-room");
const memberList = byId("chat-members");
const form = byId("chat-form");
const input = byId("chat-input");
const send = byId("chat-send");
const retry = byId("chat-retry");
const log = new MessageLog(byId("chat-log"));
const state = new StateLabel(byId("chat-state"), byId("chat-announce"));
const roomName = new URLSearchParams(location.search).get("room") || "lobby";
const socket = new ReconnectingSocket(`chat/${encodeURIComponent(roomName)}`, "chat");

// What the server has put into the page: the messages of the room, and the position after them.
const page = JSON.parse(byId("chat-page").textContent);
const rendered = page.room === roomName ? page : {};

let wanted = ""; // the requested name; the server may have added a number to it
let self = "";
let inside = false; // the server has sent "welcome" on this connection
let members = new Set();
const shown = new Set(); // ids of messages: the history may repeat messages that came before it
let removedBy = ""; // who has removed this person
let lostAt = 0; // when the connection was lost, while there is none
let missed = 0; // messages that came before the welcome
let isIncomplete = false; // and some are missing

function remember(key, value) {
  try {
    if (value) sessionStorage.setItem(key, value);
    else sessionStorage.removeItem(key);
  } catch {
    // storage is disabled: the name is not remembered, everything else works
  }
}

// A secret by which the tabs of a browser are one member.
function person() {
  try {
    let found = localStorage.getItem(PERSON_KEY);
    if (!found) {
      const bytes = crypto.getRandomValues(new Uint8Array(16));
      found = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
      localStorage.setItem(PERSON_KEY, found);
    }
    return found;
  } catch {
    return undefined; // each tab is a member of its own
  }
}

function recall(key) {
  try {
    return sessionStorage.getItem(key) ?? "";
  } catch {
    return "";
  }
}

function hueOf(name) {
  let hash = 2166136261; // FNV-1a
  for (const character of name) hash = Math.imul(hash ^ character.codePointAt(0), 16777619) >>> 0;
  return hash % 360;
}

function colored(node, name) {
  node.style.setProperty("--hue", hueOf(name));
  return node;
}

function showMembers() {
  const names = [...members].sort((a, b) => a.localeCompare(b));
  memberList.replaceChildren(
    ...names.map((name) => {
      const initial = [...name][0].toLocaleUpperCase();
      const badge = element("span", { className: "badge", "aria-hidden": "true" }, initial);
      const label = element("bdi", { "data-field": "name", title: name }, name);
      const item = element("li", {}, colored(badge, name), label);
      if (name === self) {
        item.dataset.self = "";
        item.append(element("span", { className: "you" }, "you"));
      } else {
        const label = `Remove ${name} from the room`;
        const remove = element(
          "button",
          { type: "button", className: "remove", "aria-label": label, title: label },
          "\u00d7",
        );
        remove.addEventListener("click", () => {
          socket.send(JSON.stringify({ type: "remove", name }));
        });
        item.append(remove);
      }
      return item;
    }),
  );
  byId("chat-count").textContent = names.length;
}

function showPast(events) {
  log.addQuietly(() => {
    for (const event of events) {
      if (event.type === "message") showMessage(event);
      else if (event.type === "removed") showRemoval(event);
    }
  });
}

function showRemoval({ id, name, by, time }) {
  if (shown.has(id)) return;
  shown.add(id);
  showNotice("left", time, named(by), " removed ", named(name));
}

function lasting(milliseconds) {
  const seconds = Math.max(1, Math.round(milliseconds / 1000));
  if (seconds < 100) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} minutes` : `${Math.round(minutes / 60)} hours`;
}

// What a client that comes back has missed, in words.
function showReturn() {
  const away = lostAt
    ? `the ${lasting(Date.now() - lostAt)} without a connection`
    : "the time since this page was loaded";
  const some = missed === 1 ? "the message" : `the ${missed} messages`;
  if (isIncomplete) {
    const rest = missed ? ` What is left of them: ${some} above.` : "";
    showNotice(
      "gap",
      Date.now(),
      `Messages are missing: the server no longer keeps all of ${away}.${rest}`,
    );
  } else if (lostAt) {
    const what = missed ? `${some} above came meanwhile` : "nothing was said meanwhile";
    showNotice("notice", Date.now(), `Connected again after ${lasting(Date.now() - lostAt)}: ${what}.`);
  }
  lostAt = 0;
}

function showMessage({ id, name, text, time }) {
  if (shown.has(id)) return;
  shown.add(id);
  missed += 1;
  const last = log.list.lastElementChild;
  const follows =
    last?.dataset.kind === "message" &&
    last.dataset.author === name &&
    time - Number(last.dataset.time) < GROUPED;
  const author = colored(element("bdi", { className: "author", "data-field": "name" }, name), name);
  const entry = log.add(
    "message",
    element(
      "p",
      { className: follows ? "byline visually-hidden" : "byline" },
      author,
      " ",
      timeOfDay(time),
    ),
    element("p", { className: "bubble", "data-field": "text", dir: "auto" }, text),
  );
  entry.dataset.author = name;
  entry.dataset.time = time;
  if (follows) entry.dataset.follows = "";
  if (name === self) entry.dataset.self = "";
}

function showNotice(kind, time, ...what) {
  log.add(
    kind,
    element("span", { "data-field": "text" }, ...what),
    " ",
    timeOfDay(time),
  );
}

function named(name) {
  return element("bdi", { "data-field": "name" }, name);
}

const receivers = {
  welcome({ name, members: names, history }) {
    inside = true;
    self = name;
    members = new Set(names);
    state.show("connected", "connected");
    send.disabled = false;
    byId("chat-self").textContent = name;
    showMembers();
    showReturn();
    showPast(history);
    if (name !== wanted) {
      // The server adds a number; another name is the one that this person has already.
      if (/ \(\d+\)$/.test(name)) {
        showNotice("notice", Date.now(), named(wanted), " is taken; you are ", named(name), ".");
      } else {
        showNotice("notice", Date.now(), "You are here already, as ", named(name), ".");
      }
    }
  },
  joined({ name, time }) {
    members.add(name);
    showMembers();
    showNotice("joined", time, named(name), " joined");
  },
  left({ name, time }) {
    members.delete(name);
    showMembers();
    showNotice("left", time, named(name), " left");
  },
  message(event) {
    showMessage(event);
  },
  removed(event) {
    if (inside && event.name === self) removedBy = event.by;
    showRemoval(event);
  },
  gap() {
    if (inside) {
      showNotice(
        "gap",
        Date.now(),
        "Messages are missing here: the server could not keep up with the room.",
      );
    } else {
      isIncomplete = true; // the welcome says more
    }
  },
  error({ message }) {
    if (inside) {
      showNotice("error", Date.now(), message);
    } else {
      leave();
      complain(message);
    }
  },
};

function complain(message) {
  joinError.textContent = message;
  nameInput.setAttribute("aria-invalid", String(Boolean(message)));
  if (message) nameInput.focus();
}

function join(name) {
  wanted = name;
  remember(NAME_KEY, name);
  remember(INSIDE_KEY, "yes");
  complain("");
  byId("chat-self").textContent = name;
  entrance.hidden = true;
  room.hidden = false;
  removedBy = "";
  showPast(rendered.history ?? []);
  socket.open(rendered.position);
}

function leave() {
  remember(INSIDE_KEY, "");
  socket.close();
  inside = false;
  lostAt = 0;
  send.disabled = true;
  retry.hidden = true;
  entrance.hidden = false;
  room.hidden = true;
  state.show("closed", "not joined", "You have left the chat.");
}

socket.addEventListener("open", () => {
  missed = 0;
  isIncomplete = false;
  socket.send(JSON.stringify({ type: "join", name: wanted, since: socket.lastId, person: person() }));
});

socket.addEventListener("message", ({ data }) => {
  const event = JSON.parse(data);
  receivers[event.type]?.(event);
});

socket.addEventListener("close", ({ code }) => {
  if (code === REMOVED) {
    leave();
    complain(`${removedBy || "Somebody"} has removed you from the room. You may join again.`);
    return;
  }
  if (inside) {
    lostAt = Date.now();
    showNotice("notice", Date.now(), "The connection was lost.");
  }
  inside = false;
  send.disabled = true;
  members.clear();
  showMembers();
});

socket.addEventListener("state", ({ detail }) => {
  retry.hidden = detail.state !== "waiting";
  if (detail.state === "waiting") {
    state.show("reconnecting", `reconnecting in ${detail.seconds} s`, "Chat: reconnecting.");
  } else if (detail.state === "connecting") {
    state.show("connecting", "connecting");
  }
});

joinForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const name = nameInput.value.trim();
  if (!name) {
    complain("Please enter a name.");
    return;
  }
  join(name);
  input.focus();
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  if (text && inside && socket.send(JSON.stringify({ type: "message", text }))) input.value = "";
  input.focus();
});

byId("chat-leave").addEventListener("click", () => {
  leave();
  nameInput.focus();
});

retry.addEventListener("click", () => {
  socket.retryNow();
  input.focus();
});

byId("chat-room-name").textContent = roomName;
if (rendered.history?.length) {
  const { name, time } = rendered.history.at(-1);
  const count = rendered.history.length;
  byId("chat-rendered").replaceChildren(
    count === 1 ? "One message is here, of " : `${count} messages are here, the last one of `,
    ...[named(name), " at ", timeOfDay(time), "."],
  );
}
nameInput.value = recall(NAME_KEY);
if (nameInput.value && recall(INSIDE_KEY)) join(nameInput.value);
