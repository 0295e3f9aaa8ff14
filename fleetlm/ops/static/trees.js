// Supervision trees, as the tree pattern of ARIA has it: arrow keys, Home and End walk; left and right fold.

import { count, h, list, text } from "./dom.js";

const MOST = 600;

export class Trees {
  constructor(place) {
    this.folded = new Map();
    this.focused = "";
    this.root = h("ul", { role: "tree", "aria-labelledby": "h-trees", class: "tree", onkeydown: (event) => this.walk(event) });
    this.more = h("p", { class: "quiet more" });
    place.append(this.root, this.more);
  }

  // forests: [[node, trees]]
  update(forests, matches) {
    const had = this.root.contains(document.activeElement);
    this.left = MOST;
    this.items = [];
    const filled = forests.filter(([, trees]) => list(trees).length);
    this.root.replaceChildren(...filled.map(([node, trees]) => this.branch(
      { name: node, children: list(trees), isNode: true }, node, 1, filled.length > 8, matches)).filter(Boolean));
    this.more.textContent = this.left <= 0 ? "More is not shown: choose a node, or filter." : this.items.length ? "" : "No supervisor runs here.";
    this.more.hidden = !this.more.textContent;
    const item = this.items.find((each) => each.dataset.key === this.focused) || this.items[0];
    if (item) item.tabIndex = 0;
    if (had && item) item.focus({ preventScroll: true });
  }

  branch(row, key, level, isFolded, matches) {
    if (this.left <= 0) return null;
    const own = matches([row.name, row.pid, row.runs, row.state]);
    this.left -= 1;
    const folded = this.folded.get(key) ?? isFolded;
    const item = h("li", { role: "treeitem", tabindex: "-1", "aria-level": level, "data-key": key });
    const at = this.items.push(item);
    const rows = list(row.children);
    const children = rows.map((child, nth) => this.branch(child, `${key}/${text(child.name)}/${child.pid ? text(child.pid) : nth}`, level + 1, false, own ? () => true : matches)).filter(Boolean);
    if (!own && !children.length) {
      this.items.splice(at - 1);
      this.left += 1;
      return null;
    }
    const restarts = (row.restarts || 0) + (row.restarted || 0);
    item.append(h("span", { class: "row" },
      h("span", { class: "twig", "aria-hidden": "true" }, rows.length ? (folded ? "▸" : "▾") : "·"),
      h("span", { class: row.isNode ? "who" : "name", title: text(row.name) }, text(row.name) || text(row.runs) || text(row.pid)),
      row.isNode ? h("span", { class: "quiet" }, `${count(rows.length)} ${rows.length === 1 ? "tree" : "trees"}`) : h("span", { class: "quiet", title: text(row.pid) }, text(row.runs)),
      row.state ? h("span", { class: "quiet" }, text(row.state)) : null,
      restarts ? h("span", { class: "badge", "data-state": "busy" }, `${count(restarts)} ${restarts === 1 ? "restart" : "restarts"}`) : null));
    item.firstChild.addEventListener("click", () => this.fold(item, !this.isFolded(item)));
    item.addEventListener("focus", () => { this.focused = key; });
    if (children.length) {
      item.setAttribute("aria-expanded", String(!folded));
      item.append(h("ul", { role: "group", hidden: folded }, children));
    }
    return item;
  }

  isFolded(item) {
    return item.getAttribute("aria-expanded") === "false";
  }

  fold(item, folded) {
    this.step(item);
    if (!item.hasAttribute("aria-expanded")) return;
    this.folded.set(item.dataset.key, folded);
    item.setAttribute("aria-expanded", String(!folded));
    item.lastChild.hidden = folded;
    item.querySelector(".twig").textContent = folded ? "▸" : "▾";
  }

  step(item) {
    if (!item) return;
    for (const each of this.items) each.tabIndex = -1;
    item.tabIndex = 0;
    item.focus();
  }

  walk(event) {
    const item = event.target.closest("[role=treeitem]");
    if (!item || event.ctrlKey || event.altKey || event.metaKey) return;
    const shown = this.items.filter((each) => each.isConnected && !each.parentElement.closest("[hidden]"));
    const at = shown.indexOf(item);
    const canFold = item.hasAttribute("aria-expanded");
    const keys = {
      ArrowDown: () => this.step(shown[at + 1]),
      ArrowUp: () => this.step(shown[at - 1]),
      Home: () => this.step(shown[0]),
      End: () => this.step(shown[shown.length - 1]),
      ArrowRight: () => (canFold && this.isFolded(item) ? this.fold(item, false) : canFold && this.step(shown[at + 1])),
      ArrowLeft: () => (canFold && !this.isFolded(item) ? this.fold(item, true) : this.step(item.parentElement.closest("[role=treeitem]"))),
      Enter: () => this.fold(item, !this.isFolded(item)),
      " ": () => this.fold(item, !this.isFolded(item)),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }
}
