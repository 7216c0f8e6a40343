// A live picture of the server: a snapshot a second, JSON; run_server.py's Monitor says what is in it.

import { StateLabel, element } from "./log.js";
import { ReconnectingSocket } from "./reconnecting.js";

const MINUTE = 60; // seconds that the charts show
const LONGEST_STEP = 3; // seconds between two snapshots that a line may join
const MEANINGS = {
  1000: "normal",
  1001: "going away",
  1002: "protocol error",
  1003: "unsupported data",
  1005: "no code",
  1006: "connection lost",
  1007: "invalid data",
  1008: "policy violation",
  1009: "message too big",
  1011: "error in the server",
  1013: "read too slowly, or too busy",
};

const byId = (id) => document.getElementById(id);
const state = new StateLabel(byId("server-state"), byId("server-announce"));
const socket = new ReconnectingSocket("server/live", "live");
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

let snapshots = []; // those of the last minute, of one process

function number(value) {
  return (Math.abs(value) < 10 ? fine : whole).format(value);
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; value >= 999.5 && unit < units.length - 1; unit += 1) value /= 1000;
  return `${number(value)} ${units[unit]}`;
}

function duration(seconds) {
  const parts = [
    [Math.floor(seconds / 86400), "d"],
    [Math.floor(seconds / 3600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [Math.floor(seconds) % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  const shown = first < 0 ? parts.slice(-1) : parts.slice(first, first + 2);
  return shown.map(([count, unit]) => `${count} ${unit}`).join(" ");
}

function moment(milliseconds) {
  return new Date(milliseconds).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
}

function counted(count, noun) {
  return `${whole.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

function write(texts) {
  for (const [id, text] of Object.entries(texts)) byId(id).textContent = text;
}

// Whatever comes from outside is put in as text, never as markup.
function fill(id, rows) {
  const table = byId(id);
  table.tBodies[0].replaceChildren(
    ...rows.map((cells) =>
      element("tr", {}, ...cells.map((cell) => element("td", {}, element("bdi", {}, cell)))),
    ),
  );
  if (!rows.length) {
    const columns = table.tHead.rows[0].cells.length;
    const cell = element("td", { colspan: columns, className: "hint" }, table.dataset.empty);
    table.tBodies[0].append(element("tr", {}, cell));
  }
}

function sum(counts) {
  return Object.values(counts).reduce((total, count) => total + count, 0);
}

function byCount(counts) {
  return Object.entries(counts).sort(([, one], [, other]) => other - one);
}

function showFigures(snapshot) {
  const { time, process, server, rates, rooms } = snapshot;
  const rate = (name, format) => (rates ? format(rates[name]) : "\u2013");
  write({
    "process": `Process ${process.pid}.`,
    "since": `since ${moment(process.started)}`,
    "connections-open": whole.format(server.connections_open),
    "connections-total": `${whole.format(server.connections_total)} in total`,
    "messages-in-rate": rate("messages_in", number),
    "messages-in": `${whole.format(server.messages_in)} in total`,
    "messages-out-rate": rate("messages_out", number),
    "messages-out": `${whole.format(server.messages_out)} in total`,
    "bytes-in-rate": rate("bytes_in", bytes),
    "bytes-in": `${bytes(server.bytes_in)} in total`,
    "bytes-out-rate": rate("bytes_out", bytes),
    "bytes-out": `${bytes(server.bytes_out)} in total`,
    "slow": whole.format(rooms.lagging),
    "slow-members-all": `of ${counted(rooms.members, "member")} of rooms`,
    "lag-closed": whole.format(rooms.closed),
    "lag-dropped": `${counted(rooms.dropped, "message")} dropped`,
    "refused": whole.format(sum(server.refused)),
    "pings-timed-out": `${counted(server.pings_timed_out, "ping")} unanswered`,
    "memory": process.memory === null ? "\u2013" : bytes(process.memory),
    "uptime": duration((time - process.started) / 1000),
  });
  byId("several").hidden = !process.one_of_several;
  byId("slow-tile").classList.toggle("alarm", rooms.lagging > 0);
  fill(
    "slow-table",
    snapshot.slow_members.map(({ name, room, waiting }) => [name, room, whole.format(waiting)]),
  );
  fill(
    "rooms-table",
    snapshot.largest_rooms.map(({ name, members }) => [name, whole.format(members)]),
  );
  fill(
    "closes-table",
    byCount(server.closes).map(([code, count]) => [
      code,
      MEANINGS[code] ?? "the application's own",
      whole.format(count),
    ]),
  );
  fill("refused-table", byCount(server.refused).map(([why, count]) => [why, whole.format(count)]));
}

// The next of 1, 2, 5, 10, 20, ... so that the scale does not jump with every snapshot.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

// series: for each line, what gives its value in a snapshot, or undefined where it has none.
function drawChart(id, ...series) {
  const chart = byId(id);
  const now = snapshots.at(-1).time;
  const lines = series.map((read) =>
    snapshots.map((snapshot) => [MINUTE - (now - snapshot.time) / 1000, read(snapshot)]),
  );
  const top = ceiling(Math.max(0, ...lines.flat().map(([, value]) => value ?? 0)));
  const paths = [...chart.querySelectorAll(".line")].reverse(); // the first one lies on top
  lines.forEach((points, index) => {
    let path = "";
    let last = -Infinity;
    for (const [x, value] of points) {
      if (value === undefined) continue;
      const y = 100 - (100 * value) / top;
      path += `${x - last > LONGEST_STEP ? "M" : "L"}${x.toFixed(2)} ${y.toFixed(2)}`;
      last = x;
    }
    paths[index].setAttribute("d", path);
  });
  chart.querySelector(".top").textContent = whole.format(top);
}

function show(snapshot) {
  const last = snapshots.at(-1);
  const isOther = ({ pid, started }) =>
    pid !== snapshot.process.pid || started !== snapshot.process.started;
  if (!last || isOther(last.process)) snapshots = [];
  else if (snapshot.time <= last.time) return; // told again to one who came back
  const oldest = snapshot.time - MINUTE * 1000;
  snapshots = [...snapshots.filter(({ time }) => time >= oldest), snapshot];
  showFigures(snapshot);
  drawChart(
    "messages-chart",
    ({ rates }) => rates?.messages_in,
    ({ rates }) => rates?.messages_out,
  );
  drawChart("connections-chart", ({ server }) => server.connections_open);
}

socket.addEventListener("open", () => state.show("connected", "connected"));

socket.addEventListener("message", ({ data }) => show(JSON.parse(data)));

socket.addEventListener("state", ({ detail }) => {
  document.body.classList.toggle("stale", detail.state !== "open");
  if (detail.state === "waiting") {
    state.show("reconnecting", `reconnecting in ${detail.seconds} s`, "Reconnecting.");
  } else if (detail.state === "connecting") {
    state.show("connecting", "connecting");
  }
});

socket.open();
