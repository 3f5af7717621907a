// The page: asks the daemon every two seconds what there is to see, as long as somebody can see it.
//
// Law of this file: the key is this tab's alone, goes to this address only, and ends with the tab. The address that was
// opened has the ticket for it behind its #, which no browser sends to anybody; it is taken away at once.

import { draw as drawCharts } from "/charts.js";
import { draw as drawMap } from "/map.js";
import { count, fill, make, percent, selection, size, span, table, write } from "/words.js";

const POLL_SECONDS = 2;
const PATIENCE_SECONDS = 8;
const AWAY_SECONDS_MAX = 10;
const RECENT_SECONDS = 600;
const HISTORY_SECONDS = 86400;
const QUEUE_SHOWN = 8;
const KEY = "artifactcache-key";

let history = [];
let startedAt = 0;
let before = null; // the last overview, for rates
let failures = 0;
let timer = 0;
let hours = 0; // how far back; 0 until somebody has said so

function element(id) {
  return document.getElementById(id);
}

async function ask(path, method, authorization) {
  const answer = await fetch(path, {
    method,
    headers: { Authorization: authorization },
    cache: "no-store",
    credentials: "omit",
    signal: AbortSignal.timeout(PATIENCE_SECONDS * 1000),
  });
  const told = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(told.message), { status: answer.status });
  return told;
}

async function enter() {
  const ticket = location.hash.slice(1);
  if (/^[A-Za-z0-9_-]{40,}$/.test(ticket)) {
    window.history.replaceState(null, "", "/");
    try {
      sessionStorage.setItem(KEY, (await ask("/enter", "POST", `Ticket ${ticket}`)).key);
      forget();
    } catch (error) {
      if (!error.status) throw error;
      shut(error.message);
      return;
    }
  }
  await look();
}

async function look() {
  clearTimeout(timer);
  timer = 0;
  const key = sessionStorage.getItem(KEY);
  if (!key) {
    shut("");
    return;
  }
  if (document.hidden) return; // whoever comes back looks at once
  try {
    const since = history.length ? history[history.length - 1].at : 0;
    show(await ask(`/overview?since=${since}`, "GET", `Bearer ${key}`));
    failures = 0;
    state("live", "is-live");
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      sessionStorage.removeItem(KEY);
      shut(error.message);
      return;
    }
    failures += 1;
    state(error.status ? error.message : "The daemon is away; it is asked again and again.", "is-away");
  }
  if (!timer) timer = setTimeout(look, 1000 * Math.min(POLL_SECONDS * (1 + failures), AWAY_SECONDS_MAX));
}

function forget() {
  history = [];
  before = null;
}

function state(words, kind) {
  element("state").className = kind;
  write("state", words);
}

function shut(why) {
  forget();
  element("main").hidden = true;
  element("door").hidden = false;
  write("who", "");
  write("why", why);
  state("", "");
}

function show(overview) {
  if (overview.stats.started_at !== startedAt) forget();
  startedAt = overview.stats.started_at;
  history = [...history, ...overview.history].filter((one) => one.at > overview.now - HISTORY_SECONDS);
  element("door").hidden = true;
  element("main").hidden = false;
  write("who", `${overview.user}, ${overview.roles.length ? overview.roles.join(" and ") : "reader"} · cacheserver ${overview.version}, up ${span(overview.now - startedAt)}`);
  showFaults(overview);
  showFigures(overview);
  showDownloads(overview);
  showHeld(overview);
  showHistory(overview);
  showQueue(overview);
  showUsers(overview);
  before = overview;
}

function sample({ now, stats, saved_bytes: saved }) {
  return { at: now, fetch_count: stats.fetch_count, hit_count: stats.hit_count, served_bytes: stats.served_bytes, saved_bytes: saved };
}

function showFaults({ faults }) {
  const told = faults.map((one) => `${one.is_grave}${one.words}`).join("\n");
  const list = element("fault-list");
  if (list.dataset.told === told) return;
  list.dataset.told = told;
  list.setAttribute("role", faults.some((one) => one.is_grave) ? "alert" : "list");
  fill("fault-list", faults.map((one) => make("li", { class: one.is_grave ? "grave" : "", "data-kind": one.kind, text: one.words })));
}

function showFigures(overview) {
  const { stats, saved_bytes: saved, high_percent: high } = overview;
  const room = Math.max(1, Math.min(stats.capacity_bytes, stats.blob_bytes + Math.max(0, stats.free_bytes - stats.min_free_bytes)));
  write("store", size(stats.blob_bytes));
  const shared = stats.artifact_bytes > stats.blob_bytes * 1.01 ? ` Without sharing it would be ${size(stats.artifact_bytes)}.` : "";
  write("store-note", `of ${size(room)}; it is swept above ${high} %.${shared}`);
  element("store-bar").style.width = `${Math.min(100, (100 * stats.blob_bytes) / room)}%`;
  element("store-mark").style.left = `${Math.min(99.5, high)}%`;
  const all = [...history, sample(overview)];
  const then = all.find((one) => one.at >= overview.now - RECENT_SECONDS) ?? sample(overview);
  const recent = stats.fetch_count - then.fetch_count;
  write("hits", percent(stats.hit_count, stats.fetch_count));
  write("hits-note", `of ${count(stats.fetch_count, "fetch", "fetches")} since the daemon started; ${percent(stats.hit_count - then.hit_count, recent)} in the last 10 min`);
  write("saved", size(saved));
  write("saved-note", `of ${size(stats.served_bytes)} handed out did not have to come from the origin`);
  write("inuse", count(stats.lease_count, "lease"));
  write("inuse-note", `${count(stats.session_count, "session")}, ${count(stats.pin_count, "pin")}, ${stats.evicted_count.toLocaleString("en")} evicted (${size(stats.evicted_bytes)})`);
}

function showDownloads({ downloads, now }) {
  element("coming").hidden = !downloads.length;
  write("coming-count", downloads.length ? String(downloads.length) : "");
  const list = element("downloads");
  downloads.forEach((one, index) => {
    const row = list.children[index] ?? list.appendChild(make("li", {}, make("div", { class: "head" }), make("progress"), make("div", { class: "note" })));
    const { bytes_done: done, bytes_total: total, files_done: filesDone, files_total: files } = one.progress;
    row.children[0].textContent = `${one.version}${selection(one)}`;
    row.children[1].setAttribute("aria-label", one.version);
    if (total) {
      row.children[1].max = total;
      row.children[1].value = done;
    } else {
      row.children[1].removeAttribute("value");
    }
    const rate = speed(one, now);
    const words = total ? [`${percent(done, total)} of ${size(total)}`, `${filesDone} of ${count(files, "file")}`] : ["the origin is asked"];
    if (rate > 0) words.push(`${size(rate)}/s`, `${span((total - done) / rate)} left`);
    if (one.waiting_count) words.push(`${one.waiting_count} waiting`);
    if (one.users.length) words.push(`for ${one.users.join(", ")}`);
    row.children[2].textContent = words.join(" · ");
  });
  while (list.children.length > downloads.length) list.lastChild.remove();
}

function speed(one, now) {
  const then = before?.downloads.find((other) => other.version === one.version && other.progress.bytes_total === one.progress.bytes_total);
  return then && now > before.now ? (one.progress.bytes_done - then.progress.bytes_done) / (now - before.now) : 0;
}

function showHeld(overview) {
  const { held, groups, group_count: groupCount, sees_all: seesAll } = overview;
  write("held-count", count(held.artifact_count, "artifact"));
  write("held-note", held.artifact_count
    ? `${seesAll ? "" : "On your account: "}${size(held.share_bytes)} in ${count(groupCount, "model, run or other place", "models, runs and other places")}. What several share is divided among them.`
    : seesAll ? "Nothing yet: what somebody fetches appears here." : "Nothing on your account yet: what you fetch appears here.");
  drawMap(overview);
  if (element("held-details").open) tell(groups);
}

function tell(groups) {
  table(
    "held-table",
    ["Artifact", "On the disk", "In all", "Files", "Last used", "Kept", "Users"],
    groups.flatMap((group) => group.parts.map((one) => [
      `${one.version}${selection(one)}`, size(one.share_bytes), size(one.size_bytes), one.file_count.toLocaleString("en"),
      `${span(Math.max(0, before ? before.now - one.used_at : 0))} ago`,
      [one.lease_count ? "in use" : "", one.pinned_until ? "pinned" : ""].filter(Boolean).join(", "), one.users.join(", "),
    ])),
  );
}

function showHistory(overview) {
  const all = [...element("ranges").children];
  const isUp = (overview.now - startedAt) / 60;
  const fits = all.find((one) => Number(one.dataset.minutes) >= isUp) ?? all[all.length - 1];
  const minutes = hours ? hours * 60 : Number(fits.dataset.minutes);
  for (const one of all) one.setAttribute("aria-pressed", String(Number(one.dataset.minutes) === minutes));
  drawCharts([...history, sample(overview)], overview.now, minutes / 60);
}

function showQueue({ queue, queue_length: length, sees_all: seesAll, high_percent: high, low_percent: low }) {
  const going = queue.filter((one) => !one.kept);
  const staying = queue.filter((one) => one.kept);
  write("queue-note", !seesAll
    ? "Where access is checked, this is for operators. `artifactcache explain URI` tells it of your own."
    : going.length ? `The first ${going.length} of ${length}. They go when the store is above ${high} % of its room, until it is at ${low} %, or where a download needs theirs.`
    : "Nothing may go now.");
  fill("queue", going.slice(0, QUEUE_SHOWN).map((one) => queued(one, one.reason)));
  element("later").hidden = going.length <= QUEUE_SHOWN;
  write("later-title", `${going.length - QUEUE_SHOWN} more`);
  fill("later-list", going.slice(QUEUE_SHOWN).map((one) => queued(one, one.reason)));
  element("staying").hidden = !staying.length;
  write("staying-title", `${count(staying.length, "tree")} whose turn it is, and that ${staying.length === 1 ? "stays" : "stay"}`);
  fill("staying-list", staying.map((one) => queued(one, one.kept)));
}

function queued(one, why) {
  const names = one.versions.length ? one.versions.join(", ") : `tree ${one.digest.slice(0, 12)}`;
  return make("li", {},
    make("div", { class: "head" }, make("span", { class: "name", text: names }), make("span", { class: "amount", text: size(one.share_bytes) })),
    make("div", { class: "note", text: why }));
}

function showUsers({ users, roles }) {
  const most = Math.max(1, ...users.map((one) => Math.max(one.usage.held_bytes, one.usage.held_bytes_max)));
  write("users-note", roles.includes("administrator") ? "What users have fetched is on their accounts; what several have, in equal parts." : "Your own account. Everybody's are for administrators.");
  fill("users", users.map(({ usage, session_count: sessions, lease_count: leases, download_count: downloads }) => {
    const bar = make("div", { class: "meter" }, make("div"));
    bar.firstChild.style.width = `${(100 * usage.held_bytes) / (usage.held_bytes_max || most)}%`;
    const words = [count(usage.tree_count, "tree")];
    if (usage.held_bytes_max) words.push(`quota ${size(usage.held_bytes_max)}`);
    if (sessions) words.push(count(sessions, "session"));
    if (leases) words.push(count(leases, "lease"));
    if (downloads) words.push(count(downloads, "download"));
    return make("li", {},
      make("div", { class: "head" }, make("span", { class: "name", text: usage.user }), make("span", { class: "amount", text: size(usage.held_bytes) })),
      bar, make("div", { class: "note", text: words.join(" · ") }));
  }));
}

element("ranges").addEventListener("click", (event) => {
  const chosen = event.target.closest("button");
  if (!chosen) return;
  hours = Number(chosen.dataset.minutes) / 60;
  if (before) showHistory(before);
});
new ResizeObserver(() => before && showHistory(before)).observe(element("chart-hits"));
element("held-details").addEventListener("toggle", () => before && tell(before.groups));
document.addEventListener("visibilitychange", () => document.hidden || look());
window.addEventListener("hashchange", enter);
enter();
