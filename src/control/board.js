// The board: what the hub says of itself once a second, drawn; and the dialogs that tell it things.
//
// 1. Only what changed is written to the page, and lines are drawn only in rows that can be seen:
//    an update of 200 consumers touches some dozen texts. (Texts of the others are kept up to date,
//    for who has the page read aloud.) Nothing here asks the browser for a layout.
// 2. Nothing from the hub becomes markup: topics, causes and payloads are set as text.
// 3. Old figures are never shown as if they were new ones.
// 4. Nothing is done before a dialog has said what will happen.

const $ = (id) => document.getElementById(id);

// Words and numbers.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const secondsFormat = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});
const dayFormat = new Intl.DateTimeFormat("en-GB", { weekday: "short" });
const dateFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** Worst last, as the hub has them. */
const HEALTHS = ["ok", "paused", "behind", "falling_behind", "stalled", "halted"];
const STATES = [
  "working",
  "rate_limited",
  "lane_wait",
  "backing_off",
  "rebuilding",
  "paused",
  "halted",
  "stopped",
  "idle",
];
const word = (name) => name.replaceAll("_", " ");

function count(n) {
  if (n < 1e6) return whole.format(n);
  const [size, unit] = n < 1e9 ? [1e6, "M"] : [1e9, "G"];
  return `${(n / size).toPrecision(3)} ${unit}`;
}

/** For scales, where there is little room. */
function brief(n) {
  if (n < 1000) return `${+n.toPrecision(3)}`;
  return n < 1e6 ? `${+(n / 1e3).toPrecision(3)}k` : `${+(n / 1e6).toPrecision(3)}M`;
}

function rate(r) {
  if (r < 0.005) return "0/s";
  if (r < 0.1) return `${(r * 60).toFixed(1)}/min`;
  if (r < 10) return `${r.toFixed(1)}/s`;
  return `${r < 1e5 ? whole.format(r) : brief(r)}/s`;
}

function span(s) {
  if (s < 0.001) return "0 s";
  if (s < 0.1) return `${Math.round(s * 1000)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  const two = (big, unit, small, of) =>
    small ? `${big} ${unit} ${small} ${of}` : `${big} ${unit}`;
  const minutes = Math.floor(s / 60);
  if (s < 600) return two(minutes, "min", Math.floor(s % 60), "s");
  if (s < 3600) return `${minutes} min`;
  if (s < 172800) return two(Math.floor(s / 3600), "h", minutes % 60, "min");
  return two(Math.floor(s / 86400), "d", Math.floor((s % 86400) / 3600), "h");
}

/** How long something took that may be very short. */
const took = (s) => (s > 0 && s < 0.001 ? `${Math.max(1, Math.round(s * 1e6))} µs` : span(s));

/** How long ago, to the second. */
const age = (s) => (s < 10 ? `${Math.max(0, Math.floor(s))} s` : span(s));

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; n >= 1000 && unit < 4; unit++) n /= 1024;
  return `${unit && n < 100 ? n.toPrecision(2) : Math.round(n)} ${units[unit]}`;
}

const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;
const percent = (ratio) => `${Math.round(ratio * 100)} %`;

/** A time of day; with the day, when that is another one. */
function clock(seconds) {
  const at = new Date(seconds * 1000);
  const away = Math.abs(at - Date.now());
  const today = at.toDateString() === new Date().toDateString();
  const day = today ? "" : `${(away < 5 * 864e5 ? dayFormat : dateFormat).format(at)} `;
  return day + clockFormat.format(at);
}

function forecast(c) {
  const drain = c.drain;
  const now = Date.now() / 1000;
  switch (drain.forecast) {
    case "empty":
      return c.queue_messages ? "keeps up" : "empty";
    case "draining": {
      const { low_seconds: low, high_seconds: high, likely_seconds: likely } = drain;
      if (high == null) return `clears after ${clock(now + low)}, if ever`;
      if (high < 100) return `clears in about ${Math.max(1, Math.round(likely))} s`;
      const [from, to] = [clock(now + low), clock(now + high)];
      return from === to ? `clears ${from}` : `clears ${from}–${to}`;
    }
    case "growing":
      return `growing ${rate(drain.per_second)}`;
    case "steady":
      return "neither grows nor shrinks";
    case "stalled":
      return `nothing settled for ${span(drain.for_seconds)}`;
    default:
      return "too early to say when it clears";
  }
}

/** The forecast's long form: for who points at it, and in the details. */
function forecastFully(c) {
  const drain = c.drain;
  if (drain.forecast !== "draining" || drain.high_seconds == null) return "";
  return `in ${span(drain.low_seconds)} to ${span(drain.high_seconds)}, with a probability of ${percent(drain.confidence)}; most likely in ${span(drain.likely_seconds)}`;
}

// Writing to the page, only what is new.

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
function mark(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}
function make(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
const svg = (tag, attributes = {}) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};
const clone = (id) => $(id).content.cloneNode(true);

function showHealth(node, health) {
  mark(node.querySelector("use"), "href", `#is-${health}`);
  say(node.querySelector(".word"), word(health));
}

/** The parts of some time by state, most first; those that can't be seen are left out. */
function parts(spent) {
  const all = Object.values(spent).reduce((sum, s) => sum + s, 0) || 1;
  return STATES.map((state) => [state, (spent[state] ?? 0) / all])
    .filter(([, ratio]) => ratio >= 0.005)
    .sort((a, b) => b[1] - a[1]);
}

function drawBar(bar, shares) {
  const key = shares.map(([state, ratio]) => `${state}${Math.round(ratio * 100)}`).join();
  if (bar.dataset.key === key) return;
  bar.dataset.key = key;
  bar.replaceChildren(
    ...shares.map(([state, ratio]) => {
      const part = make("i", { "data-state": state });
      part.style.width = percent(ratio).replace(" ", "");
      return part;
    }),
  );
}

// Asking the hub.

const TOKEN = "weir token";
const token = () => sessionStorage.getItem(TOKEN);
function keepToken(text) {
  if (text) sessionStorage.setItem(TOKEN, text);
  else sessionStorage.removeItem(TOKEN);
  $("forget").hidden = !text;
}

/** What the hub refuses, in its own words. */
class Refused extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token()) headers.set("Authorization", `Bearer ${token()}`);
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", redirect: "error", ...options, headers });
  } catch (error) {
    if (options.method === "POST")
      throw new Error("The hub does not answer; whether it was done is not known.");
    throw error;
  }
  if (!answer.ok) {
    const text = await answer.text();
    let why = text;
    try {
      why = JSON.parse(text).error ?? text;
    } catch {
      // Not the hub's own words, but all there are.
    }
    throw new Refused(answer.status, why || `${answer.status} ${answer.statusText}`);
  }
  return answer;
}

const read = async (path, signal = AbortSignal.timeout(20_000)) =>
  (await ask(path, { signal })).json();
const order = async (path, body) =>
  (
    await ask(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(60_000),
    })
  ).json();
const at = (name, rest) => `/v1/consumers/${encodeURIComponent(name)}/${rest}`;

// The past: ten minutes, from the hub at first, then from what it says each second.

const WINDOW = 600;
const EVERY = 4.5; // the hub has a point every five seconds; what comes is not to the millisecond
const GAP = 16;
let past = { at: [], of: new Map() };
let skew = 0; // the hub's clock is ahead of ours by so many seconds
const hubNow = () => Date.now() / 1000 + skew;
const nothing = (length) => ({
  depth: Array(length).fill(null),
  lag: Array(length).fill(null),
  in: Array(length).fill(null),
  out: Array(length).fill(null),
});

async function readPast(signal) {
  const answer = await ask("/v1/history", { signal });
  const date = Date.parse(answer.headers.get("Date")) / 1000;
  const off = date + 0.5 - Date.now() / 1000;
  skew = Math.abs(off) > 3 ? off : 0; // the header has whole seconds
  const history = await answer.json();
  past = {
    at: history.at,
    of: new Map(
      history.consumers.map((c) => [
        c.name,
        { depth: c.queue_messages, lag: c.lag_seconds, in: c.in, out: c.out },
      ]),
    ),
  };
}

function addPoint() {
  const now = hubNow();
  if (past.at.length && now - past.at.at(-1) < EVERY) return;
  const known = past.at.length;
  past.at.push(now);
  for (const c of status.consumers) {
    let own = past.of.get(c.name);
    if (!own) past.of.set(c.name, (own = nothing(known)));
    own.depth.push(c.queue_messages);
    own.lag.push(c.lag_seconds);
    own.in.push(c.rates.in);
    own.out.push(c.rates.out);
  }
  const old = past.at.findIndex((t) => t >= now - WINDOW - 10);
  if (old < 1) return;
  past.at.splice(0, old);
  for (const own of past.of.values())
    for (const points of Object.values(own)) points.splice(0, old);
}

/** The round number that is the top of a scale. */
function top(values, live, least) {
  let most = Math.max(least, live);
  for (const value of values) if (value > most) most = value;
  const size = 10 ** Math.floor(Math.log10(most));
  return size * [1, 2, 5, 10].find((step) => size * step >= most * 0.999);
}
const TIMES = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400];
function topTime(values, live, least) {
  let most = Math.max(least, live);
  for (const value of values) if (value > most) most = value;
  return TIMES.find((step) => step >= most) ?? Math.ceil(most / 86400) * 86400;
}
const briefTime = (s) =>
  s < 60 ? `${s} s` : s < 3600 ? `${s / 60} min` : s < 86400 ? `${s / 3600} h` : `${s / 86400} d`;

/** The line through the points, broken where there were none, and what is below it. */
function paths(values, live, now, width, height, most, left = 0) {
  let [line, area, first, last] = ["", "", null, 0];
  const x = (t) => (left + ((t - now + WINDOW) / WINDOW) * width).toFixed(1);
  const close = () => {
    if (first !== null) area += `L${x(last)} ${height}L${x(first)} ${height}Z`;
    first = null;
  };
  const add = (t, value) => {
    if (value == null || t < now - WINDOW) return;
    if (first !== null && t - last > GAP) close();
    const point = `${first === null ? "M" : "L"}${x(t)} ${(height - (Math.min(value, most) / most) * height).toFixed(1)}`;
    first ??= t;
    last = t;
    line += point;
    area += point;
  };
  for (let i = 0; i < values.length; i++) add(past.at[i], values[i]);
  if (live != null) add(now, live);
  close();
  return { line, area };
}

function spark(node, values, live, now, scale, label, least) {
  const most = scale(values, live, least);
  const drawn = paths(values, live, now, 120, 30, most);
  node.line.setAttribute("d", drawn.line);
  node.area.setAttribute("d", drawn.area);
  say(node.scale, label(most));
}

// The hub at large.

let status = null;
let stale = false;
let drawn = false;

function drawTop() {
  const all = status.consumers;
  const sum = (of) => all.reduce((total, c) => total + of(c), 0);
  say($("hub"), status.hub);
  say($("uptime"), `up ${age(status.uptime_seconds)}`);
  say($("total-waiting"), count(sum((c) => c.queue_messages)));
  say($("total-lag"), span(Math.max(0, ...all.map((c) => c.lag_seconds))));
  say($("total-in"), rate(sum((c) => c.rates.in)));
  say($("total-out"), rate(sum((c) => c.rates.out)));
  say($("total-dead"), count(sum((c) => c.dead_letters)));
  drawIntake();
  drawHealths();
}

const ICONS = {
  ok: "2f9e63",
  paused: "6b82bf",
  behind: "c9a21a",
  falling_behind: "e07b2a",
  stalled: "d6323f",
  halted: "99152a",
  stale: "8a949c",
};

/** What is seen of the page when another one is in front of it. */
function drawTab() {
  const worst = Math.max(0, ...status.consumers.map((c) => HEALTHS.indexOf(c.health)));
  const bad = status.consumers.filter((c) => HEALTHS.indexOf(c.health) > 2).length;
  const title = `${stale ? "? " : bad ? `(${bad}) ` : ""}${status.hub} · weir`;
  if (document.title !== title) document.title = title;
  const bars = [9, 14, 20]
    .map((height, index) => `<path d="M${7 + 9 * index} 27v-${height}"/>`)
    .join("");
  const colour = ICONS[stale ? "stale" : HEALTHS[worst]];
  const drawing = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" stroke="#${colour}" stroke-width="6" stroke-linecap="round">${bars}</svg>`;
  mark($("icon"), "href", `data:image/svg+xml,${encodeURIComponent(drawing)}`);
}

function intake() {
  const lines = status.sources.map((source) => {
    const ends = source.endpoints;
    const refused = Object.values(source.refused).reduce((sum, n) => sum + n, 0);
    const gaps = ends.reduce((sum, end) => sum + end.gaps, 0);
    const alone = ends.filter((end) => !end.connections && !end.endpoint.startsWith("inproc:"));
    // Who binds can't miss anybody in particular.
    const loose = alone.filter((end) => !end.bound);
    const doubt = ends.some((end) => end.loss === "possible");
    const facts = [`${count(source.received)} received`];
    if (source.lag_seconds != null) facts.push(`${span(source.lag_seconds)} under way`);
    if (loose.length && ends.length > 1)
      facts.push(`not connected: ${loose.map((end) => end.endpoint).join(", ")}`);
    if (gaps) facts.push(`${count(gaps)} lost before the hub`);
    else if (doubt)
      facts.push(
        many(
          ends.reduce((sum, end) => sum + end.reconnects, 0),
          "reconnection",
        ),
      );
    if (refused) facts.push(`${count(refused)} refused`);
    return {
      is:
        loose.length && loose.length === ends.length
          ? "bad"
          : loose.length || gaps || doubt
            ? "doubt"
            : "good",
      mark: loose.length
        ? loose.length === ends.length
          ? "cut off"
          : "partly cut off"
        : gaps
          ? "lossy"
          : doubt
            ? "loss possible"
            : alone.length && alone.length === ends.length
              ? "listening"
              : "connected",
      name: ends.length
        ? ends[0].endpoint + (ends.length > 1 ? ` and ${ends.length - 1} more` : "")
        : `source ${source.source}`,
      facts,
    };
  });
  const journal = status.journal;
  if (!journal)
    lines.push({
      is: "good",
      mark: "no journal",
      name: "",
      facts: ["what waits is lost when the hub stops"],
    });
  else {
    const behind = journal.end - journal.durable;
    const facts = [
      `${bytes(journal.bytes)} in ${many(journal.segments, "segment")}`,
      `${count(Math.max(0, behind))} not synced yet`,
    ];
    const wrong = journal.write_errors + journal.sync_errors;
    if (journal.state === "failed") facts.unshift(journal.why);
    if (wrong) facts.push(`${many(wrong, "error")} of the disk`);
    if (journal.unjournaled) facts.push(`${count(journal.unjournaled)} not written`);
    if (journal.corrupt_messages) facts.push(`${count(journal.corrupt_messages)} damaged`);
    const doubt = wrong || journal.unjournaled || journal.corrupt_ranges;
    lines.push({
      is: journal.state === "failed" ? "bad" : doubt ? "doubt" : "good",
      mark: journal.state === "failed" ? "failed" : "writing",
      name: "Journal",
      facts,
    });
  }
  for (const producer of status.producers ?? []) {
    if (!producer.failed_in_a_row) continue;
    lines.push({
      is: "doubt",
      mark: "failing",
      name: producer.name,
      facts: [`failed ${count(producer.failed_in_a_row)} times in a row`],
    });
  }
  if (status.publish?.refused)
    lines.push({
      is: "doubt",
      mark: "refused",
      name: "Publishing",
      facts: [`${count(status.publish.refused)} refused, ${count(status.publish.sent)} sent`],
    });
  return lines;
}

function drawIntake() {
  const list = $("intake");
  const lines = intake();
  while (list.children.length > lines.length) list.lastChild.remove();
  lines.forEach((line, index) => {
    const item =
      list.children[index] ??
      list.appendChild(
        make(
          "li",
          {},
          make("span", { className: "mark" }),
          make("b"),
          make("span", { className: "rest" }),
        ),
      );
    if (item.className !== line.is) item.className = line.is;
    const [is, name, rest] = item.children;
    say(is, line.mark);
    say(name, line.name);
    say(rest, line.facts.join(" · "));
    mark(item, "title", `${line.name}: ${line.facts.join(" · ")}`);
  });
}

const chosen = new Set();

function drawHealths() {
  const group = $("healths");
  if (!group.children.length) {
    group.append(
      ...HEALTHS.toReversed().map((health) => {
        const button = make(
          "button",
          {
            type: "button",
            className: "health",
            "data-health": health,
            "aria-pressed": "false",
            hidden: true,
          },
          svg("svg", { "aria-hidden": "true" }),
          make("span"),
        );
        button.firstChild.append(svg("use", { href: `#is-${health}` }));
        button.addEventListener("click", () => {
          if (!chosen.delete(health)) chosen.add(health);
          button.setAttribute("aria-pressed", chosen.has(health));
          arrange(true);
        });
        return button;
      }),
    );
  }
  for (const button of group.children) {
    const health = button.dataset.health;
    const these = status.consumers.filter((c) => c.health === health).length;
    const hidden = !these && !chosen.has(health);
    if (button.hidden !== hidden) button.hidden = hidden;
    say(button.lastChild, `${these} ${word(health)}`);
  }
}

// The rows.

const rows = new Map();
const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const row = rows.get(entry.target.dataset.name);
      if (!row) continue;
      row.visible = entry.isIntersecting;
      if (row.visible) drawRow(row);
    }
  },
  { rootMargin: "200px" },
);

function newRow(c) {
  const node = clone("row").firstElementChild;
  const find = (selector) => node.querySelector(selector);
  const line = (of) => ({
    line: find(`${of} .line`),
    area: find(`${of} .area`),
    scale: find(`${of} .scale`),
  });
  const row = {
    c,
    node,
    visible: false,
    spent: [],
    open: find(".open"),
    kind: find(".kind"),
    health: find(".health"),
    forecast: find(".forecast"),
    depth: find(".depth .number"),
    depthLine: line(".depth"),
    lag: find(".lag .number"),
    lagLine: line(".lag"),
    in: find(".in"),
    out: find(".out"),
    failed: find(".failed"),
    dead: find(".dead"),
    bar: find(".bar"),
    mostly: find(".mostly"),
    pause: find(".pause"),
  };
  node.dataset.name = c.name;
  row.open.textContent = c.name;
  row.open.title = c.name;
  node.addEventListener("click", (event) => {
    // Who marks text with the mouse wants to copy it.
    if (!event.target.closest(".pause") && !String(getSelection())) show(c.name);
  });
  row.pause.addEventListener("click", () => askPause(row.c));
  seen.observe(node);
  rows.set(c.name, row);
  return row;
}

/** How the last minute was spent; since the start, as long as that is all that is known. */
function lately(row) {
  const [then, now] = [row.spent[0], row.c.time_seconds];
  if (!then || then === now) return parts(now);
  const spent = {};
  for (const state of STATES) spent[state] = Math.max(0, (now[state] ?? 0) - (then[state] ?? 0));
  return parts(Object.values(spent).some((s) => s > 0) ? spent : now);
}

function number(node, value, text) {
  say(node, text);
  node.classList.toggle("none", !value);
}

function drawRow(row) {
  const c = row.c;
  const now = hubNow();
  mark(row.node, "data-health", c.health);
  say(row.kind, c.kind === c.name ? word(c.state) : `${c.kind} · ${word(c.state)}`);
  showHealth(row.health, c.health);
  say(row.forecast, forecast(c));
  mark(row.forecast, "title", forecastFully(c));
  number(row.depth, c.queue_messages, count(c.queue_messages));
  number(row.lag, c.lag_seconds, span(c.lag_seconds));
  number(row.in, c.rates.in, rate(c.rates.in));
  number(row.out, c.rates.out, rate(c.rates.out));
  number(row.failed, c.failed, count(c.failed));
  number(row.dead, c.dead_letters, count(c.dead_letters));
  row.dead.classList.toggle("some", c.dead_letters > 0);
  const own = past.of.get(c.name);
  if (own && row.visible) {
    spark(row.depthLine, own.depth, c.queue_messages, now, top, brief, 10);
    spark(row.lagLine, own.lag, c.lag_seconds, now, topTime, briefTime, 5);
  }
  const shares = lately(row);
  drawBar(row.bar, shares);
  const text = shares.slice(0, 2).map(([state, ratio]) => `${percent(ratio)} ${word(state)}`);
  say(row.mostly, text[0] ?? "");
  mark(
    row.mostly,
    "title",
    `${text.join(", ")}${c.workers > 1 ? `, of ${c.workers} workers` : ""}`,
  );
  const paused = c.state === "paused" || c.health === "paused";
  say(row.pause, paused ? "Resume" : "Pause");
  mark(row.pause, "aria-label", `${paused ? "Resume" : "Pause"} ${c.name}`);
}

const ORDERS = {
  // Among those that are well nobody is worse: by name, so that they stand still.
  worst: (a, b) =>
    HEALTHS.indexOf(b.health) - HEALTHS.indexOf(a.health) ||
    (HEALTHS.indexOf(a.health) > 1 ? Math.round(b.lag_seconds) - Math.round(a.lag_seconds) : 0),
  name: () => 0,
  lag: (a, b) => b.lag_seconds - a.lag_seconds,
  depth: (a, b) => b.queue_messages - a.queue_messages,
};
const byName = new Intl.Collator("en", { numeric: true }).compare;

let handled = 0;
const HOLD = 5000; // nothing moves away from under a hand
for (const kind of ["pointermove", "pointerdown", "keydown", "focusin"]) {
  $("consumers").addEventListener(kind, () => (handled = performance.now()), { passive: true });
}

/** Puts the rows in order. What changes by itself waits until nobody is at them. */
function arrange(now = false) {
  if (!status) return;
  const list = $("consumers");
  const text = $("filter").value.trim().toLowerCase();
  const order = ORDERS[$("sort").value];
  const fits = (c) => c.name.toLowerCase().includes(text) && (!chosen.size || chosen.has(c.health));
  const wanted = status.consumers
    .filter(fits)
    .sort((a, b) => order(a, b) || byName(a.name, b.name));
  const names = wanted.map((c) => c.name);
  const held = !now && performance.now() - handled < HOLD && list.children.length === names.length;
  if (!held) {
    const focused = list.contains(document.activeElement) ? document.activeElement : null;
    const stay = new Set(names);
    for (const node of [...list.children]) if (!stay.has(node.dataset.name)) node.remove();
    names.forEach((name, index) => {
      const { node } = rows.get(name);
      if (list.children[index] !== node) list.insertBefore(node, list.children[index] ?? null);
    });
    // To move it takes the focus from it.
    if (focused && document.activeElement !== focused && focused.isConnected)
      focused.focus({ preventScroll: true });
  }
  const all = status.consumers.length;
  say(
    $("shown"),
    names.length === all ? many(all, "consumer") : `${names.length} of ${many(all, "consumer")}`,
  );
  const empty = $("empty");
  empty.hidden = names.length > 0;
  if (!empty.hidden && empty.dataset.of !== text) {
    empty.dataset.of = text;
    const all = make("button", { type: "button" }, "Show all");
    all.addEventListener("click", () => {
      $("filter").value = "";
      chosen.clear();
      for (const button of $("healths").children) button.setAttribute("aria-pressed", "false");
      arrange(true);
      $("filter").focus();
    });
    empty.replaceChildren(
      text ? `No consumer has “${text}” in its name.` : "No consumer is like that now.",
      " ",
      all,
    );
  }
}

function take(next) {
  status = next;
  const names = new Set();
  const now = performance.now();
  for (const c of status.consumers) {
    names.add(c.name);
    const row = rows.get(c.name) ?? newRow(c);
    row.c = c;
    // Points of the last minute, ten seconds apart.
    const last = row.spent.at(-1);
    if (!last || now - row.spentAt >= 10_000) {
      row.spent.push(c.time_seconds);
      row.spentAt = now;
      if (row.spent.length > 7) row.spent.shift();
    }
  }
  for (const [name, row] of rows) {
    if (names.has(name)) continue;
    seen.unobserve(row.node);
    row.node.remove();
    rows.delete(name);
  }
  addPoint();
  drawTab();
  if (!drawn) {
    drawn = true;
    requestAnimationFrame(draw);
  }
}

function draw() {
  drawn = false;
  performance.mark("draw");
  drawTop();
  arrange();
  for (const row of rows.values()) drawRow(row);
  drawDetail();
  if ($("main").hasAttribute("aria-busy")) {
    $("main").removeAttribute("aria-busy");
    const open = [...rows.keys()].find((name) => place(name) === location.hash);
    if (open) show(open);
  }
  performance.measure("update", "draw");
  performance.clearMarks("draw");
}

// One consumer in detail.

let detail = null;
/** The address of a consumer's details on this page. */
const place = (name) => `#/${encodeURIComponent(name)}`;

function show(name) {
  const row = rows.get(name);
  if (!row) return;
  if (detail?.name !== name) {
    hide(false);
    const node = $("detail");
    node.replaceChildren(clone("detail-body"));
    const find = (selector) => node.querySelector(selector);
    detail = {
      name,
      find,
      why: null,
      charts: [],
      letters: { list: null, more: false, of: 0, reason: "" },
    };
    const own = () => past.of.get(name) ?? nothing(past.at.length);
    detail.charts = [
      chart(
        find('[data-of="depth"]'),
        ["Depth"],
        () => [own().depth],
        (c) => [c.queue_messages],
        top,
        10,
        count,
        brief,
      ),
      chart(
        find('[data-of="lag"]'),
        ["Lag"],
        () => [own().lag],
        (c) => [c.lag_seconds],
        topTime,
        5,
        span,
        briefTime,
      ),
      chart(
        find('[data-of="rates"]'),
        ["In", "Out"],
        () => [own().in, own().out],
        (c) => [c.rates.in, c.rates.out],
        top,
        1,
        rate,
        (r) => `${brief(r)}/s`,
      ),
    ];
    find("h2").textContent = name;
    find(".close").addEventListener("click", () => hide());
    find('[data-act="pause"]').addEventListener("click", () => askPause(rows.get(name).c));
    find('[data-act="skip"]').addEventListener("click", () => askSkip(rows.get(name).c));
    find('[data-act="replay"]').addEventListener("click", () => askReplay(rows.get(name).c));
    find(".reasons").addEventListener("change", (event) => {
      detail.letters.reason = event.target.value;
      drawLetters();
    });
    find(".requeue-all").addEventListener("click", () => askLetters("requeue"));
    find(".purge-all").addEventListener("click", () => askLetters("purge"));
    find(".letters .more").addEventListener("click", () => readLetters(true));
    row.node.dataset.open = "";
    row.open.setAttribute("aria-expanded", "true");
    history.replaceState(null, "", place(name));
    node.hidden = false;
    node.scrollTop = 0;
    drawDetail();
    readWhy();
    if (row.c.dead_letters) readLetters();
  }
  coverPage();
  detail.find("h2").focus({ preventScroll: true });
}

function hide(back = true) {
  if (!detail) return;
  const row = rows.get(detail.name);
  for (const one of detail.charts) one.end();
  detail = null;
  $("detail").hidden = true;
  $("detail").replaceChildren();
  coverPage();
  if (row) {
    delete row.node.dataset.open;
    row.open.removeAttribute("aria-expanded");
  }
  if (back) {
    history.replaceState(null, "", location.pathname);
    row?.open.focus({ preventScroll: true });
  }
}

/** Where the details cover the page, nothing below them is to be reached. */
const narrow = matchMedia("(max-width: 1000px)");
function coverPage() {
  const covered = Boolean(detail) && narrow.matches;
  for (const node of [...document.querySelectorAll("header, .totals, .tools, .list, footer")])
    node.inert = covered;
}
narrow.addEventListener("change", coverPage);

async function readWhy() {
  const mine = detail;
  if (!mine || mine.asking) return;
  mine.asking = true;
  mine.askedAt = performance.now();
  try {
    mine.why = await read(at(mine.name, "why"));
  } catch {
    // What it said before stays; the page says above that the hub is not there.
  } finally {
    mine.asking = false;
  }
  if (mine === detail) drawWhy();
}

/** Text in which `this` is code. */
function prose(node, text) {
  if (node.dataset.text === text) return;
  node.dataset.text = text;
  node.replaceChildren(
    ...text.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part)),
  );
}

function fill(body, lines) {
  const key = JSON.stringify(lines);
  if (body.dataset.key === key) return;
  body.dataset.key = key;
  body.replaceChildren(
    ...lines.map((cells) =>
      make(
        "tr",
        {},
        ...cells.map((cell, index) =>
          make(
            "td",
            { className: index && index >= cells.length - cells.right ? "right" : "" },
            cell,
          ),
        ),
      ),
    ),
  );
}
const line = (right, ...cells) => Object.assign(cells, { right });

function drawWhy() {
  const { find, why } = detail;
  if (!why) return;
  prose(find(".reason"), why.reason);
  prose(find(".advice"), why.advice);
  say(find("#detail-time small"), `in the last ${age(Math.max(1, why.over_seconds))}`);
  const shares = why.time
    .filter((share) => share.ratio >= 0.005)
    .map((share) => [share.state, share.ratio]);
  drawBar(find("section .bar"), shares);
  const legend = find(".legend");
  const key = JSON.stringify(shares.map(([state, ratio]) => [state, percent(ratio)]));
  if (legend.dataset.key !== key) {
    legend.dataset.key = key;
    legend.replaceChildren(
      ...shares.map(([state, ratio]) =>
        make("li", {}, make("i", { "data-state": state }), `${word(state)} ${percent(ratio)}`),
      ),
    );
  }
  const hand = find(".hand");
  hand.hidden = !why.in_hand.length;
  fill(
    hand.tBodies[0],
    why.in_hand.map((one) =>
      line(
        1,
        `${one.worker + 1}`,
        word(one.state),
        `${one.seq}${one.topic ? ` ${one.topic}` : ""}`,
        span(one.for_seconds),
      ),
    ),
  );
  const ago = (ns) => `${age(hubNow() - ns / 1e9)} ago`;
  for (const [name, lines] of [
    ["failures", why.failures.map((one) => line(2, one.cause, count(one.times), ago(one.at_ns)))],
    [
      "slowest",
      why.slowest.map((one) =>
        line(
          2,
          `${one.topic}${one.messages > 1 ? ` (${one.messages} messages)` : ""}`,
          took(one.seconds),
          ago(one.at_ns),
        ),
      ),
    ],
    [
      "costly",
      why.topics.map((one) =>
        line(2, one.topic, count(Math.round(one.messages)), took(one.seconds)),
      ),
    ],
  ]) {
    const part = find(`.${name}`);
    part.hidden = !lines.length;
    fill(part.querySelector("tbody"), lines);
  }
}

function ledger(c) {
  const lines = [
    ["Received", count(c.received)],
    ["Consumed", count(c.consumed)],
    ["Waiting", count(c.waiting)],
    ["In flight", count(c.in_flight)],
    ["Failed", count(c.failed), c.failed],
    ["Retried", count(c.retried)],
    ["Dead-lettered", count(c.dead_lettered), c.dead_lettered],
  ];
  for (const [reason, n] of Object.entries(c.dropped))
    if (n) lines.push([`Dropped: ${word(reason)}`, count(n), n]);
  if (c.panics) lines.push(["Panics", count(c.panics), c.panics]);
  if (c.retrying) lines.push(["Retrying", count(c.retrying)]);
  lines.push(["Queue", bytes(c.queue_bytes)]);
  if (c.behind_messages) lines.push(["Only in journal", count(c.behind_messages)]);
  if (c.retention_used_ratio >= 0.01)
    lines.push(["Of retention", percent(c.retention_used_ratio), c.retention_used_ratio > 0.8]);
  if (c.service_per_second) lines.push(["Manages", rate(c.service_per_second)]);
  if (c.processing.mean_seconds != null)
    lines.push(
      ["A message takes", took(c.processing.mean_seconds)],
      ["At most", took(c.processing.max_seconds)],
    );
  if (c.last_success_timestamp_seconds)
    lines.push(["Last success", `${age(hubNow() - c.last_success_timestamp_seconds)} ago`]);
  if (c.forecast_accuracy)
    lines.push(["Forecasts right", percent(c.forecast_accuracy.contained_ratio)]);
  return lines;
}

function drawDetail() {
  if (!detail) return;
  const row = rows.get(detail.name);
  if (!row) return hide();
  const { find, letters } = detail;
  const c = row.c;
  mark($("detail"), "data-health", c.health);
  showHealth(find(".health"), c.health);
  const topics = c.topics.map((topic) => topic || "everything").join(", ");
  say(
    find(".meta"),
    `${forecast(c)} · ${c.kind} · ${word(c.state)} · ${many(c.workers, "worker")} · ${topics}`,
  );
  const paused = c.health === "paused" || c.state === "paused";
  say(find('[data-act="pause"]'), paused ? "Resume…" : "Pause…");
  for (const one of detail.charts) one.draw();
  const list = find(".ledger");
  const lines = ledger(c);
  while (list.children.length > lines.length) list.lastChild.remove();
  lines.forEach(([name, value, some], index) => {
    const pair = list.children[index] ?? list.appendChild(make("div", {}, make("dt"), make("dd")));
    say(pair.firstChild, name);
    say(pair.lastChild, value);
    pair.classList.toggle("some", Boolean(some));
  });
  say(find("#detail-letters small"), c.dead_letters ? count(c.dead_letters) : "");
  say(find(".letters .none"), c.dead_letters ? "" : "None.");
  if (
    letters.of !== c.dead_letters &&
    !letters.older &&
    performance.now() - (letters.askedAt ?? 0) > 3000
  )
    readLetters();
  if (!stale && performance.now() - detail.askedAt > 3000) readWhy();
}

/** A chart of the last ten minutes, with scales, and with what was at the time pointed at. */
function chart(figure, names, values, live, scale, least, words, labels) {
  const [left, head, foot, height] = [44, 10, 18, 76];
  const second = names.length > 1;
  const caption = make("figcaption");
  const texts = names.map((name, index) => {
    const text = make("b");
    const key = second ? make("span", { className: `key${index ? " second" : ""}` }) : "";
    caption.append(make("span", {}, key, `${name} `, text));
    return text;
  });
  const when = make("span", { className: "when" });
  caption.append(when);
  const picture = svg("svg", { role: "img" });
  const plot = picture.appendChild(svg("g", { transform: `translate(0 ${head})` }));
  const grid = [0, 0.5, 1].map((part) =>
    plot.appendChild(svg("line", { class: part ? "grid" : "grid base", x1: left })),
  );
  const ticks = [0, 0.5, 1].map(() =>
    plot.appendChild(svg("text", { x: left - 6, "text-anchor": "end" })),
  );
  const hours = Array.from({ length: 5 }, () =>
    plot.appendChild(svg("text", { "text-anchor": "middle", y: height + foot - 2 })),
  );
  const area = plot.appendChild(svg("path", { class: "area" }));
  const lines = names.map((_, index) =>
    plot.appendChild(svg("path", { class: index ? "second" : "line" })),
  );
  const cursor = plot.appendChild(
    svg("line", { class: "cursor", y1: 0, y2: height, visibility: "hidden" }),
  );
  figure.replaceChildren(caption, picture);
  let [width, pointed] = [0, null];
  const size = new ResizeObserver(([entry]) => {
    width = Math.floor(entry.contentRect.width);
    draw();
  });
  size.observe(figure);
  picture.addEventListener("pointermove", (event) => {
    pointed = event.offsetX;
    draw();
  });
  picture.addEventListener("pointerleave", () => {
    pointed = null;
    draw();
  });

  function draw() {
    const row = detail && rows.get(detail.name);
    if (!row || width <= left) return;
    const now = hubNow();
    const wide = width - left;
    const [series, latest] = [values(), live(row.c)];
    const most = scale(series.flat(), Math.max(...latest), least);
    grid.forEach((node, index) => {
      const y = height - (height * index) / 2;
      node.setAttribute("x2", width);
      node.setAttribute("y1", y);
      node.setAttribute("y2", y);
      ticks[index].setAttribute("y", y + 4);
      say(ticks[index], index === 1 ? "" : index ? labels(most) : "0");
    });
    // A clock time at each second full minute.
    const first = Math.ceil((now - skew - WINDOW) / 120) * 120;
    hours.forEach((node, index) => {
      const t = first + 120 * index;
      const x = left + ((t + skew - now + WINDOW) / WINDOW) * wide;
      node.setAttribute("x", x.toFixed(1));
      node.setAttribute("visibility", x > left + 14 && x < width - 14 ? "visible" : "hidden");
      say(node, clock(t));
    });
    lines.forEach((node, index) => {
      const shape = paths(series[index], latest[index], now, wide, height, most, left);
      node.setAttribute("d", shape.line);
      if (!index) area.setAttribute("d", second ? "" : shape.area);
    });
    let shown = latest;
    let text = "now";
    if (pointed !== null && past.at.length) {
      const t = now - WINDOW + ((Math.max(left, pointed) - left) / wide) * WINDOW;
      const index = past.at.reduce(
        (best, other, i) => (Math.abs(other - t) < Math.abs(past.at[best] - t) ? i : best),
        0,
      );
      if (series[0][index] != null && Math.abs(past.at[index] - t) < GAP) {
        shown = series.map((own) => own[index]);
        text = secondsFormat.format(new Date((past.at[index] - skew) * 1000));
        const x = left + ((past.at[index] - now + WINDOW) / WINDOW) * wide;
        cursor.setAttribute("x1", x);
        cursor.setAttribute("x2", x);
      }
    }
    cursor.setAttribute("visibility", text === "now" ? "hidden" : "visible");
    texts.forEach((node, index) => say(node, words(shown[index])));
    say(when, text);
    const told = names.map((name, index) => {
      const own = series[index].filter((value) => value != null);
      return `${name}: now ${words(latest[index])}, at most ${words(Math.max(latest[index], ...own))}`;
    });
    mark(picture, "aria-label", `${told.join("; ")}; in the last ten minutes`);
  }
  return { draw, end: () => size.disconnect() };
}

// Dead letters.

/** A time as the hub has it: seconds, nanoseconds or a text; in milliseconds. */
function moment(value) {
  if (typeof value === "string") return Date.parse(value);
  return value > 1e15 ? value / 1e6 : value * 1000;
}

async function readLetters(older = false) {
  const mine = detail;
  const { letters } = mine;
  if (letters.asking) return;
  letters.asking = true;
  letters.askedAt = performance.now();
  try {
    const before = older && letters.list?.length ? `&before=${letters.list.at(-1).id}` : "";
    const page = await read(at(mine.name, `dead-letters?limit=50${before}`));
    letters.list = before ? [...letters.list, ...page.letters] : page.letters;
    letters.older = Boolean(before);
    letters.more = page.more;
    letters.of = rows.get(mine.name)?.c.dead_letters ?? 0;
    letters.wrong = "";
  } catch (error) {
    letters.wrong = `The dead letters can't be read: ${error.message}`;
  } finally {
    letters.asking = false;
  }
  if (mine === detail) drawLetters();
}

const shownLetters = () =>
  (detail.letters.list ?? []).filter(
    (letter) => !detail.letters.reason || letter.reason === detail.letters.reason,
  );

function drawLetters() {
  const { find, letters } = detail;
  const reasons = [...new Set((letters.list ?? []).map((letter) => letter.reason))].sort();
  const select = find(".reasons");
  if (letters.reason && !reasons.includes(letters.reason)) letters.reason = "";
  select.replaceChildren(
    make("option", { value: "" }, "any"),
    ...reasons.map((reason) => make("option", { value: reason }, word(reason))),
  );
  select.value = letters.reason;
  find(".letters-tools").hidden = !letters.list?.length;
  find(".letters .more").hidden = !letters.more;
  const list = find(".letter-list");
  const kept = new Map([...list.children].map((node) => [node.dataset.id, node]));
  const nodes = shownLetters().map((letter) => {
    const key = `${letter.id}${letter.requeued ? " again" : ""}`;
    return kept.get(key) ?? newLetter(letter, key);
  });
  list.replaceChildren(...nodes);
  say(
    find(".letters .none"),
    letters.wrong || (letters.list?.length || rows.get(detail.name).c.dead_letters ? "" : "None."),
  );
}

function payload(letter) {
  const text = typeof letter.payload === "string" ? letter.payload : (letter.payload?.hex ?? "");
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // cut short, or no JSON
  }
}

function newLetter(letter, key) {
  const node = clone("letter").firstElementChild;
  const find = (selector) => node.querySelector(selector);
  node.dataset.id = key;
  const aside = moment(letter.set_aside_at) / 1000;
  find(".at").textContent = clock(aside - skew);
  find(".topic").textContent = letter.topic;
  find(".tag").textContent = letter.requeued ? "comes again" : word(letter.reason);
  find(".causes").append(
    ...letter.causes.map((cause) =>
      make("li", {}, cause.times > 1 ? `${cause.text} (${cause.times} times)` : cause.text),
    ),
  );
  find(".facts").textContent =
    `letter ${letter.id} · message ${letter.seq} · ${many(letter.attempts, "attempt")} · ${bytes(letter.payload_bytes)}`;
  // Only of those that are looked at: there may be very many.
  find("details").addEventListener(
    "toggle",
    () => (find(".payload").textContent = payload(letter)),
    { once: true },
  );
  const name = detail.name;
  find(".requeue").addEventListener("click", () => askLetter("requeue", name, letter));
  find(".purge").addEventListener("click", () => askLetter("purge", name, letter));
  return node;
}

const LETTERS = {
  requeue: {
    title: "Requeue",
    yes: "Requeue",
    after: "delivered again, after what waits now. One that fails again comes back here.",
  },
  purge: {
    title: "Delete",
    yes: "Delete",
    danger: true,
    after: "deleted for good. Nothing brings them back.",
  },
};

function askLetter(what, name, letter) {
  const { title, yes, danger } = LETTERS[what];
  confirm({
    title: `${title} letter ${letter.id}?`,
    words:
      what === "requeue"
        ? `Message ${letter.seq} (${letter.topic}) will be delivered to ${name} again. If it fails again, it comes back here.`
        : `Message ${letter.seq} (${letter.topic}) will be deleted for good. ${name} will never get it.`,
    yes,
    danger,
    run: () => order(`/v1/dead-letters/${what}`, { consumer: name, ids: [letter.id] }),
  });
}

function askLetters(what) {
  const { title, yes, danger, after } = LETTERS[what];
  const { name, letters } = detail;
  const these = shownLetters();
  // If all are on the page, those are meant and none that comes meanwhile.
  const exact = !letters.more;
  const which = letters.reason ? ` with the reason “${word(letters.reason)}”` : "";
  confirm({
    title: exact
      ? `${title} ${many(these.length, "dead letter")} of ${name}?`
      : `${title} all dead letters of ${name}${which}?`,
    words: `${exact ? `The ${many(these.length, "letter")} shown here${which} will be` : `All${which}, also those that are not shown here and those that come until then, are`} ${after}`,
    yes,
    danger,
    run: () =>
      order(
        `/v1/dead-letters/${what}`,
        exact
          ? { consumer: name, ids: these.map((letter) => letter.id) }
          : { consumer: name, ...(letters.reason && { reason: letters.reason }) },
      ),
  });
}

// What is asked before something is done.

const waits = (c) =>
  c.queue_messages
    ? `${many(c.queue_messages, "message")} ${c.queue_messages === 1 ? "waits" : "wait"} for it now, the oldest for ${span(c.lag_seconds)}.`
    : "Nothing waits for it now.";

function askPause(c) {
  const paused = c.health === "paused" || c.state === "paused";
  confirm(
    paused
      ? {
          title: `Resume ${c.name}?`,
          words: `It gets messages again. ${waits(c)}`,
          yes: "Resume",
          run: () => order(at(c.name, "resume"), {}),
        }
      : {
          title: `Pause ${c.name}?`,
          words: `It gets no messages until it is resumed, also after a restart of the hub. ${status.journal ? "What comes for it is kept in the journal, as long as the journal keeps anything." : "This hub has no journal: when its queue is full, messages are lost or the intake waits, as its overflow policy says."} Others are not touched. ${waits(c)}`,
          yes: "Pause",
          run: () => order(at(c.name, "pause"), {}),
        },
  );
}

const UNITS = { minutes: 60, hours: 3600, days: 86400 };

/** Radio buttons, of which some have a number beside them. */
function choices(list) {
  const group = make("div", { role: "radiogroup", "aria-labelledby": "ask-title" });
  const read = [];
  list.forEach(({ label, value, number, unit }, index) => {
    const radio = make("input", {
      type: "radio",
      name: "choice",
      id: `choice-${index}`,
      checked: !index,
    });
    const input =
      number &&
      make("input", { type: "number", min: "0", step: "any", value: number, "aria-label": label });
    const units =
      unit &&
      make(
        "select",
        { "aria-label": "unit" },
        ...Object.keys(UNITS).map((name) =>
          make("option", { value: name, selected: name === unit }, name),
        ),
      );
    for (const node of [input, units])
      node?.addEventListener("focus", () => (radio.checked = true));
    group.append(
      make(
        "div",
        { className: "choice" },
        radio,
        make("label", { htmlFor: radio.id }, label),
        ...[input, units].filter(Boolean),
      ),
    );
    read.push(() => {
      if (!radio.checked) return null;
      if (!input) return value();
      const n = Number(input.value);
      if (input.value === "" || !(n >= 0)) {
        input.focus();
        throw new Error("A number is missing.");
      }
      return value(n * (units ? UNITS[units.value] : 1));
    });
  });
  return { group, chosen: () => read.map((one) => one()).find((value) => value) };
}

function askSkip(c) {
  const { group, chosen } = choices([
    { label: "All that waits", value: () => ({ to_head: true }) },
    {
      label: "Only what is older than",
      number: "1",
      unit: "hours",
      value: (older_than_seconds) => ({ older_than_seconds }),
    },
  ]);
  confirm({
    title: `Skip messages of ${c.name}?`,
    words: `They will not be delivered, and count as dropped with the reason “skipped”. A replay can bring them back as long as the journal has them. ${waits(c)}`,
    fields: group,
    yes: "Skip them",
    danger: true,
    run: () => order(at(c.name, "skip"), chosen()),
  });
}

function askReplay(c) {
  const { group, chosen } = choices([
    {
      label: "What came in the last",
      number: "1",
      unit: "hours",
      value: (since_seconds) => ({ since_seconds }),
    },
    {
      label: "From sequence number",
      number: "1",
      value: (from) => ({ from_sequence: Math.round(from) }),
    },
  ]);
  confirm({
    title: `Replay messages to ${c.name}?`,
    words:
      "They are read from the journal again and delivered once more, before what waits now. It must bear to see a message twice.",
    fields: group,
    yes: "Replay",
    run: () => order(at(c.name, "replay"), chosen()),
  });
}

const dialog = $("ask");
let asked = null;

function confirm(question) {
  asked = question;
  say($("ask-title"), question.title);
  say($("ask-words"), question.words);
  $("ask-fields").replaceChildren(...(question.fields ? [question.fields] : []));
  const yes = $("ask-yes");
  say(yes, question.yes);
  yes.classList.toggle("danger", Boolean(question.danger));
  wantToken(!token());
  wrong("");
  busy(false);
  dialog.showModal();
  const field = $("ask-token").hidden ? dialog.querySelector("#ask-fields input") : $("token");
  (field ?? $(question.danger ? "ask-no" : "ask-yes")).focus();
}

function wantToken(wanted) {
  $("ask-token").hidden = !wanted;
  $("token").value = "";
  $("token").removeAttribute("aria-invalid");
}
function wrong(text) {
  say($("ask-wrong"), text);
}
function busy(is) {
  $("ask-yes").disabled = is;
}

dialog.addEventListener("close", () => {
  asked?.cancelled?.();
  asked = null;
  $("token").value = "";
});
// A click beside it.
dialog.addEventListener("mousedown", (event) => event.target === dialog && dialog.close());
$("ask-no").addEventListener("click", () => dialog.close());
dialog.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = asked;
  if (!question || $("ask-yes").disabled) return;
  if (!$("ask-token").hidden) {
    const given = $("token").value.trim();
    if (!given) {
      wrong("A token is needed to act.");
      $("token").setAttribute("aria-invalid", "true");
      return $("token").focus();
    }
    // Anything else can't be in a header.
    keepToken(/^[\x21-\x7e]+$/.test(given) ? given : "?");
  }
  wrong("");
  busy(true);
  try {
    const outcome = await question.run();
    if (asked !== question) return toast(outcome?.text);
    asked = null;
    dialog.close();
    toast(outcome?.text);
    if (detail) {
      readWhy();
      if (detail.letters.list) readLetters();
    }
  } catch (error) {
    if (error.code === 401) keepToken(null);
    if (asked !== question) return toast(error.message);
    if (error.code === 401) {
      wantToken(true);
      $("token").setAttribute("aria-invalid", "true");
      $("token").focus();
      wrong("The hub refuses this token; nothing was done.");
    } else wrong(error.message);
  } finally {
    busy(false);
  }
});

let toasting;
function toast(text) {
  if (!text) return;
  $("toast").textContent = text[0].toUpperCase() + text.slice(1);
  clearTimeout(toasting);
  toasting = setTimeout(() => ($("toast").textContent = ""), 8000);
}

$("forget").hidden = !token();
$("forget").addEventListener("click", () => {
  keepToken(null);
  toast("The token is forgotten.");
});

// The keyboard.

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !dialog.open && detail && event.target !== $("filter")) hide();
  const here = event.target.closest?.("#consumers .row");
  if (!here || event.ctrlKey || event.altKey || event.metaKey) return;
  const to = {
    ArrowDown: () => here.nextElementSibling,
    ArrowUp: () => here.previousElementSibling,
    Home: () => here.parentNode.firstElementChild,
    End: () => here.parentNode.lastElementChild,
  }[event.key]?.();
  if (!to) return;
  event.preventDefault();
  const same = event.target.closest(".pause") ? ".pause" : ".open";
  to.querySelector(same).focus();
});
$("filter").addEventListener("input", () => arrange(true));
$("sort").addEventListener("change", () => arrange(true));

// The connection.

const SILENT = 5000; // the hub says something each second
const GONE = 15_000;
let lastAt = 0;
let triedAt = 0;
let everLive = false;

function live(is) {
  if (is === !stale && everLive) return;
  stale = !is;
  document.body.classList.toggle("stale", stale && everLive);
  mark($("link"), "data-is", is ? "live" : "lost");
  say(
    $("told"),
    is
      ? everLive
        ? "Connected to the hub again."
        : ""
      : "The connection to the hub is lost. What is shown is old.",
  );
  if (is) everLive = true;
  drawLink();
  if (status) drawTab();
}

function drawLink() {
  if (!stale && everLive) say($("link-words"), "Live");
  else if (everLive)
    say(
      $("link-words"),
      `No connection; what is shown is ${age((Date.now() - lastAt) / 1000)} old. Trying again`,
    );
  else say($("link-words"), stale ? "The hub does not answer. Trying again" : "Connecting");
}

/** Reads a stream of events until it ends; EventSource could not send the token. */
async function follow(signal) {
  const answer = await ask("/v1/events", { signal, headers: { Accept: "text/event-stream" } });
  await readPast(signal).catch((error) => {
    if (error.code !== 404) throw error;
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value.replaceAll("\r", "");
    const events = rest.split("\n\n");
    rest = events.pop();
    // Of several at once, after a delay, only the last is news.
    let latest = null;
    for (const event of events) {
      const lines = event.split("\n");
      if (lines.includes("event: status"))
        latest = lines
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5))
          .join("\n");
    }
    if (latest === null) continue;
    lastAt = Date.now();
    take(JSON.parse(latest));
    live(true);
  }
}

function needToken() {
  return new Promise((done) => {
    if (dialog.open) return setTimeout(done, 1000);
    confirm({
      title: "This hub shows itself only to who has its token",
      words: "It is reached over the network.",
      yes: "Go on",
      run: () => read("/v1/status"),
      cancelled: done,
    });
    dialog.addEventListener("close", () => done(), { once: true });
  });
}

let attempt = null;
let again = null;
async function stay() {
  for (let failures = 0; ;) {
    attempt = new AbortController();
    const began = Date.now();
    triedAt = began;
    lastAt ||= began;
    try {
      await follow(attempt.signal);
    } catch (error) {
      if (error.code === 401) {
        keepToken(null);
        await needToken();
        continue;
      }
    }
    attempt.abort();
    live(false);
    failures = Date.now() - began > 10_000 ? 0 : failures + 1;
    // Not all open boards at the same moment.
    const wait = Math.min(5000, 500 * 2 ** failures) * (0.75 + Math.random() / 2);
    await new Promise((done) => {
      again = done;
      setTimeout(done, wait);
    });
  }
}

setInterval(() => {
  if (everLive && Date.now() - lastAt > SILENT) live(false);
  // Nothing says that the other end is gone when a network is, or when this machine slept.
  if (Date.now() - Math.max(lastAt, triedAt) > GONE) attempt.abort();
  drawLink();
}, 1000);
addEventListener("online", () => again?.());
// A browser keeps a page that was left, and would keep its stream: it has six for a hub at most.
addEventListener("pagehide", () => attempt?.abort());
addEventListener("pageshow", () => again?.());

stay();
