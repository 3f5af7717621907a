// What is held as a treemap: a frame for each model, run or place, and in it a button for each artifact.
//
// Law of this file: an artifact keeps its button as long as it is shown, so that whoever has it in focus stays there.

import { neighbour, squarify } from "/treemap.js";
import { make, selection, size, span } from "/words.js";

const HEAD = 20; // pixels, for a frame's name, where there is room
const GAP = 2;
const HUES = 12;

const map = document.getElementById("map");
const cells = new Map(); // by artifact
const frames = new Map(); // by group
const hues = new Map(); // by group
let boxes = [];
let shown = null;
let current = "";

export function draw(overview) {
  shown = overview;
  lay();
}

function lay() {
  if (!shown) return;
  const { held, groups, group_count: groupCount } = shown;
  const rest = held.share_bytes - groups.reduce((sum, one) => sum + one.share_bytes, 0);
  const all = groups.map((one) => ({ key: one.name, label: one.name, group: one, share: one.share_bytes }));
  if (groupCount > groups.length && rest > 0) {
    all.push({ key: "", label: `${groupCount - groups.length} others`, group: null, share: rest });
  }
  all.sort((a, b) => b.share - a.share);
  map.classList.toggle("empty", !all.length);
  const places = squarify(all.map((one) => Math.max(1, one.share)), 0, 0, map.clientWidth, map.clientHeight);
  const seen = new Set();
  const framed = new Set();
  boxes = [];
  all.forEach((one, index) => {
    const box = places[index];
    const frame = frames.get(one.key) ?? newFrame(one.key);
    framed.add(one.key);
    put(frame, inset(box, GAP / 2));
    frame.style.setProperty("--hue", String(hue(one.key)));
    frame.classList.toggle("others", !one.group);
    const hasHead = box.height > 2.2 * HEAD && box.width > 60;
    frame.firstChild.textContent = hasHead ? one.label : "";
    frame.firstChild.hidden = !hasHead;
    const within = inset({ x: 0, y: 0, width: box.width - GAP, height: box.height - GAP }, GAP);
    const inner = hasHead
      ? { x: GAP, y: HEAD, width: within.width, height: box.height - HEAD - 2 * GAP }
      : Math.min(box.width, box.height) > 4 * GAP ? within : { x: 0, y: 0, width: box.width / 2, height: box.height / 2 };
    for (const [key, part, at] of parts(one, inner)) {
      seen.add(key);
      const cell = cells.get(key) ?? newCell(key, frame);
      if (cell.parentNode !== frame) frame.append(cell);
      put(cell, inset(at, 1));
      label(cell, one, part, at);
      boxes.push({ key, x: box.x + at.x, y: box.y + at.y, width: at.width, height: at.height });
    }
  });
  forget(cells, seen);
  forget(frames, framed);
  for (const name of hues.keys()) if (!framed.has(name)) hues.delete(name);
  if (!cells.has(current)) current = boxes[0]?.key ?? "";
  for (const [key, cell] of cells) cell.tabIndex = key === current ? 0 : -1;
}

function parts(one, inner) {
  // What stands in a frame: its largest artifacts, and one for what is left.
  if (!one.group) return [["others", null, inner]];
  const found = one.group.parts.map((part) => [`${part.version}\n${selection(part)}`, part, Math.max(1, part.share_bytes)]);
  const left = one.group.artifact_count - one.group.parts.length;
  const bytes = one.group.share_bytes - one.group.parts.reduce((sum, part) => sum + part.share_bytes, 0);
  if (left > 0) found.push([`${one.key}\nothers`, null, Math.max(1, bytes)]);
  found.sort((a, b) => b[2] - a[2]);
  const places = squarify(found.map((each) => each[2]), inner.x, inner.y, inner.width, inner.height);
  return found.map(([key, part], index) => [key, part, places[index]]);
}

function label(cell, one, part, box) {
  const left = one.group ? one.group.artifact_count - one.group.parts.length : 0;
  const path = part ? part.version.slice(one.key.length).replace(/^\//, "") : "";
  const name = part ? path.replace(/^(?=\d+(\/|$))/, one.key.startsWith("models:/") ? "version " : "") || one.label : left ? `${left} more` : one.label;
  const share = part ? part.share_bytes : one.group ? one.group.share_bytes - one.group.parts.reduce((s, p) => s + p.share_bytes, 0) : one.share;
  const fits = box.width > 44 && box.height > 18;
  cell.classList.toggle("tiny", !fits);
  cell.firstChild.textContent = fits ? name : "";
  cell.lastChild.textContent = fits && box.height > 36 ? size(share) : "";
  const words = part ? describe(part) : `${one.group ? one.label : ""} ${name}, ${size(share)} in all`.trim();
  if (cell.getAttribute("aria-label") !== words) cell.setAttribute("aria-label", words);
  cell.title = words;
  cell.dataset.version = part ? part.version : "";
  cell.classList.toggle("kept", Boolean(part && (part.lease_count || part.pinned_until)));
  if (document.activeElement === cell) tell(cell);
}

export function describe(part) {
  const words = [`${part.version}${selection(part)}: ${size(part.share_bytes)} on the disk`];
  if (part.share_bytes < part.size_bytes * 0.99) words.push(`${size(part.size_bytes)} in all, the rest is shared`);
  words.push(part.file_count === 1 ? "1 file" : `${part.file_count.toLocaleString("en")} files`);
  words.push(`used ${span(Math.max(0, shown.now - part.used_at))} ago`);
  if (part.lease_count) words.push("in use now");
  if (part.pinned_until) words.push("pinned or kept warm");
  if (part.users.length) words.push(`by ${part.users.join(", ")}`);
  return words.join(", ");
}

function newFrame(key) {
  const frame = make("div", { class: "frame" }, make("div", { class: "name", "aria-hidden": "true" }));
  frames.set(key, frame);
  map.append(frame);
  return frame;
}

function newCell(key, frame) {
  const cell = make("button", { type: "button", class: "cell" }, make("span", { class: "what" }), make("span", { class: "size" }));
  cell.dataset.key = key;
  cells.set(key, cell);
  frame.append(cell);
  return cell;
}

function forget(made, seen) {
  for (const [key, element] of made) {
    if (!seen.has(key)) {
      element.remove();
      made.delete(key);
    }
  }
}

function inset(box, by) {
  // Of what is very small a quarter on each side at most, so that something of it is left.
  const [x, y] = [Math.min(by, box.width / 4), Math.min(by, box.height / 4)];
  return { x: box.x + x, y: box.y + y, width: box.width - 2 * x, height: box.height - 2 * y };
}

function put(element, box) {
  element.style.left = `${box.x}px`;
  element.style.top = `${box.y}px`;
  element.style.width = `${box.width}px`;
  element.style.height = `${box.height}px`;
}

function hue(name) {
  // By the name, so that it has the same one tomorrow; but the next one where that is taken more often.
  if (!hues.has(name)) {
    let first = 0;
    for (const char of name) first = (first * 31 + char.codePointAt(0)) % 997;
    const taken = new Array(HUES).fill(0);
    for (const number of hues.values()) taken[number] += 1;
    const least = Math.min(...taken);
    let number = first % HUES;
    while (taken[number] > least) number = (number + 5) % HUES; // 5 and 12 have no factor in common: all are tried
    hues.set(name, number);
  }
  return Math.round((hues.get(name) * 360) / HUES);
}

function tell(cell) {
  const detail = document.getElementById("detail");
  const words = cell.getAttribute("aria-label");
  if (detail.textContent !== words) detail.textContent = words;
}

function choose(key) {
  cells.get(current)?.setAttribute("tabindex", "-1");
  current = key;
  const cell = cells.get(key);
  cell.tabIndex = 0;
  cell.focus();
}

map.addEventListener("focusin", (event) => {
  const cell = event.target.closest(".cell");
  if (!cell) return;
  cells.get(current)?.setAttribute("tabindex", "-1");
  current = cell.dataset.key;
  cell.tabIndex = 0;
  tell(cell);
});
map.addEventListener("mouseover", (event) => {
  const cell = event.target.closest(".cell");
  if (cell) tell(cell);
});
map.addEventListener("keydown", (event) => {
  const from = boxes.findIndex((box) => box.key === current);
  if (from < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Home") choose(boxes[0].key);
  else if (event.key === "End") choose(boxes[boxes.length - 1].key);
  else if (/^Arrow/.test(event.key)) choose(boxes[neighbour(boxes, from, event.key)].key);
  else return;
  event.preventDefault();
});
new ResizeObserver(lay).observe(map);
