// Who sees whom: one cell for each session of each node. The arrow keys walk through the cells.

import { count, duration, h, milliseconds, setAttribute, setText, text } from "./dom.js";

const SIGNS = { up: "", busy: "!", draining: "↓", connecting: "…", down: "×", silent: "?", none: "", self: "" };

export class Matrix {
  constructor(place, detail, { short }) {
    this.place = place;
    this.detail = detail;
    this.short = short;
    this.names = [];
    this.cells = new Map();
    this.focus = [0, 0];
    this.shown = null;
    place.addEventListener("keydown", (event) => this.walk(event));
  }

  // sessions(a, b): {state, peer, error}
  update(names, states, sessions) {
    if (names.join("\n") !== this.names.join("\n")) this.build(names);
    names.forEach((from, row) => {
      setAttribute(this.rows[row], "data-state", states(from));
      setAttribute(this.columns[row], "data-state", states(from));
      names.forEach((to, column) => {
        const session = from === to ? { state: "self" } : sessions(from, to);
        const cell = this.cells.get(`${from}\n${to}`);
        setAttribute(cell, "data-state", session.state);
        setText(cell, SIGNS[session.state] ?? "");
        setAttribute(cell, "aria-label", label(from, to, session));
      });
    });
    this.sessions = sessions;
    if (this.shown) this.show(...this.shown);
  }

  build(names) {
    this.names = names;
    this.cells = new Map();
    const size = names.length <= 12 ? "large" : names.length <= 32 ? "medium" : "small";
    this.columns = names.map((name, at) => h("th", { scope: "col", title: name }, String(at + 1)));
    this.rows = [];
    const body = names.map((from, row) => {
      const head = h("th", { scope: "row", title: from }, h("span", { class: "nr" }, String(row + 1)), h("span", { class: "who" }, this.short(from)));
      this.rows.push(head);
      return h("tr", { role: "row" }, head, names.map((to, column) => {
        const cell = h("td", {
          role: "gridcell", tabindex: "-1",
          onfocus: () => { this.focus = [row, column]; this.show(from, to); },
          onmouseenter: () => this.show(from, to),
        });
        this.cells.set(`${from}\n${to}`, cell);
        return cell;
      }));
    });
    const grid = h("table", { role: "grid", class: `matrix ${size}`, "aria-labelledby": "h-sessions" },
      h("thead", {}, h("tr", { role: "row" }, h("td", {}), this.columns)), h("tbody", {}, body));
    this.place.replaceChildren(grid);
    this.focus = [Math.min(this.focus[0], names.length - 1), Math.min(this.focus[1], names.length - 1)];
    this.at(...this.focus)?.setAttribute("tabindex", "0");
    if (this.shown && !this.shown.every((name) => names.includes(name))) this.shown = null;
  }

  at(row, column) {
    return this.cells.get(`${this.names[row]}\n${this.names[column]}`);
  }

  walk(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity] };
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const keep = (value) => Math.max(0, Math.min(this.names.length - 1, value));
    this.at(...this.focus)?.setAttribute("tabindex", "-1");
    this.focus = [keep(this.focus[0] + move[0]), keep(this.focus[1] + move[1])];
    const cell = this.at(...this.focus);
    cell?.setAttribute("tabindex", "0");
    cell?.focus();
  }

  show(from, to) {
    this.shown = [from, to];
    const session = from === to ? { state: "self" } : this.sessions(from, to);
    const peer = session.peer;
    const facts = [];
    const add = (name, value, state) => { if (value) facts.push(h("dt", {}, name), h("dd", { "data-state": state }, value)); };
    add("sees it as", from === to ? "itself" : NAMES[session.state], session.state);
    if (peer) {
      add("up for", peer.up_s === null ? "" : duration(peer.up_s));
      add("connected", `${count(peer.ups)} ${peer.ups === 1 ? "time" : "times"}`);
      add("road", { zmq: "network", local: "this host" }[peer.road] ?? text(peer.road));
      add("lag of its loop", peer.up_s === null ? "" : milliseconds(peer.lag_ms));
      add("open calls to it", peer.up_s === null ? "" : count(peer.outstanding));
      add("messages", peer.up_s === null ? "" : `${count(peer.messages_sent)} sent, ${count(peer.messages_received)} received`);
      add("last error", text(peer.last_error));
    }
    add("why", text(session.error));
    this.detail.replaceChildren(h("p", { class: "who" }, h("b", {}, from), " → ", h("b", {}, to)), h("dl", {}, facts));
  }
}

export const NAMES = {
  up: "up", busy: "busy", draining: "draining", connecting: "connecting", down: "down",
  silent: "no answer", none: "unknown", self: "itself",
};

export function legend(place) {
  for (const state of ["up", "busy", "draining", "connecting", "down", "silent", "none"]) {
    place.append(h("li", {}, h("span", { class: "key", "data-state": state, "aria-hidden": "true" }, SIGNS[state]), NAMES[state]));
  }
}

function label(from, to, session) {
  if (session.state === "self") return from;
  const error = session.peer?.last_error ? `, last error: ${session.peer.last_error}` : "";
  return `${from} sees ${to}: ${NAMES[session.state]}${error}`;
}
