// Two charts of a day's counters, and the same as a table.
//
// Law of this file: what is drawn are differences of counters; where nobody fetched there is no ratio, and so no line.

import { percent, size, table } from "/words.js";

const SVG = "http://www.w3.org/2000/svg";
let wide = 560; // pixels: as wide as there is room for, so that the words keep their size
const HEIGHT = 130;
const LEFT = 64;
const BOTTOM = 18;
const TOP = 8;
const STEPS = 60;

export function steps(history, now, hours) {
  // The counters' growth in each of 60 equal parts of so many hours, the oldest first.
  const seconds = (hours * 3600) / STEPS;
  const first = now - hours * 3600;
  const found = Array.from({ length: STEPS }, (_, index) => ({
    at: first + (index + 1) * seconds, fetches: 0, hits: 0, saved: 0, origin: 0,
  }));
  for (let index = 1; index < history.length; index += 1) {
    const [before, after] = [history[index - 1], history[index]];
    const step = found[Math.floor((after.at - first) / seconds)];
    if (!step || after.fetch_count < before.fetch_count) continue;
    step.fetches += after.fetch_count - before.fetch_count;
    step.hits += after.hit_count - before.hit_count;
    step.saved += after.saved_bytes - before.saved_bytes;
    step.origin += after.served_bytes - before.served_bytes - (after.saved_bytes - before.saved_bytes);
  }
  return found;
}

export function draw(history, now, hours) {
  wide = Math.max(200, document.getElementById("chart-hits").clientWidth);
  const found = steps(history, now, hours);
  const fetches = found.reduce((sum, one) => sum + one.fetches, 0);
  const hits = found.reduce((sum, one) => sum + one.hits, 0);
  const saved = found.reduce((sum, one) => sum + one.saved, 0);
  const origin = found.reduce((sum, one) => sum + one.origin, 0);
  const when = `the last ${length(hours)}`;
  drawHits(found, `Hit ratio over ${when}: ${percent(hits, fetches)} of ${fetches} fetches.`, hours);
  drawBytes(found, `Bytes over ${when}: ${size(saved)} saved, ${size(origin)} from the origin.`, hours);
  table(
    "history-table",
    ["Until", "Fetches", "Hits", "Saved", "From the origin"],
    found.filter((one) => one.fetches).map((one) => [
      new Date(one.at * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" }),
      String(one.fetches), percent(one.hits, one.fetches), size(one.saved), size(one.origin),
    ]),
  );
}

function drawHits(found, words, hours) {
  const svg = frame(words, hours, [[1, "100 %"], [0.5, "50 %"], [0, "0 %"]]);
  let line = "";
  let isOn = false;
  found.forEach((one, index) => {
    if (!one.fetches) return;
    const [x, y] = [across(index + 0.5), up(one.hits / one.fetches)];
    line += `${isOn ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    isOn = true;
    svg.append(element("circle", { cx: x, cy: y, r: 2.2, class: "dot" }));
  });
  svg.append(element("path", { d: line || "M0 0", class: "line" }));
  show("chart-hits", svg);
}

function drawBytes(found, words, hours) {
  const most = nice(Math.max(1, ...found.map((one) => one.saved + one.origin)));
  const svg = frame(words, hours, [[1, size(most, 0)], [0.5, size(most / 2, most < 4 ? 1 : 0)], [0, "0"]]);
  const width = (wide - LEFT) / STEPS - 1;
  found.forEach((one, index) => {
    const x = across(index) + 0.5;
    const [middle, top] = [up(one.saved / most), up((one.saved + one.origin) / most)];
    if (one.saved) svg.append(element("rect", { x, y: middle, width, height: up(0) - middle, class: "saved" }));
    if (one.origin) svg.append(element("rect", { x, y: top, width, height: Math.max(0, middle - top), class: "origin" }));
  });
  show("chart-bytes", svg);
}

function frame(words, hours, marks) {
  const svg = element("svg", { viewBox: `0 0 ${wide} ${HEIGHT}`, role: "img", "aria-label": words });
  for (const [share, text] of marks) {
    const y = up(share);
    svg.append(element("line", { x1: LEFT, x2: wide, y1: y, y2: y, class: "grid" }));
    svg.append(element("text", { x: LEFT - 8, y: y + 4, class: "axis end" }, text));
  }
  svg.append(element("text", { x: LEFT, y: HEIGHT - 2, class: "axis" }, `${length(hours)} ago`));
  svg.append(element("text", { x: wide, y: HEIGHT - 2, class: "axis end" }, "now"));
  return svg;
}

function length(hours) {
  return hours < 1 ? `${Math.round(hours * 60)} min` : `${hours} h`;
}

function nice(bytes) {
  // The next 1, 2 or 5 times a power of ten, of the unit that it is shown in.
  const unit = 1024 ** Math.min(5, Math.floor(Math.log2(bytes) / 10));
  const ten = 10 ** Math.floor(Math.log10(bytes / unit));
  return unit * ten * [1, 2, 5, 10].find((step) => bytes <= unit * ten * step);
}

function across(index) {
  return LEFT + ((wide - LEFT) * index) / STEPS;
}

function up(share) {
  return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share);
}

function element(tag, attributes, text) {
  const found = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, String(value));
  if (text !== undefined) found.textContent = text;
  return found;
}

function show(id, svg) {
  document.getElementById(id).replaceChildren(svg);
}

