// A WebSocket that comes back by itself and misses nothing. Copy this file; it needs no other.
//
// Coming back: exponential back-off with jitter, so that the clients of a server that was restarted
// do not all return in the same moment.
//
// Missing nothing: messages are JSON objects, and those of a room carry their "id" (at the server,
// Rooms(stamp=json_id)). Whoever comes back tells the server the last one it saw, in a message of
// its own as here or in the path, and the server passes it on: room.join(socket, since=...).
// Until a first message came there is no id, and what is said while the client is away is missed;
// so let the server send one right after the join:
//
//   with room.join(socket, since=since) as member:
//       socket.send(json.dumps({"id": member.position}))
//
// Messages are replayed; joins and leaves are not.
//
//   const socket = new ReconnectingSocket("chat/lobby", "chat");
//   socket.addEventListener("open", () => {
//     socket.send(JSON.stringify({ type: "join", name, since: socket.lastId }));
//   });
//   socket.addEventListener("message", ({ data }) => show(JSON.parse(data)));
//   socket.open();

const FIRST_DELAY = 1000; // milliseconds
const LONGEST_DELAY = 30000;
const STABLE_AFTER = 5000; // a connection that lived this long starts the back-off afresh

export function socketUrl(path) {
  const url = new URL(path, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

function idOf(data) {
  try {
    return JSON.parse(data).id;
  } catch {
    return undefined; // not one of a room
  }
}

// path: of the WebSocket, from the page's address; protocol: the subprotocol.
// Events: "open", "message" (data), "close", and "state", whose detail is
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

  // The id of the last message, across reconnections; undefined before the first, and after close().
  get lastId() {
    return this.#lastId;
  }

  open() {
    this.#wanted = true;
    this.#attempt = 0;
    if (!this.#socket) this.#connect();
  }

  close() {
    this.#wanted = false;
    this.#lastId = undefined;
    clearInterval(this.#ticker);
    const socket = this.#socket;
    this.#socket = null; // its late events are nobody's business
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
    this.#tell("connecting");
    const socket = new WebSocket(socketUrl(this.#path), this.#protocol);
    this.#socket = socket;
    this.#openedAt = 0;
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
    socket.addEventListener("close", () => {
      if (socket !== this.#socket) return;
      this.#socket = null;
      this.dispatchEvent(new Event("close"));
      if (this.#wanted) this.#retryLater();
    });
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
