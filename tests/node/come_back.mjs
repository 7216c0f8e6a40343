// webroot/reconnecting.js outside a browser: reads { module, address, protocols } from stdin, and
// prints what happened as JSON. The protocol is that of ws; what a browser has beside it is here.
import { readFileSync } from "node:fs";
import WebSocket from "ws";

const { module, address, protocols } = JSON.parse(readFileSync(0, "utf8"));
globalThis.WebSocket = WebSocket;
globalThis.location = new URL(address);
globalThis.document = { hidden: false, addEventListener() {} };
globalThis.addEventListener = () => {};
globalThis.CloseEvent ??= class extends Event {
  constructor(type, { code, reason }) {
    super(type);
    Object.assign(this, { code, reason });
  }
};

const { ReconnectingSocket } = await import(module);
const seen = { messages: [], closes: [], sent: [] };
const offers = [...protocols];
const socket = new ReconnectingSocket(
  () => `/news?since=${socket.lastId ?? ""}`,
  () => offers.shift(),
);
socket.addEventListener("message", ({ data }) => seen.messages.push(JSON.parse(data)));
socket.addEventListener("close", ({ code, reason }) => {
  seen.closes.push([code, reason, socket.lastId ?? null]);
  seen.sent.push(socket.send("while there is no connection"));
  if (offers.length) {
    setTimeout(() => socket.open(), 0); // as a page does when it has fetched another token
    return;
  }
  socket.close();
  seen.lastId = socket.lastId ?? null;
  console.log(JSON.stringify(seen));
  process.exit();
});
socket.open();
