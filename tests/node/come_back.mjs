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
console.warn = () => {};
const seen = { messages: [], closes: [], sent: [], states: [] };
const offers = [...protocols];
let asked = 0;
async function path() {
  asked += 1;
  if (asked === 1) throw new Error("no ticket"); // the fetch of a page fails
  return `/news?since=${socket.lastId ?? ""}`;
}
const socket = new ReconnectingSocket(path, () => offers.shift());
socket.addEventListener("state", ({ detail }) => seen.states.push(detail.state));
socket.addEventListener("message", ({ data }) => seen.messages.push(JSON.parse(data)));
socket.addEventListener("close", ({ code, reason }) => {
  if (code === 1006) {
    socket.retryNow();
    return;
  }
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
