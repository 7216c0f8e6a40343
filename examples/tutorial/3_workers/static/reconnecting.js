// A WebSocket that reconnects by itself and misses no messages. Copy this file; it needs no other.
//
// Reconnecting: exponential back-off with jitter, so that the clients of a restarted server do not
// all return at the same moment.
//
// Missing nothing: messages are JSON objects, and the messages of a room carry their "id" (on the
// server, Rooms(stamp=json_id)). A client that reconnects sends the last id that it saw, in a
// message as shown below or in the path, and the server passes it to room.join(socket, since=...).
// Before its first message a client has no id, and would miss what is sent while it is
// disconnected. So let the server send an id right after the join:
//
//   with room.join(socket, since=since) as member:
//       socket.send(json.dumps({"id": member.position}))
//
// A page that is rendered with room.position gives that to open(): it misses nothing of what is
// said between its rendering and its first connection.
//
// Messages are replayed; joins and leaves are not. A close code of 4000 to 4999 is what the
// application has decided (room.disconnect(4001, ...)): then it does not reconnect by itself. lastId
// stays, so a page that has fetched another token calls open() and misses nothing:
//
//   socket.addEventListener("close", async ({ code }) => {
//     if (code !== 4001) return;
//     token = await fetchToken();
//     socket.open();
//   });
//
// send() returns false, and sends nothing, while there is no connection. A handshake that the server
// refuses (a 401, say) looks to a page like a lost connection, so it is tried again.
//
//   const socket = new ReconnectingSocket("chat/lobby", "chat");
//   socket.addEventListener("open", () => {
//     socket.send(JSON.stringify({ type: "join", name, since: socket.lastId }));
//   });
//   socket.addEventListener("message", ({ data }) => show(JSON.parse(data)));
//   socket.open();

const FIRST_DELAY = 1000; // milliseconds
const LONGEST_DELAY = 30000;
const STABLE_AFTER = 5000; // milliseconds; a connection that lasted longer resets the back-off
const ANSWER_TIMEOUT = 30000; // milliseconds, for an async function of the page

export function socketUrl(path) {
  const url = new URL(path, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

function idOf(data) {
  try {
    return JSON.parse(data).id;
  } catch {
    return undefined; // not a message of a room
  }
}

// What the option is, or what its function answers in time.
async function valueOf(option) {
  if (typeof option !== "function") return option;
  let timer;
  const timeout = new Promise((resolve, reject) => {
    const late = new Error("the function for the path or protocol took longer than 30 s");
    timer = setTimeout(() => reject(late), ANSWER_TIMEOUT);
  });
  try {
    return await Promise.race([option(), timeout]);
  } finally {
    clearTimeout(timer);
  }
}

// path: of the WebSocket, relative to the page's address, or a function that returns it, called for
// each attempt; protocol: the subprotocol, a list of them, or a function that returns either. The
// functions may be async, to fetch a ticket or a token: one that fails, or takes longer than 30
// seconds, is a failed attempt. An invalid path or subprotocol is not tried again: open() throws the
// browser's error; if it came from a function, the state is "closed", and the error is an unhandled
// rejection.
// Events: "open", "message" (data), "close" (code, reason), and "state", whose detail is
// { state: "closed" | "connecting" | "open" | "waiting", seconds }.
export class ReconnectingSocket extends EventTarget {
  #path;
  #protocol;
  #socket = null;
  #lastId;
  #wanted = false;
  #attempt = 0;
  #openedAt = 0;
  #retryAt = 0;
  #ticker = 0;

  constructor(path, protocol) {
    super();
    this.#path = path;
    this.#protocol = protocol;
    addEventListener("online", () => this.retryNow());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.retryNow();
    });
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  // The last id received, kept across reconnects and close codes 4000 to 4999; undefined before the
  // first one and after close().
  get lastId() {
    return this.#lastId;
  }

  open(since) {
    this.#wanted = true;
    this.#lastId ??= since;
    this.#attempt = 0;
    if (!this.#socket) this.#connect();
  }

  close() {
    this.#lastId = undefined;
    this.#end();
  }

  #end() {
    this.#wanted = false;
    clearInterval(this.#ticker);
    const socket = this.#socket;
    this.#socket = null; // so that its later events are ignored
    socket?.close(1000);
    this.#tell("closed");
  }

  send(text) {
    if (!this.isOpen) return false;
    this.#socket.send(text);
    return true;
  }

  retryNow() {
    if (this.#wanted && !this.#socket) this.#connect();
  }

  #connect() {
    clearInterval(this.#ticker);
    this.#openedAt = 0;
    const waiting = { close() {} }; // in the place of a socket
    this.#socket = waiting;
    this.#tell("connecting");
    if (this.#socket !== waiting) return; // closed by a listener
    const options = [this.#path, this.#protocol];
    if (options.some((option) => typeof option === "function")) this.#ask(waiting);
    else this.#openSocket(...options);
  }

  async #ask(waiting) {
    let path, protocol;
    try {
      path = await valueOf(this.#path);
      if (this.#socket === waiting) protocol = await valueOf(this.#protocol);
    } catch (error) {
      console.warn(error);
      if (this.#socket === waiting) this.#onClose(1006, String(error));
      return;
    }
    if (this.#socket === waiting) this.#openSocket(path, protocol); // not closed meanwhile
  }

  #openSocket(path, protocol) {
    let socket;
    try {
      socket = new WebSocket(socketUrl(path), protocol);
    } catch (error) {
      this.#end(); // a mistake of the page, which another attempt would not mend
      throw error;
    }
    this.#socket = socket;
    socket.addEventListener("open", () => {
      if (socket !== this.#socket) return;
      this.#openedAt = performance.now();
      this.#tell("open");
      this.dispatchEvent(new Event("open"));
    });
    socket.addEventListener("message", ({ data }) => {
      if (socket !== this.#socket) return;
      this.#lastId = idOf(data) ?? this.#lastId;
      this.dispatchEvent(new MessageEvent("message", { data }));
    });
    socket.addEventListener("close", ({ code, reason }) => {
      if (socket === this.#socket) this.#onClose(code, reason);
    });
  }

  #onClose(code, reason) {
    this.#socket = null;
    const isFinal = code >= 4000 && code <= 4999;
    if (isFinal) this.#end();
    this.dispatchEvent(new CloseEvent("close", { code, reason }));
    if (this.#wanted && !this.#socket) this.#retryLater();
  }

  #retryLater() {
    if (this.#openedAt && performance.now() - this.#openedAt > STABLE_AFTER) this.#attempt = 0;
    const longest = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.#attempt);
    this.#attempt += 1;
    this.#retryAt = performance.now() + longest * (0.5 + Math.random() / 2);
    clearInterval(this.#ticker);
    this.#ticker = setInterval(() => this.#tick(), 200);
    this.#tick();
  }

  #tick() {
    const remaining = this.#retryAt - performance.now();
    if (remaining <= 0) this.retryNow();
    else this.#tell("waiting", Math.ceil(remaining / 1000));
  }

  #tell(state, seconds = 0) {
    this.dispatchEvent(new CustomEvent("state", { detail: { state, seconds } }));
  }
}
