// Numbers in words, and elements made of them.
//
// Law of this file: what somebody else has chosen, such as the path of a run, goes into an element as its text and in no
// other way.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function size(bytes, digits = 1) {
  let value = Number(bytes);
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return unit ? `${value.toFixed(digits)} ${UNITS[unit]}` : `${value.toFixed(0)} B`;
}

export function span(seconds) {
  for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return "0 s";
}

export function percent(part, whole) {
  return whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : "–";
}

export function count(number, noun, nouns = `${noun}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? noun : nouns}`;
}

export function make(tag, { text, ...attributes } = {}, ...children) {
  const found = document.createElement(tag);
  if (text !== undefined) found.textContent = text;
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  found.append(...children);
  return found;
}

export function write(id, text) {
  const found = document.getElementById(id);
  if (found.textContent !== text) found.textContent = text; // else a screen reader would hear it again
}

export function fill(id, children) {
  document.getElementById(id).replaceChildren(...children);
}

export function table(id, heads, rows) {
  const head = make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { text, scope: "col" }))));
  const body = make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text) => make("td", { text })))));
  fill(id, [head, body]);
}

export function selection(one) {
  // Which part of an artifact it is, where it is not all of it.
  const parts = [];
  if (one.include.length) parts.push(`only ${one.include.join(", ")}`);
  if (one.exclude.length) parts.push(`without ${one.exclude.join(", ")}`);
  return parts.length ? ` (${parts.join("; ")})` : "";
}
