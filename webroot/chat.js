// The chat room. Messages are JSON objects; demo/chat.py documents them. The page's address names
// the room (?room=garden); the default is the lobby.

import { MessageLog, StateLabel, element, timeOfDay } from "./log.js";
import { ReconnectingSocket } from "./reconnecting.js";

const NAME_KEY = "greenws.chat.name";
const INSIDE_KEY = "greenws.chat.inside"; // set while in the room, so that a reload joins again

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

let wanted = ""; // the requested name; the server may have added a number to it
let self = "";
let inside = false; // the server has sent "welcome" on this connection
let members = new Set();
const shown = new Set(); // ids of messages: the history may repeat messages that came before it

function remember(key, value) {
  try {
    if (value) sessionStorage.setItem(key, value);
    else sessionStorage.removeItem(key);
  } catch {
    // storage is disabled: the name is not remembered, everything else works
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
      }
      return item;
    }),
  );
  byId("chat-count").textContent = names.length;
}

function showMessage({ id, name, text, time }) {
  if (shown.has(id)) return;
  shown.add(id);
  const author = colored(element("bdi", { className: "author", "data-field": "name" }, name), name);
  const entry = log.add(
    "message",
    element("p", { className: "byline" }, author, " ", timeOfDay(time)),
    element("p", { className: "bubble", "data-field": "text", dir: "auto" }, text),
  );
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
    log.addQuietly(() => {
      for (const message of history) showMessage(message);
    });
    if (name !== wanted) {
      showNotice("notice", Date.now(), named(wanted), " is taken; you are ", named(name), ".");
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
  gap() {
    showNotice("notice", Date.now(), "Some older messages are no longer available.");
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
  socket.open();
}

function leave() {
  remember(INSIDE_KEY, "");
  socket.close();
  inside = false;
  send.disabled = true;
  retry.hidden = true;
  entrance.hidden = false;
  room.hidden = true;
  state.show("closed", "not joined", "You have left the chat.");
}

socket.addEventListener("open", () => {
  socket.send(JSON.stringify({ type: "join", name: wanted, since: socket.lastId }));
});

socket.addEventListener("message", ({ data }) => {
  const event = JSON.parse(data);
  receivers[event.type]?.(event);
});

socket.addEventListener("close", () => {
  if (inside) showNotice("notice", Date.now(), "The connection was lost.");
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
nameInput.value = recall(NAME_KEY);
if (nameInput.value && recall(INSIDE_KEY)) join(nameInput.value);
