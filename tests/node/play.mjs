// Plays a script of actions against a server with ws, and prints what came of it as JSON.
// In: {url, protocols, options, script} on stdin. Payloads: {text} or {hex}.

import WebSocket from "ws";

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const { url, protocols, options, script } = JSON.parse(Buffer.concat(chunks));
const result = { protocol: null, extensions: "", received: [], pongs: [], close: null, refused: null };

const socket = new WebSocket(url, protocols, { perMessageDeflate: false, ...options });
const waiting = []; // whoever waits for something to happen
const happened = () => waiting.splice(0).forEach((resume) => resume());
const until = async (condition) => {
  while (!condition()) await new Promise((resume) => waiting.push(resume));
};
const payload = (data) => (data.text !== undefined ? data.text : Buffer.from(data.hex, "hex"));

let failed = null;
let opened = false;
let unread = 0;
socket.on("message", (data, isBinary) => {
  result.received.push(isBinary ? { hex: data.toString("hex") } : { text: data.toString() });
  unread += 1;
  happened();
});
socket.on("pong", (data) => {
  result.pongs.push(data.toString("hex"));
  happened();
});
socket.on("close", (code, reason) => {
  result.close = [code, reason.toString()];
  happened();
});
socket.on("error", (error) => {
  failed = error;
  happened();
});
socket.on("unexpected-response", async (request, response) => {
  const body = [];
  for await (const chunk of response) body.push(chunk);
  result.refused = [response.statusCode, Buffer.concat(body).toString()];
  happened();
});
socket.on("open", () => {
  opened = true;
  result.protocol = socket.protocol || null;
  result.extensions = socket.extensions;
  happened();
});

await until(() => opened || result.refused || failed);
if (opened) {
  for (const action of script) {
    if (action.send) {
      socket.send(payload(action.send));
    } else if (action.fragments) {
      const last = action.fragments.length - 1;
      action.fragments.forEach((part, i) => socket.send(payload(part), { fin: i === last }));
    } else if (action.receive) {
      const wanted = action.receive;
      await until(() => unread >= wanted || result.close);
      unread -= wanted;
    } else if (action.ping) {
      const wanted = result.pongs.length + 1;
      socket.ping(payload(action.ping));
      await until(() => result.pongs.length >= wanted || result.close);
    } else if (action.close) {
      socket.close(...action.close);
    }
  }
  await until(() => result.close);
}
if (failed && !result.refused) result.error = failed.message;
process.stdout.write(JSON.stringify(result), () => process.exit(0));
