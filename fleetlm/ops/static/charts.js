// Small charts of the last minutes, drawn as SVG.

import { clock, h, setAttribute, setText, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 64;
const TOP = 15; // above it stands the end of the scale
export const MINUTES = 4;
const LEAST_MS = 30000; // a page that was opened just now fills its charts soon

// One tile: a title, the value now, and the course of the last minutes.
export class Chart {
  constructor(place, { title, format, state = null, base = 1000 }) {
    this.title = title;
    this.format = format;
    this.state = state;
    this.base = base;
    this.points = [];
    this.now = h("span", { class: "now" }, "–");
    this.most = h("span", { class: "most" });
    this.at = h("span", { class: "at" }, "");
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line", "vector-effect": "non-scaling-stroke" });
    this.cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, x1: -9, x2: -9, "vector-effect": "non-scaling-stroke" });
    for (const y of [TOP, (TOP + HEIGHT) / 2, HEIGHT - 0.5]) this.picture.append(svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y, "vector-effect": "non-scaling-stroke" }));
    this.picture.append(this.area, this.line, this.cursor);
    this.picture.addEventListener("pointermove", (event) => this.point(event));
    this.picture.addEventListener("pointerleave", () => this.leave());
    this.element = h("div", { class: "tile" },
      h("h3", {}, title), this.now, h("div", { class: "plot" }, this.picture, this.most), this.at);
    place.append(this.element);
  }

  // points: [[wall clock in ms, value or null]], oldest first
  update(points, wallMs) {
    this.points = points;
    this.end = wallMs;
    const values = points.map(([, value]) => value).filter((value) => value !== null);
    const top = niceTop(Math.max(0, ...values), this.base);
    const last = points.length ? points[points.length - 1][1] : null;
    if (!this.isPointed) setText(this.now, this.format(last));
    setText(this.most, this.format(top));
    setAttribute(this.now, "data-state", this.state && last !== null ? this.state(last) : null);
    this.span = Math.min(MINUTES * 60000, Math.max(LEAST_MS, points.length ? wallMs - points[0][0] : 0));
    const span = `last ${this.span < 60000 ? `${Math.round(this.span / 1000)} s` : `${Math.round(this.span / 60000)} min`}`;
    if (!this.isPointed) setText(this.at, span);
    const x = (at) => WIDTH - ((wallMs - at) / this.span) * WIDTH;
    const y = (value) => HEIGHT - 1 - (value / top) * (HEIGHT - 1 - TOP);
    let line = "";
    let area = "";
    let run = [];
    const finish = () => {
      if (!run.length) return;
      const path = run.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`).join("L");
      line += `M${path}`;
      area += `M${run[0][0].toFixed(1)} ${HEIGHT}L${path}L${run[run.length - 1][0].toFixed(1)} ${HEIGHT}Z`;
      run = [];
    };
    let before = null;
    for (const [at, value] of points) {
      if (value === null || (before !== null && at - before > 10000)) finish();
      if (value !== null) run.push([x(at), y(value)]);
      before = at;
    }
    finish();
    setAttribute(this.line, "d", line || "M0 0");
    setAttribute(this.area, "d", area || "M0 0");
    const most = values.length ? this.format(Math.max(...values)) : "–";
    setAttribute(this.picture, "aria-label", `${this.title}: ${this.format(last)} now, at most ${most} in the ${span}`);
  }

  point(event) {
    const box = this.picture.getBoundingClientRect();
    const at = this.end - (1 - (event.clientX - box.left) / box.width) * this.span;
    let nearest = null;
    for (const each of this.points) if (each[1] !== null && (!nearest || Math.abs(each[0] - at) < Math.abs(nearest[0] - at))) nearest = each;
    if (!nearest) return;
    this.isPointed = true;
    const x = WIDTH - ((this.end - nearest[0]) / this.span) * WIDTH;
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    setText(this.now, this.format(nearest[1]));
    setText(this.at, `at ${clock(nearest[0])}`);
  }

  leave() {
    this.isPointed = false;
    this.cursor.setAttribute("x1", -9);
    this.cursor.setAttribute("x2", -9);
    this.update(this.points, this.end);
  }
}

// The end of the scale: 1, 2 or 5 times a power of ten, of the unit that the value is shown in.
function niceTop(value, base) {
  if (value <= 0) return 1;
  const unit = base ** Math.max(0, Math.floor(Math.log(value) / Math.log(base)));
  const power = 10 ** Math.floor(Math.log10(value / unit));
  for (const step of [1, 2, 5, 10]) if (value <= step * power * unit) return step * power * unit;
  return value;
}
