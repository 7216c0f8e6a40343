// The attempts of webroot/reconnecting.js that make no connection. The first argument is the address
// of that module; prints what happened as JSON. The timers are here, and end when this says so.
globalThis.location = new URL("http://localhost/");
globalThis.document = { hidden: false, addEventListener() {} };
globalThis.addEventListener = () => {};
globalThis.CloseEvent ??= class extends Event {
  constructor(type, { code, reason }) {
    super(type);
    Object.assign(this, { code, reason });
  }
};
globalThis.WebSocket = class extends EventTarget {
  constructor(url, protocol) {
    super();
    if (protocol?.includes(" ")) throw new SyntaxError(`invalid subprotocol: ${protocol}`);
    connected.push(url);
  }
  close() {}
};
const connected = [];
const timers = new Map();
globalThis.setTimeout = (callback, delay) => {
  const timer = Symbol("timer");
  timers.set(timer, { callback, delay });
  return timer;
};
globalThis.clearTimeout = (timer) => timers.delete(timer);
globalThis.setInterval = () => 0; // retryNow() instead
const rejected = [];
process.on("unhandledRejection", (error) => rejected.push(String(error)));
console.warn = () => {};

const { ReconnectingSocket } = await import(process.argv[2]);

function settle() {
  return new Promise((resolve) => setImmediate(resolve)); // all that is due has run then
}

function watch(path, protocol) {
  const seen = { states: [], closes: [] };
  const socket = new ReconnectingSocket(path, protocol);
  socket.addEventListener("state", ({ detail }) => seen.states.push(detail.state));
  socket.addEventListener("close", ({ code, reason }) => seen.closes.push([code, reason]));
  return [socket, seen];
}

const result = {};

{
  // A function that never answers, and one that answers.
  const answers = [new Promise(() => {}), "/answered"];
  const [socket, seen] = watch(() => answers.shift());
  socket.open();
  await settle();
  result.delays = [...timers.values()].map(({ delay }) => delay);
  for (const { callback } of timers.values()) callback();
  await settle();
  socket.retryNow();
  await settle();
  socket.close();
  result.unanswered = { ...seen, connected: [...connected], timers: timers.size };
}

{
  const [socket, seen] = watch("/", "not valid");
  try {
    socket.open();
  } catch (error) {
    seen.thrown = String(error);
  }
  socket.retryNow();
  result.value = seen;
}

{
  const [socket, seen] = watch("/", async () => "not valid");
  socket.open();
  await settle();
  socket.retryNow();
  await settle();
  result.answer = { ...seen, rejected };
}

{
  let asked = 0;
  const [socket, seen] = watch(() => (asked += 1));
  socket.addEventListener("state", ({ detail }) => {
    if (detail.state === "connecting") socket.close();
  });
  socket.open();
  await settle();
  result.closed = { ...seen, asked };
}

{
  // As on the page about authentication: a 401 instead of a ticket.
  const [socket, seen] = watch(async () => {
    await settle();
    socket.close();
    throw new Error("no ticket");
  });
  socket.open();
  await settle();
  await settle();
  result.loggedOut = seen;
}

console.log(JSON.stringify(result));
process.exit();
