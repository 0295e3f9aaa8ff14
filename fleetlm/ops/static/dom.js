// Elements, numbers as people read them, and a table that changes only what has changed.
// Every text reaches the page as a text node or an attribute: nothing that a node says is markup.

export const list = (value) => (Array.isArray(value) ? value : []);
export const entries = (value) => (value && typeof value === "object" && !Array.isArray(value) ? Object.entries(value) : []);
export const text = (value) => (value === null || value === undefined ? "" : String(value));
export const num = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function svg(tag, props) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props || {})) element.setAttribute(name, value);
  return element;
}

export function setText(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === "") element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export function count(value) {
  const given = num(value);
  return given === null ? "–" : Math.abs(given) < 10000 ? whole.format(Math.round(given)) : short.format(given);
}

export function bytes(value) {
  let given = num(value);
  if (given === null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (given >= 1024 && unit < units.length - 1) {
    given /= 1024;
    unit += 1;
  }
  return `${given < 10 && unit ? given.toFixed(1) : Math.round(given)} ${units[unit]}`;
}

export function duration(value) {
  const seconds = num(value);
  if (seconds === null) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export const milliseconds = (value) => (num(value) === null ? "–" : duration(value / 1000));

export function clock(wallMs) {
  const given = num(wallMs);
  if (given === null) return "";
  const date = new Date(given);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleTimeString("en-GB");
}

// A table with rows that are kept by key, so that focus and selection stay, and columns that sort.
export class Table {
  // columns: [{id, label, value, text, state, title, number, wide, extra}]; rows: any objects, told apart by key(row).
  constructor(place, { caption, columns, key, empty, sort = "", limit = 200, onpick = null }) {
    Object.assign(this, { columns, key, empty, limit, onpick });
    this.sort = sort.replace("-", "");
    this.isDown = sort.startsWith("-");
    this.rows = new Map();
    this.given = [];
    this.heads = columns.map((column) =>
      h("th", { scope: "col", class: column.number ? "number" : null, "data-extra": column.extra },
        h("button", { type: "button", onclick: () => this.sortBy(column) }, column.label)));
    this.body = h("tbody");
    this.more = h("p", { class: "quiet more" });
    place.append(h("table", {}, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, this.heads)), this.body), this.more);
  }

  sortBy(column) {
    this.isDown = this.sort === column.id ? !this.isDown : Boolean(column.number);
    this.sort = column.id;
    this.update(this.given);
  }

  update(rows) {
    this.given = rows;
    const column = this.columns.find((each) => each.id === this.sort);
    const sorted = column ? [...rows].sort((a, b) => compare(column.value(a), column.value(b)) * (this.isDown ? -1 : 1)) : rows;
    this.columns.forEach((each, at) => {
      const order = each.id === this.sort ? (this.isDown ? "descending" : "ascending") : null;
      setAttribute(this.heads[at], "aria-sort", order);
    });
    const shown = sorted.slice(0, this.limit);
    const kept = new Map();
    let before = null;
    for (const row of shown) {
      const key = this.key(row);
      if (kept.has(key)) continue;
      const element = this.rows.get(key) || this.make(key);
      kept.set(key, element);
      this.fill(element, row);
      const place = before ? before.nextSibling : this.body.firstChild;
      if (place !== element) this.body.insertBefore(element, place);
      before = element;
    }
    for (const [key, element] of this.rows) if (!kept.has(key)) element.remove();
    this.rows = kept;
    const hidden = sorted.length - shown.length;
    setText(this.more, !sorted.length ? this.empty : hidden > 0 ? `${count(hidden)} more: choose a node, or filter.` : "");
    this.more.hidden = !this.more.textContent;
  }

  make(key) {
    const cells = this.columns.map((column, at) => {
      const props = { class: [column.number && "number", column.mono && "mono", column.wide && "wide"].filter(Boolean).join(" ") || null, "data-extra": column.extra };
      if (at === 0 && this.onpick) return h("th", { scope: "row", ...props }, h("button", { type: "button", class: "pick", onclick: () => this.onpick(key) }));
      return h(at === 0 ? "th" : "td", { ...(at === 0 ? { scope: "row" } : {}), ...props });
    });
    return h("tr", {}, cells);
  }

  fill(element, row) {
    this.columns.forEach((column, at) => {
      const cell = element.children[at];
      const value = text(column.text ? column.text(row) : column.value(row));
      setText(at === 0 && this.onpick ? cell.firstChild : cell, value);
      setAttribute(cell, "data-state", column.state ? column.state(row) : null);
      setAttribute(cell, "title", column.title ? column.title(row) : column.wide ? value : null);
    });
    setAttribute(element, "data-dim", row.dim ? "1" : null);
  }
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (a === null || a === undefined) return b === null || b === undefined ? 0 : -1;
  if (b === null || b === undefined) return 1;
  return text(a).localeCompare(text(b), "en", { numeric: true });
}
