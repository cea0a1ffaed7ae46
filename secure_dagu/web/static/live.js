// Live pages: when the server says that something changed, the page is asked for again, and each of its regions
// becomes what the answer has in its place. One stream for a tab; where it breaks, the page asks now and then.

import { api } from "./api.js";
import { morph } from "./morph.js";

const BACK_OFF_MS = [1000, 2000, 5000, 10000, 30000];
const POLL_MS = 3000;
const GATHER_MS = 150;
const PAUSE_MS = 1000;
// A page that takes long is asked for less often: at most this share of the time is spent on it.
const SHARE = 1 / 4;

// What the server wrote of a region: ticking times have changed what is shown since.
const written = new WeakMap();

class Live {
  constructor() {
    this.tries = 0;
    this.asking = null;
    this.again = false;
    this.asked = 0;
    this.took = 0;
    this.tag = "";
  }

  start() {
    for (const region of document.querySelectorAll("[data-live]")) written.set(region, region.outerHTML);
    this.topics = topicsHere();
    const every = document.querySelector("[data-every]");
    if (every) setInterval(() => this.refresh(), Number(every.dataset.every) * 1000);
    if (this.topics.length) this.open();
    setInterval(() => tick(), 1000);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.missed) this.refresh();
    });
  }

  open() {
    clearTimeout(this.opening);
    const query = new URLSearchParams();
    for (const topic of this.topics) query.append("topic", topic);
    const source = new EventSource(`${api}/events/stream?${query}`);
    this.source = source;
    source.addEventListener("open", () => {
      this.tries = 0;
      this.say("live", "● live");
      clearInterval(this.polling);
    });
    source.addEventListener("message", () => {
      clearTimeout(this.gathering);
      const pause = this.asked + Math.max(PAUSE_MS, this.took / SHARE) - Date.now();
      this.gathering = setTimeout(() => this.refresh(), Math.max(GATHER_MS, pause));
    });
    source.addEventListener("error", () => {
      source.close();
      this.say("away", this.tries > 2 ? "○ offline, asking now and then" : "◌ reconnecting");
      clearInterval(this.polling);
      this.polling = setInterval(() => this.refresh(), POLL_MS);
      this.opening = setTimeout(() => this.open(), BACK_OFF_MS[Math.min(this.tries, BACK_OFF_MS.length - 1)]);
      this.tries += 1;
    });
    window.addEventListener("pagehide", () => source.close());
  }

  say(kind, text) {
    const place = document.querySelector("[data-live-state]");
    if (!place || place.textContent === text) return;
    place.textContent = text;
    place.dataset.liveState = kind;
  }

  async refresh() {
    this.missed = document.hidden;
    if (document.hidden) return undefined;
    if (this.asking) {
      this.again = true;
      return this.asking;
    }
    this.asking = this.replace();
    try {
      await this.asking;
    } finally {
      this.asking = null;
      this.took = Date.now() - this.asked;
    }
    if (this.again) {
      this.again = false;
      return this.refresh();
    }
    return undefined;
  }

  async replace() {
    this.asked = Date.now();
    let response;
    try {
      const headers = { Accept: "text/html", ...(this.tag && { "If-None-Match": this.tag }) };
      response = await fetch(location.href, { credentials: "same-origin", headers });
    } catch {
      return;
    }
    if (response.redirected && new URL(response.url).pathname.endsWith("/login")) location.reload();
    if (!response.ok || response.redirected) return;
    this.tag = response.headers.get("ETag") ?? "";
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const region of document.querySelectorAll("[data-live]")) {
      const other = fresh.getElementById(region.id);
      if (!other || written.get(region) === other.outerHTML) continue;
      written.set(region, other.outerHTML);
      morph(region, other);
    }
    tick();
    document.dispatchEvent(new CustomEvent("live:changed"));
    this.follow(topicsHere());
  }

  // A region that shows something else now may be about something else.
  follow(topics) {
    if (topics.join(" ") === this.topics.join(" ")) return;
    this.topics = topics;
    this.source?.close();
    if (topics.length) this.open();
  }
}

function topicsHere() {
  const named = [...document.querySelectorAll("[data-topic]")].flatMap((one) => one.dataset.topic.split(" "));
  return [...new Set(named)];
}

function tick() {
  const now = Date.now();
  const since = (one) => (now - Date.parse(one.dateTime)) / 1000;
  for (const one of document.querySelectorAll("time[data-age]")) write(one, `${span(since(one))} ago`);
  for (const one of document.querySelectorAll("time[data-elapsed]")) write(one, span(since(one)));
  for (const one of document.querySelectorAll("time[data-until]")) {
    write(one, since(one) < 0 ? `in ${span(Math.ceil(-since(one)))}` : "due now");
  }
}

function write(one, text) {
  if (one.textContent !== text) one.textContent = text;
}

export function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (value) => String(value).padStart(2, "0");
  const [days, hours, minutes, rest] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60, whole % 60];
  if (days) return `${days}d ${two(hours)}h`;
  if (hours) return `${hours}h ${two(minutes)}m ${two(rest)}s`;
  return minutes ? `${minutes}m ${two(rest)}s` : `${rest}s`;
}

export const live = new Live();
live.start();
