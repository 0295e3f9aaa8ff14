// The page: takes what the node sends each second, and shows it.

import { Chart, MINUTES } from "./charts.js";
import { Table, bytes, clock, count, duration, entries, h, list, milliseconds, num, setAttribute, setText, text } from "./dom.js";
import { Matrix, NAMES, legend } from "./matrix.js";
import { Trees } from "./trees.js";

const SILENCE_MS = 7000; // longer than the node's heartbeat: the connection is lost, whatever the browser thinks
const PAUSES_MS = [500, 1000, 2000, 4000];
const PEER = ["name", "state", "road", "up_s", "ups", "last_error", "lag_ms", "messages_sent", "messages_received", "bytes_sent", "bytes_received", "outstanding"];
const $ = (id) => document.getElementById(id);

const state = {
  asked: "", wallMs: 0, names: [], parts: new Map(), stalled: "", isFresh: false,
  peers: new Map(), // node → Map(peer → row)
  samples: [], // [wall clock in ms, {node: [messages out, messages in, bytes out, lag]}]
  scope: "", filter: "", changed: new Set(),
};

// What each part is.

const head = (name) => state.parts.get(name)?.head ?? {};
const peerOf = (from, to) => state.peers.get(from)?.get(to);
const isSilent = (name) => Boolean(head(name).error);

function stateOf(name) {
  if (name === state.asked) return state.stalled ? "busy" : head(name).state === "up" ? "up" : "draining";
  return peerOf(state.asked, name)?.state ?? (text(head(name).state) || "none");
}

function session(from, to) {
  if (isSilent(from)) return { state: stateOf(from) === "down" ? "none" : "silent", error: head(from).error };
  const peer = peerOf(from, to);
  return { state: peer ? text(peer.state) : "none", peer };
}

// A node that is down keeps its last parts on the board; they say nothing any more.
const section = (name, key) => (stateOf(name) === "down" ? null : state.parts.get(name)?.[key]);
const inScope = () => (state.scope ? [state.scope] : state.names);
const viewer = () => (state.scope && !isSilent(state.scope) ? state.scope : state.asked);

function matches(texts) {
  return !state.filter || texts.some((each) => text(each).toLowerCase().includes(state.filter));
}

let common = "";
// The part before the @ is the same on all nodes; the part that tells them apart comes first.
function short(name) {
  return common && name.startsWith(common) ? name.slice(common.length) : name;
}

const PID = /^<(.+@\S+?)[ .](?:([0-9a-f]+) )?(\d+)>$/;
// A pid without the incarnation of its node, which the title has.
function shortPid(pid) {
  const found = PID.exec(pid);
  return found ? `<${short(found[1])} ${found[3]}>` : pid;
}

// How many of some processes each node has.
function places(pids) {
  const counts = new Map();
  for (const pid of pids) {
    const node = PID.exec(pid)?.[1] ?? "?";
    counts.set(node, (counts.get(node) ?? 0) + 1);
  }
  return [...counts].map(([node, many]) => `${short(node)}${many > 1 ? ` ×${count(many)}` : ""}`).join("  ");
}

// The parts of the page.

const tiles = $("tiles");
const health = h("div", { class: "tile health" }, h("h3", {}, "Nodes"), h("span", { class: "now" }, h("span"), h("small", {}, " connected")), h("div", { class: "stack", "aria-hidden": "true" }), h("ul", { class: "states" }));
tiles.append(health);
const charts = [
  [new Chart(tiles, { title: "Messages per second", format: count }), (rows) => sum(rows, 0)],
  [new Chart(tiles, { title: "Traffic per second", format: bytes, base: 1024 }), (rows) => sum(rows, 2)],
  [new Chart(tiles, { title: "Lag of the slowest loop", format: milliseconds, state: (ms) => (ms >= 1000 ? "down" : ms >= 100 ? "busy" : null) }), (rows) => most(rows, 3)],
];
const matrix = new Matrix($("matrix"), $("detail"), { short: (name) => short(name) });
legend($("legend"));
const trees = new Trees($("trees").querySelector(".scroll"));

const nodes = new Table($("nodes").querySelector(".scroll"), {
  caption: "Nodes", key: (row) => row.name, empty: "No node is known yet.", sort: "name", limit: 1000,
  onpick: (name) => choose(state.scope === name ? "" : name),
  columns: [
    { id: "name", label: "node", value: (row) => row.name, mono: true, wide: true },
    { id: "state", label: "state", value: (row) => row.state, text: (row) => NAMES[row.state] ?? row.state, state: (row) => row.state, title: (row) => text(row.head.error) },
    { id: "up", label: "uptime", number: true, value: (row) => row.ok && num(row.head.uptime_s), text: (row) => (row.ok ? duration(row.head.uptime_s) : "–") },
    { id: "lag", label: "loop lag", number: true, value: (row) => row.lag, text: (row) => milliseconds(row.lag), state: (row) => (row.lag >= 1000 ? "down" : row.lag >= 100 ? "busy" : null) },
    { id: "sessions", label: "sessions", number: true, value: (row) => row.table("sessions"), text: (row) => (row.ok ? `${count(row.table("sessions"))} / ${count(state.names.length - 1)}` : "–") },
    { id: "processes", label: "processes", number: true, value: (row) => row.table("processes"), text: (row) => count(row.table("processes")) },
    { id: "out", label: "msg/s out", number: true, value: (row) => row.rate(0), text: (row) => count(row.rate(0)) },
    { id: "in", label: "msg/s in", number: true, value: (row) => row.rate(1), text: (row) => count(row.rate(1)), extra: 1 },
    { id: "bytes", label: "bytes/s out", number: true, value: (row) => row.rate(2), text: (row) => bytes(row.rate(2)), extra: 1 },
    { id: "open", label: "open calls", number: true, value: (row) => row.table("open_calls"), text: (row) => count(row.table("open_calls")) },
    { id: "lost", label: "undelivered", number: true, value: (row) => row.counter("undelivered"), text: (row) => count(row.counter("undelivered")), extra: 1 },
    { id: "dns", label: "DNS", value: (row) => text(row.head.dns?.verdict), wide: true, extra: 2, title: (row) => `${text(row.head.dns?.query)}: ${text(row.head.dns?.verdict)}` },
    { id: "version", label: "version", value: (row) => text(row.head.version), extra: 2 },
    { id: "pid", label: "OS pid", number: true, value: (row) => row.ok && num(row.head.pid), text: (row) => (row.ok ? text(row.head.pid) : "–"), extra: 2 },
    { id: "note", label: "remarks", value: (row) => row.note, wide: true },
  ],
});

const processes = new Table($("processes").querySelector(".scroll"), {
  caption: "Processes", key: (row) => row.pid, empty: "No process is shown.", sort: "-mailbox", limit: 60,
  columns: [
    { id: "name", label: "process", value: (row) => row.name || shortPid(row.pid), mono: true, wide: true, title: (row) => row.pid },
    { id: "runs", label: "runs", value: (row) => row.runs, wide: true, mono: true },
    { id: "mailbox", label: "mailbox", number: true, value: (row) => (row.mailbox ?? 0) + row.busy / 1e6, text: (row) => count(row.mailbox), state: (row) => (row.mailbox >= 1000 ? "down" : row.mailbox >= 100 ? "busy" : null) },
    { id: "serving", label: "serving", value: (row) => row.serving, wide: true },
    { id: "busy", label: "busy for", number: true, value: (row) => row.busy, text: (row) => (row.busy ? duration(row.busy) : "") },
    { id: "waits", label: "waits for", value: (row) => row.waits, wide: true },
    { id: "taken", label: "taken", number: true, value: (row) => row.taken, text: (row) => count(row.taken), extra: 1 },
    { id: "node", label: "node", value: (row) => row.node, text: (row) => short(row.node), wide: true, title: (row) => row.node },
  ],
});

const groups = new Table($("groups").querySelector(".scroll"), {
  caption: "Groups", key: (row) => row.name, empty: "No group has a member.", sort: "name", limit: 200,
  columns: [
    { id: "name", label: "group", value: (row) => row.name, mono: true, wide: true },
    { id: "count", label: "members", number: true, value: (row) => row.count, text: (row) => count(row.count) },
    { id: "members", label: "on", value: (row) => row.places, wide: true, mono: true, title: (row) => row.members },
  ],
});

const names = new Table($("names").querySelector(".scroll"), {
  caption: "Names", key: (row) => row.name, empty: "No name is registered in the cluster.", sort: "name", limit: 300,
  columns: [
    { id: "name", label: "name", value: (row) => row.name, mono: true, wide: true },
    { id: "pid", label: "process", value: (row) => shortPid(row.pid), mono: true, wide: true, title: (row) => row.pid },
  ],
});

const kinds = new Table($("entities").querySelector(".scroll"), {
  caption: "Keyed entities by kind and node", key: (row) => row.key, empty: "No node hosts keyed entities.", sort: "kind", limit: 300,
  columns: [
    { id: "kind", label: "kind", value: (row) => `${row.kind} ${row.node}`, text: (row) => row.kind, mono: true, wide: true, title: (row) => row.runs },
    { id: "node", label: "node", value: (row) => row.node, text: (row) => short(row.node), wide: true, title: (row) => row.node },
    { id: "owned", label: "shards", number: true, value: (row) => row.owned, text: (row) => `${count(row.owned)} / ${count(row.shards)}` },
    { id: "moving", label: "moving", number: true, value: (row) => row.moving, text: (row) => count(row.moving) },
    { id: "alive", label: "entities", number: true, value: (row) => row.alive, text: (row) => count(row.alive) },
    { id: "kept", label: "kept", number: true, value: (row) => row.kept, text: (row) => bytes(row.kept), extra: 1 },
    { id: "made", label: "made", number: true, value: (row) => row.made, text: (row) => count(row.made), extra: 1 },
    { id: "given", label: "given", number: true, value: (row) => row.given, text: (row) => count(row.given), extra: 1 },
    { id: "taken", label: "taken", number: true, value: (row) => row.taken, text: (row) => count(row.taken), extra: 1 },
    { id: "fenced", label: "fenced", number: true, value: (row) => row.fenced, text: (row) => count(row.fenced), extra: 1 },
    { id: "note", label: "remarks", value: (row) => row.note, wide: true, state: (row) => row.state },
  ],
});

const EVENTS = { NodeUp: "up", NodeDown: "down", NodeDraining: "draining", NodeBusy: "busy" };
const events = new Table($("events").querySelector(".scroll"), {
  caption: "Events, the latest first", key: (row) => row.key, empty: "Nothing has happened yet.", sort: "-at", limit: 200,
  columns: [
    { id: "at", label: "time", value: (row) => row.at, text: (row) => clock(row.at) },
    { id: "node", label: "on", value: (row) => row.node, text: (row) => short(row.node), title: (row) => row.node },
    { id: "kind", label: "event", value: (row) => row.kind, state: (row) => EVENTS[row.kind] ?? null },
    { id: "text", label: "what", value: (row) => row.text, wide: true },
  ],
});

// Showing.

const sum = (rows, at) => rows.reduce((total, row) => (num(row?.[at]) === null ? total : (total ?? 0) + row[at]), null);
const most = (rows, at) => rows.reduce((top, row) => (num(row?.[at]) === null ? top : Math.max(top ?? 0, row[at])), null);

function showTiles() {
  const tally = {};
  for (const name of state.names) tally[stateOf(name)] = (tally[stateOf(name)] ?? 0) + 1;
  const known = state.names.length;
  setText(health.querySelector(".now").firstChild, `${count((tally.up ?? 0) + (tally.busy ?? 0) + (tally.draining ?? 0))} of ${count(known)}`);
  const order = ["up", "busy", "draining", "connecting", "down", "none"].filter((each) => tally[each]);
  health.querySelector(".stack").replaceChildren(...order.map((each) => {
    const part = h("span", { "data-state": each });
    part.style.flexGrow = tally[each];
    return part;
  }));
  const wanted = order.map((each) => `${count(tally[each])} ${NAMES[each]}`);
  const shown = health.querySelector(".states");
  if (shown.textContent !== wanted.join("")) shown.replaceChildren(...order.map((each, at) => h("li", { "data-state": each }, wanted[at])));
  for (const [chart, reduce] of charts) {
    chart.update(state.samples.map(([at, rows]) => [at, reduce(state.scope ? [rows[state.scope]] : Object.values(rows))]), state.wallMs);
  }
}

function nodeRow(name) {
  const facts = head(name);
  const ok = !facts.error;
  const rates = state.samples.length ? state.samples[state.samples.length - 1][1][name] : null;
  const seen = name === state.asked ? null : peerOf(state.asked, name);
  const error = text(facts.error);
  const last = ["down", "connecting"].includes(stateOf(name)) ? text(seen?.last_error) : ""; // else it is history
  const notes = [error, error.includes(last) ? "" : last, text(facts.exposure_warning), ...list(facts.stalled).map(text)];
  return {
    name, head: facts, ok, state: stateOf(name), dim: !ok,
    lag: ok ? num(facts.lag_ms) : null,
    table: (key) => (ok ? num(facts.tables?.[key]) : null),
    counter: (key) => (ok ? num(facts.counters?.[key]) : null),
    rate: (at) => (ok ? num(rates?.[at]) : null),
    note: notes.filter(Boolean).join(" · "),
  };
}

function showNodes() {
  nodes.update(state.names.map(nodeRow).filter((row) => matches([row.name, row.state, row.note])));
}

function showProcesses() {
  const rows = inScope().flatMap((node) => list(section(node, "processes")?.shown).map((each) => ({
    node, dim: isSilent(node), pid: text(each.pid), name: text(each.name), runs: text(each.runs), mailbox: num(each.mailbox),
    serving: text(each.serving), busy: num(each.serving_s) ?? 0, waits: text(each.waits_for), taken: num(each.taken),
  })));
  processes.update(rows.filter((row) => matches([row.pid, row.name, row.runs, row.serving, row.waits, row.node])));
}

function showTrees() {
  trees.update(inScope().map((node) => [node, section(node, "trees")]), matches);
}

function showDirectory() {
  const from = viewer();
  groups.update(entries(section(from, "groups")).map(([name, each]) => ({
    name, count: num(each?.count), members: list(each?.members).map(text).join(" "), places: places(list(each?.members).map(text)),
  })).filter((row) => matches([row.name, row.members])));
  names.update(entries(section(from, "names")).map(([name, pid]) => ({ name, pid: text(pid) })).filter((row) => matches([row.name, row.pid])));
}

function showKinds() {
  const rows = inScope().flatMap((node) => entries(section(node, "kinds")).map(([kind, each]) => kindRow(node, kind, each)));
  const hosted = new Set(rows.filter((row) => row.isHosted).map((row) => row.kind));
  const shown = rows.filter((row) => row.isHosted || (row.node === viewer() && !hosted.has(row.kind)));
  kinds.update(shown.filter((row) => matches([row.kind, row.node, row.runs, row.note])));
}

function kindRow(node, kind, each) {
  const has = (key) => (each?.is_hosted ? num(each[key]) : null);
  const quorum = each?.quorum;
  const differing = entries(each?.differing).map(([other, shards]) => `${short(other)}: ${count(shards)}`);
  const notes = [
    differing.length ? `others cut it into another number of shards (${differing.join(", ")})` : "",
    quorum && !quorum.holds ? `no quorum: ${count(quorum.seen)} of ${count(quorum.expected)} hosts are seen` : "",
    quorum?.holds && num(each.hosts) > num(quorum.expected) ? `${count(each.hosts)} hosts, and its quorum expects ${count(quorum.expected)}` : "",
    each?.store?.fails ? `its store fails, ${count(each.store.failures)} operations up to now` : "",
    num(each?.unowned) > 0 ? `${count(each.unowned)} shards have no owner` : "",
    each?.is_hosted && num(each.live) > 1 && num(each.alive) >= num(each.live) ? "as many live as may" : "", // a singleton is a kind with one entity
    each?.is_hosted && num(each.kept_bytes) >= num(each.max_kept_bytes) ? "its states take all bytes that they may" : "",
  ].filter(Boolean);
  return {
    key: `${kind}\n${node}`, kind, node, isHosted: Boolean(each?.is_hosted), dim: isSilent(node), runs: text(each?.runs), shards: num(each?.shards),
    owned: has("owned"), moving: has("moving"), alive: has("alive"), kept: has("kept_bytes"), made: has("activated"),
    given: has("handed_over"), taken: has("taken"), fenced: has("fenced"), note: notes.join(" · "),
    state: (quorum && !quorum.holds) || differing.length || each?.store?.fails ? "down" : notes.length ? "busy" : null,
  };
}

function showEvents() {
  const seen = new Map();
  const rows = inScope().flatMap((node) => list(section(node, "events")).map((each) => {
    const base = `${node} ${each.wall_ms} ${each.kind} ${each.text}`;
    seen.set(base, (seen.get(base) ?? 0) + 1);
    return { node, at: num(each.wall_ms), kind: text(each.kind), text: text(each.text), key: `${base} ${seen.get(base)}` };
  }));
  events.update(rows.filter((row) => matches([row.node, row.kind, row.text])));
}

function showScope() {
  const select = $("scope");
  const wanted = state.names.join("\n");
  if (select.dataset.names !== wanted) {
    select.dataset.names = wanted;
    select.replaceChildren(h("option", { value: "" }, `all ${count(state.names.length)} nodes`), ...state.names.map((name) => h("option", { value: name }, name)));
  }
  if (state.scope && !state.names.includes(state.scope)) state.scope = "";
  select.value = state.scope;
  setText($("asked"), state.asked);
  document.title = `${state.asked ? `${state.asked} · ` : ""}fleetlm`;
}

function show(everything) {
  const has = (key) => everything || state.changed.has(key);
  if (has("nodes")) {
    const parts = new Set(state.names.map((name) => name.slice(0, name.indexOf("@") + 1)));
    common = parts.size === 1 ? [...parts][0] : "";
  }
  showScope();
  showTiles();
  matrix.update(state.names, stateOf, session);
  showNodes();
  if (has("processes") || has("states")) showProcesses();
  if (has("trees") || has("states")) showTrees();
  if (has("groups") || has("names") || has("states")) showDirectory();
  if (has("kinds") || has("states")) showKinds();
  if (has("events") || has("states")) showEvents();
  const warning = state.stalled || [...new Set(state.names.map((name) => text(head(name).exposure_warning)).filter(Boolean))].join(" ");
  setText($("warning"), state.stalled ? `What is shown is not fresh: ${state.stalled}.` : warning);
  $("warning").hidden = !warning;
  state.changed.clear();
}

function choose(name) {
  state.scope = name;
  show(true);
}

// Taking what comes.

let lastStates = "";

function take(frame) {
  state.asked = text(frame.asked) || state.asked;
  state.wallMs = num(frame.wall_ms) ?? state.wallMs;
  if (frame.nodes) {
    state.names = list(frame.nodes).map(text).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    for (const name of state.parts.keys()) if (!state.names.includes(name)) { state.parts.delete(name); state.peers.delete(name); }
    state.changed.add("nodes");
  }
  if (frame.stalled !== undefined) state.stalled = text(frame.stalled);
  for (const [name, sections] of entries(frame.set)) {
    state.parts.set(name, { ...state.parts.get(name), ...sections });
    for (const key of Object.keys(sections)) state.changed.add(key);
    if (sections.peers) state.peers.set(name, new Map(list(sections.peers).map((row) => [row[0], Object.fromEntries(PEER.map((key, at) => [key, row[at]]))])));
  }
  if (frame.rates) state.samples.push([state.wallMs, frame.rates]);
  const oldest = state.wallMs - MINUTES * 60000;
  while (state.samples.length && state.samples[0][0] < oldest) state.samples.shift();
  const states = state.names.map((name) => `${stateOf(name)} ${isSilent(name)}`).join();
  if (states !== lastStates) state.changed.add("states");
  lastStates = states;
  state.isFresh ||= true;
}

function takeHistory(frame) {
  const columns = entries(frame.nodes);
  state.samples = list(frame.wall_ms).map((at, nth) => [at, Object.fromEntries(columns.map(([name, rows]) => [name, rows[nth]]).filter(([, row]) => row))]);
}

let source = null;
let failures = 0;
let silence = 0;
let retry = 0;

function connect() {
  source?.close();
  clearTimeout(retry);
  source = new EventSource("events");
  listen();
  source.addEventListener("history", (event) => { heard(); takeHistory(JSON.parse(event.data)); });
  source.addEventListener("cluster", (event) => {
    heard();
    const isFirst = !state.names.length || document.body.dataset.lost;
    delete document.body.dataset.lost;
    take(JSON.parse(event.data));
    show(Boolean(isFirst));
  });
  source.addEventListener("alive", heard);
  source.onerror = () => lost();
}

function listen() {
  clearTimeout(silence);
  silence = setTimeout(lost, SILENCE_MS);
}

function heard() {
  failures = 0;
  listen();
  $("banner").hidden = true;
  say(state.stalled ? "stalled" : "live");
}

function lost() {
  source?.close();
  clearTimeout(silence);
  clearTimeout(retry);
  const pause = PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)];
  failures += 1;
  document.body.dataset.lost = "1";
  say("disconnected");
  setText($("banner"), `Disconnected from ${state.asked || "the node"}. ${state.wallMs ? `This is how it was at ${clock(state.wallMs)}. ` : ""}The page connects again by itself.`);
  $("banner").hidden = false;
  retry = setTimeout(connect, pause);
  // A node that came back with another token answers, and asks for it: show the form.
  fetch("app.js", { method: "HEAD" }).then((answer) => answer.status === 401 && location.reload()).catch(() => {});
}

function say(what) {
  setText($("live"), what);
  setAttribute($("live"), "data-state", what);
}

// The tools.

$("scope").addEventListener("change", (event) => choose(event.target.value));
$("filter").addEventListener("input", (event) => {
  state.filter = event.target.value.trim().toLowerCase();
  show(true);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement?.tagName)) {
    event.preventDefault();
    $("filter").focus();
  } else if (event.key === "Escape" && document.activeElement === $("filter")) {
    $("filter").value = "";
    state.filter = "";
    show(true);
  }
});

const THEMES = ["system", "light", "dark"];

function setTheme(name) {
  const theme = THEMES.includes(name) ? name : "system";
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  setText($("theme"), `theme: ${theme}`);
  try { localStorage.setItem("fleetlm-theme", theme); } catch { /* A browser may refuse to keep anything. */ }
  return theme;
}

let theme = "system";
try { theme = localStorage.getItem("fleetlm-theme") ?? "system"; } catch { /* likewise */ }
theme = setTheme(theme);
$("theme").addEventListener("click", () => { theme = setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]); });

connect();
