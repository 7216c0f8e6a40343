// Live figures of the server: each of its processes sends a snapshot a second, as JSON.
// demo/monitor.py documents the fields.

import { StateLabel, element } from "./log.js";
import { ReconnectingSocket } from "./reconnecting.js";

const MINUTE = 60; // seconds that the charts show
const PRESENT = 3000; // milliseconds after its last snapshot until a process counts as gone
const LISTED = 10; // rows of a table
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
  1011: "server error",
  1013: "lagging, or server busy",
};

const byId = (id) => document.getElementById(id);
const state = new StateLabel(byId("server-state"), byId("server-announce"));
const socket = new ReconnectingSocket("server/live", "live");
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

const processes = new Map(); // process id: its snapshots of the last minute
let isDrawing = false;

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

// Values come from outside, so they are inserted as text, never as markup.
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

function add(values) {
  return values.reduce((total, value) => total + value, 0);
}

// Adds up objects of {key: count}; returns [key, count] pairs, the largest count first.
function addUp(counts) {
  const total = new Map();
  for (const [key, count] of counts.flatMap(Object.entries)) {
    total.set(key, (total.get(key) ?? 0) + count);
  }
  return [...total].sort(([, one], [, other]) => other - one);
}

// The last snapshot of a process before a time; undefined if the process was not there then.
function snapshotAt(snapshots, time) {
  const last = snapshots.findLast((snapshot) => snapshot.time <= time);
  return last && last.time > time - PRESENT ? last : undefined;
}

function snapshotsAt(time) {
  return [...processes.values()].map((each) => snapshotAt(each, time)).filter(Boolean);
}

function showFigures(now) {
  const present = snapshotsAt(now);
  const total = (read) => add(present.map(read));
  const inTotal = (name) => `${whole.format(total(({ server }) => server[name]))} in total`;
  const bytesInTotal = (name) => `${bytes(total(({ server }) => server[name]))} in total`;
  const rated = present.filter(({ rates }) => rates);
  const rate = (name, format) =>
    rated.length ? format(add(rated.map(({ rates }) => rates[name]))) : "\u2013";
  const memories = present.map(({ process }) => process.memory).filter((memory) => memory !== null);
  const started = Math.min(...present.map(({ process }) => process.started));
  const lagging = total(({ rooms }) => rooms.lagging);
  const several = present.length > 1;
  write({
    "process": several ? `${present.length} processes.` : `Process ${present[0].process.pid}.`,
    "since": `since ${moment(started)}`,
    "connections-open": whole.format(total(({ server }) => server.connections_open)),
    "connections-total": inTotal("connections_total"),
    "messages-in-rate": rate("messages_in", number),
    "messages-in": inTotal("messages_in"),
    "messages-out-rate": rate("messages_out", number),
    "messages-out": inTotal("messages_out"),
    "bytes-in-rate": rate("bytes_in", bytes),
    "bytes-in": bytesInTotal("bytes_in"),
    "bytes-out-rate": rate("bytes_out", bytes),
    "bytes-out": bytesInTotal("bytes_out"),
    "slow": whole.format(lagging),
    "slow-members-all": `of ${counted(total(({ rooms }) => rooms.members), "room member")}`,
    "lag-closed": whole.format(total(({ rooms }) => rooms.closed)),
    "lag-dropped": `${counted(total(({ rooms }) => rooms.dropped), "message")} dropped`,
    "refused": whole.format(total(({ server }) => add(Object.values(server.refused)))),
    "pings-timed-out": `${counted(total(({ server }) => server.pings_timed_out), "ping")} unanswered`,
    "memory": memories.length ? bytes(add(memories)) : "\u2013",
    "memory-of": several ? "of all processes" : "of this process",
    "uptime": duration((now - started) / 1000),
  });
  byId("several").hidden = several || !present[0].process.one_of_several;
  byId("slow-tile").classList.toggle("alarm", lagging > 0);
  byId("processes").hidden = !several;
  fill(
    "processes-table",
    present.map(({ process, server, rates }) => [
      String(process.pid),
      whole.format(server.connections_open),
      rates ? number(rates.messages_in + rates.messages_out) : "\u2013",
      process.memory === null ? "\u2013" : bytes(process.memory),
    ]),
  );
  const slow = present.flatMap((snapshot) => snapshot.slow_members);
  fill(
    "slow-table",
    slow
      .sort((one, other) => other.waiting - one.waiting)
      .slice(0, LISTED)
      .map(({ name, room, waiting }) => [name, room, whole.format(waiting)]),
  );
  // Each process counts the members of a room in all processes.
  const rooms = new Map();
  for (const { name, members } of present.flatMap((snapshot) => snapshot.largest_rooms)) {
    rooms.set(name, Math.max(members, rooms.get(name) ?? 0));
  }
  fill(
    "rooms-table",
    [...rooms]
      .sort(([, one], [, other]) => other - one)
      .slice(0, LISTED)
      .map(([name, members]) => [name, whole.format(members)]),
  );
  fill(
    "closes-table",
    addUp(present.map(({ server }) => server.closes)).map(([code, count]) => [
      code,
      MEANINGS[code] ?? "defined by the application",
      whole.format(count),
    ]),
  );
  fill(
    "refused-table",
    addUp(present.map(({ server }) => server.refused)).map(([why, count]) => [
      why,
      whole.format(count),
    ]),
  );
}

// Rounds up to 1, 2, 5, 10, 20, ... so that the scale does not change with every snapshot.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

// series: one function for each line, from a snapshot to a value or undefined.
function drawChart(id, seconds, ...series) {
  const chart = byId(id);
  const lines = series.map((read) =>
    seconds.map((snapshots) => {
      const values = snapshots.map(read).filter((value) => value !== undefined);
      return values.length ? add(values) : undefined;
    }),
  );
  const top = ceiling(Math.max(0, ...lines.flat().map((value) => value ?? 0)));
  const paths = [...chart.querySelectorAll(".line")].reverse(); // the first series is drawn on top
  lines.forEach((values, index) => {
    const points = values.map((value, second) =>
      value === undefined
        ? ""
        : `${values[second - 1] === undefined ? "M" : "L"}${second} ${(100 - (100 * value) / top).toFixed(2)}`,
    );
    paths[index].setAttribute("d", points.join(""));
  });
  chart.querySelector(".top").textContent = whole.format(top);
}

function draw() {
  isDrawing = false;
  const now = Math.max(...[...processes.values()].map((snapshots) => snapshots.at(-1).time));
  for (const [id, snapshots] of processes) {
    const recent = snapshots.filter(({ time }) => time >= now - MINUTE * 1000);
    if (recent.length) processes.set(id, recent);
    else processes.delete(id);
  }
  showFigures(now);
  const seconds = Array.from({ length: MINUTE + 1 }, (_, second) =>
    snapshotsAt(now - (MINUTE - second) * 1000),
  );
  drawChart(
    "messages-chart",
    seconds,
    ({ rates }) => rates?.messages_in,
    ({ rates }) => rates?.messages_out,
  );
  drawChart("connections-chart", seconds, ({ server }) => server.connections_open);
}

function show(snapshot) {
  const { id } = snapshot.process;
  const before = processes.get(id) ?? [];
  if (before.length && snapshot.time <= before.at(-1).time) return; // replayed after a reconnect
  // draw() drops old snapshots, but does not run while the page is hidden.
  processes.set(id, [...before, snapshot].slice(-2 * MINUTE));
  if (!isDrawing) requestAnimationFrame(draw);
  isDrawing = true;
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
