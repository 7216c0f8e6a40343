// The page of a room. After a loss of the connection it connects again, and asks for what it missed.

const log = document.getElementById("log");
const input = document.getElementById("input");
const state = document.getElementById("state");
const shown = new Set(); // ids of messages: what is asked for may have come already
let last = 0; // the newest of them
let socket;

function show({ id, author, text }) {
  if (shown.has(id)) return;
  shown.add(id);
  last = Math.max(last, id);
  const item = document.createElement("li");
  item.textContent = `${author}: ${text}`;
  log.append(item);
  item.scrollIntoView();
}

function connect() {
  const url = new URL(`socket/?after=${last}`, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  socket = new WebSocket(url);
  socket.addEventListener("open", () => (state.textContent = "connected"));
  socket.addEventListener("message", ({ data }) => show(JSON.parse(data)));
  socket.addEventListener("close", () => {
    state.textContent = "connecting";
    setTimeout(connect, 1000 + 2000 * Math.random());
  });
}

JSON.parse(document.getElementById("history").textContent).forEach(show);
connect();

document.getElementById("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (input.value.trim() && socket.readyState === WebSocket.OPEN) socket.send(input.value);
  input.value = "";
});
