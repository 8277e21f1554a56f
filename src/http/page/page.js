/* The status page: shows what /stream sends. Texts go in as text, never as markup. */
"use strict";

const STATES = {
  open: ["connected", "good"],
  standing_by: ["standing by", "idle"],
  connecting: ["not connected", "bad"],
  silent: ["silent", "bad"],
  holding: ["held up", "bad"],
  stalled: ["not acknowledging", "bad"],
};
const OVERALL = { "ready": "good", "standing by": "idle", "not ready": "bad", "stopping": "wait" };
const COLORS = 6;

const byId = (id) => document.getElementById(id);
let history = [];
let capacity = 300;

function make(name, className, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Replaces what stands there only where it has changed, so that a selection and the focus stay. */
function show(target, ...children) {
  const fresh = document.createElement(target.tagName);
  fresh.append(...children);
  if (fresh.innerHTML !== target.innerHTML) target.replaceChildren(...fresh.childNodes);
}

function count(number) {
  if (number < 10_000) return String(Math.round(number * 10) / 10);
  const units = ["", "k", "M", "G", "T"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit++;
  }
  return `${number.toPrecision(3)}${units[unit]}`;
}

function times(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit++;
  }
  return `${unit === 0 ? number : number.toPrecision(3)} ${units[unit]}`;
}

function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

function latency(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 10) return `${Number(ms.toFixed(1))} ms`;
  return ms >= 1000 && ms < 10_000 ? `${Number((ms / 1000).toFixed(1))} s` : duration(ms);
}

// --- the flow ---------------------------------------------------------------------------------------------------------

function node(part, title, rate, numbers) {
  const [text, tone] = STATES[part.state];
  const element = make(
    "div",
    `node ${tone}`,
    make("div", "top", make("h3", "", title), make("span", "state", text)),
    make("div", "numbers", make("span", "rate", `${count(rate)}/s`), ...numbers.map((n) => make("span", "quiet", n))),
  );
  if (part.state !== "open" && part.reason) element.append(make("p", "reason", part.reason));
  element.dataset.state = part.state;
  element.dataset.part = part.name;
  return element;
}

function sourceNode(source, rate) {
  const numbers = [`${count(source.received)} received`];
  if (source.dropped > 0) numbers.push(`${count(source.dropped)} dropped`);
  if (source.reconnects > 0) numbers.push(times(source.reconnects, "reconnect"));
  if (source.heardAgoMs !== null) numbers.push(`heard ${duration(source.heardAgoMs)} ago`);
  return make("div", "step", node(source, source.name, rate, numbers), make("div", rate > 0 ? "wire flowing" : "wire"));
}

function upstreamNode(upstream, rate) {
  const numbers = [`${count(upstream.delivered)} delivered`];
  if (upstream.resent > 0) numbers.push(`${count(upstream.resent)} resent`);
  if (upstream.dropped > 0) numbers.push(`${count(upstream.dropped)} dropped`);
  if (upstream.pending > 0) numbers.push(`${count(upstream.pending)} waiting (${bytes(upstream.pendingBytes)})`);
  if (upstream.reconnects > 0) numbers.push(times(upstream.reconnects, "reconnect"));
  const title = upstream.name === upstream.kind ? upstream.kind : `${upstream.name} (${upstream.kind})`;
  return make("div", "step", make("div", rate > 0 ? "wire flowing" : "wire"), node(upstream, title, rate, numbers));
}

function showBridges(bridges, sample) {
  let source = 0;
  let upstream = 0;
  show(
    byId("bridges"),
    ...bridges.map((bridge) =>
      make(
        "section",
        "card flow",
        make("div", "side left", ...bridge.sources.map((part) => sourceNode(part, sample.received[source++] ?? 0))),
        make("div", "bus", bridge.name),
        make(
          "div",
          "side right",
          ...bridge.upstreams.map((part) => upstreamNode(part, sample.delivered[upstream++] ?? 0)),
        ),
      )
    ),
  );
}

// --- plots ------------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 100;

/** 1, 2 or 5 times a power of ten, not below `value`. */
function niceAbove(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  for (const factor of [1, 2, 5, 10]) if (factor * power >= value) return factor * power;
  return 10 * power;
}

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** `series`: name, color, dashed, values (one for each sample, null where there is none). */
function plot(target, series, format) {
  const top = niceAbove(Math.max(1, ...series.flatMap(({ values }) => values.map((value) => value ?? 0))));
  const x = (index) => WIDTH * (1 - (history.length - 1 - index) / (capacity - 1));
  const y = (value) => HEIGHT * (1 - value / top);
  const image = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  for (const part of [0, 0.5, 1]) {
    image.append(svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT * part, y2: HEIGHT * part }));
  }
  for (const { name, color, dashed, values } of series) {
    let path = "";
    let pen = "M";
    values.forEach((value, index) => {
      if (value === null) {
        pen = "M";
        return;
      }
      // A line of no length makes a dot of a value that has no neighbours.
      path += `${pen}${x(index).toFixed(1)} ${y(value).toFixed(1)}${pen === "M" ? "h0" : ""}`;
      pen = "L";
    });
    const curve = svg("path", { class: dashed ? "curve dashed" : "curve", d: path, stroke: `var(--s${color})` });
    curve.append(Object.assign(document.createElementNS(SVG, "title"), { textContent: name }));
    image.append(curve);
  }
  const axis = [[0, top], [0.5, top / 2]].map(([part, value]) => {
    const label = make("span", "axis", format(value));
    label.style.top = `calc(11rem * ${part})`;
    return label;
  });
  const at = target.cursorIndex;
  const index = at === undefined ? history.length - 1 : Math.min(at, history.length - 1);
  const legend = series.map(({ name, color, dashed, values }) => {
    const mark = make("i", dashed ? "dashed" : "");
    mark.style.color = `var(--s${color})`;
    const value = values[index];
    return make(
      "li",
      "",
      mark,
      make("span", "", name),
      make("b", "", value === null || value === undefined ? "–" : format(value)),
    );
  });
  const minutes = Math.round(capacity / 60);
  const shownAt = at === undefined ? "now" : `${duration((history.length - 1 - index) * 1000)} ago`;
  target.replaceChildren(
    image,
    ...axis,
    make("div", "times", make("span", "", `${minutes} min ago`), make("span", "", "now")),
    make("ul", "legend", ...legend, make("li", "quiet", shownAt)),
  );
  if (at === undefined) return;
  const cursor = make("div", "cursor");
  cursor.style.left = `${100 * x(index) / WIDTH}%`;
  target.append(cursor);
}

function follow(target) {
  target.addEventListener("pointermove", (event) => {
    const { left, width } = target.getBoundingClientRect();
    const back = Math.round((1 - (event.clientX - left) / width) * (capacity - 1));
    target.cursorIndex = Math.max(0, history.length - 1 - Math.max(0, back));
    if (latest) showPlots(latest.bridges);
  });
  target.addEventListener("pointerleave", () => {
    target.cursorIndex = undefined;
    if (latest) showPlots(latest.bridges);
  });
}

function showPlots(bridges) {
  const several = bridges.length > 1;
  const upstreams = bridges.flatMap((bridge) =>
    bridge.upstreams.map(({ name }) => several && name !== bridge.name ? `${bridge.name} ${name}` : name)
  );
  const color = (index) => (index + 1) % COLORS;
  plot(byId("throughput"), [
    { name: "received", color: 0, dashed: true, values: history.map(({ received }) => sum(received)) },
    ...upstreams.map((name, i) => ({
      name: `to ${name}`,
      color: color(i),
      values: history.map(({ delivered }) => delivered[i] ?? 0),
    })),
  ], (value) => count(value));
  plot(
    byId("latency"),
    upstreams.flatMap((name, i) => [
      { name: `${name} p50`, color: color(i), values: history.map(({ p50Ms }) => p50Ms[i] ?? null) },
      { name: `${name} p99`, color: color(i), dashed: true, values: history.map(({ p99Ms }) => p99Ms[i] ?? null) },
    ]),
    latency,
  );
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}

// --- the rest ---------------------------------------------------------------------------------------------------------

function term(name, value, tone) {
  return make("div", "", make("dt", "", name), make("dd", tone ?? "", value));
}

function slotElement(slot) {
  const { retainedBytes, lagBytes, safeBytes, lostInMs, walStatus } = slot;
  const endangered = walStatus === "lost" || walStatus === "unreserved" || (lostInMs !== null && lostInMs < 3_600_000);
  const tone = endangered ? "bad" : "good";
  const list = make(
    "dl",
    "",
    term("kept for it", bytes(retainedBytes)),
    term("not confirmed", bytes(lagBytes)),
    term("until the limit", safeBytes === null ? "no limit set" : bytes(Math.max(0, safeBytes))),
    term(
      "lost in",
      walStatus === "lost" ? "lost" : lostInMs === null ? "–" : duration(lostInMs),
      endangered ? "bad" : "",
    ),
    term("state", walStatus, tone),
  );
  const element = make("div", "slot", make("h3", "", slot.name));
  if (safeBytes !== null) {
    const used = retainedBytes / Math.max(1, retainedBytes + Math.max(0, safeBytes));
    const bar = make("i", "");
    bar.style.width = `${Math.min(100, 100 * used)}%`;
    element.append(make("div", `limit ${tone}`, bar));
  }
  element.append(list);
  return element;
}

function lastElement(name, last) {
  const where = [last.id, `channel ${last.channel}`, bytes(last.bytes)];
  if (last.routingKey) where.push(`key ${last.routingKey}`);
  const element = make("div", "", make("h3", "", name), make("span", "quiet", where.join(" · ")));
  if (last.payload !== undefined) element.append(make("pre", "", last.payload));
  return element;
}

function errorElement({ time, level, part, message }) {
  const tone = level === "warning" ? "wait" : "bad";
  const when = new Date(time);
  const stamp = make("time", "quiet", `${when.toLocaleDateString()} ${when.toLocaleTimeString()} ${part}`);
  return make("li", "", make("b", tone, level), stamp, make("p", "", message));
}

let latest;

function showStatus(status) {
  latest = status;
  document.body.classList.remove("lost");
  byId("version").textContent = status.version;
  byId("overall").textContent = status.status;
  byId("overall").className = `badge ${OVERALL[status.status]}`;
  byId("uptime").textContent = `up ${duration(status.upMs)}, ${bytes(status.residentBytes)} of memory`;
  document.title = `${status.status} – pg-event-proxy`;
  show(byId("reasons"), ...status.reasons.map((reason) => make("li", "", reason)));
  showBridges(status.bridges, history.at(-1) ?? { received: [], delivered: [] });
  byId("latency-note").textContent = status.sinceCommit
    ? "from the commit to the acknowledgement"
    : "from receipt to acknowledgement";
  showPlots(status.bridges);
  const slots = status.bridges.flatMap(({ sources }) => sources.flatMap(({ slot }) => slot === null ? [] : [slot]));
  byId("slots-card").hidden = slots.length === 0;
  show(byId("slots"), ...slots.map(slotElement));
  const last = status.bridges.flatMap(({ upstreams }) => upstreams.filter(({ last }) => last !== null));
  byId("last-card").hidden = last.length === 0;
  show(byId("last"), ...last.map((upstream) => lastElement(upstream.name, upstream.last)));
  const errors = status.errors.length === 0
    ? [make("li", "quiet", "none since the start")]
    : status.errors.map(errorElement);
  show(byId("errors"), ...errors);
}

function listen() {
  const stream = new EventSource("stream");
  stream.addEventListener("history", (event) => {
    const data = JSON.parse(event.data);
    capacity = data.capacity;
    history = data.samples;
  });
  stream.addEventListener("status", (event) => {
    const status = JSON.parse(event.data);
    history.push(status.sample);
    if (history.length > capacity) history.splice(0, history.length - capacity);
    showStatus(status);
  });
  stream.addEventListener("error", () => {
    document.body.classList.add("lost");
    byId("overall").textContent = "no connection to the proxy";
    byId("overall").className = "badge bad";
    // A browser gives up on an answer that is no stream (401, 503); the proxy may just be starting.
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
}

follow(byId("throughput"));
follow(byId("latency"));
listen();
