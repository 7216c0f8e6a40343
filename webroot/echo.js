// The echo panel: one plain WebSocket, opened with the page, that the user closes and opens.

import { MessageLog, StateLabel, element, timeOfDay } from "./log.js";
import { socketUrl } from "./reconnecting.js";

const byId = (id) => document.getElementById(id);
const toggle = byId("echo-toggle");
const form = byId("echo-form");
const input = byId("echo-input");
const send = byId("echo-send");
const log = new MessageLog(byId("echo-log"));
const state = new StateLabel(byId("echo-state"), byId("echo-announce"));
const url = socketUrl("echo");

let socket = null;
let sentAt = []; // times at which the pending messages were sent; echoes arrive in the same order

byId("echo-url").textContent = url;

function note(text) {
  log.add("notice", element("span", { "data-field": "text" }, text));
}

function show(kind, label, text, meta) {
  log.add(
    kind,
    element("span", { className: "tag" }, label),
    element("span", { className: "payload", "data-field": "text", dir: "auto" }, text),
    element("span", { className: "meta" }, meta),
  );
}

function showState(name, text, button) {
  state.show(name, text);
  toggle.textContent = button;
  toggle.classList.toggle("quiet", name !== "closed");
  send.disabled = name !== "connected";
}

function connect(isWanted = true) {
  sentAt = [];
  showState("connecting", "connecting", "Cancel");
  socket = new WebSocket(url, "echo");
  let opened = false;
  socket.addEventListener("open", () => {
    opened = true;
    showState("connected", "connected", "Disconnect");
    note(`Connected, subprotocol ${socket.protocol}.`);
    if (isWanted) input.focus(); // not away from where the user is
  });
  socket.addEventListener("message", ({ data }) => {
    const milliseconds = performance.now() - sentAt.shift();
    show("received", "Received", data, `${milliseconds.toFixed(1)} ms`);
  });
  socket.addEventListener("close", ({ code, reason }) => {
    socket = null;
    showState("closed", "disconnected", "Connect");
    const why = reason ? `${code}, ${reason}` : code;
    note(opened ? `Closed (${why}).` : "Could not connect.");
  });
}

toggle.addEventListener("click", () => {
  if (socket) {
    showState("connecting", "closing", "Disconnect");
    socket.close(1000);
  } else {
    connect();
  }
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (socket?.readyState !== WebSocket.OPEN || !input.value) return;
  sentAt.push(performance.now());
  socket.send(input.value);
  show("sent", "Sent", input.value, timeOfDay(Date.now(), true));
  input.value = "";
  input.focus();
});

connect(false);
