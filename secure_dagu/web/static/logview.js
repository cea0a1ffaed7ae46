// The log viewer: one window of lines of a log, never more than that in the page.
//
// It asks the REST API for lines by number, follows a growing log by asking for what comes behind its last line, and
// stops following when the reader scrolls up. Text enters the page as text nodes only.

import { PLAIN, pieces, plain } from "./ansi.js";

const ACTIVE_POLL_MS = 1000;
const SLOW_POLL_MS = 5000;
const NEAR_END_PX = 24;
const MAX_HITS = 2000;

export class LogView {
  // `root` holds what the template made; its data attributes say where the log is.
  constructor(root) {
    this.root = root;
    this.box = root.querySelector("[data-log-lines]");
    this.note = root.querySelector("[data-log-note]");
    this.url = root.dataset.logUrl;
    this.size = Number(root.dataset.size) || 1000;
    this.active = root.dataset.active === "true";
    this.follow = this.active;
    this.first = 1;
    this.total = 0;
    this.lines = [];
    this.states = [];
    this.hits = [];
    this.hit = -1;
    this.busy = false;
    this.stopped = false;
  }

  async start() {
    this.listen();
    const asked = /^#L([1-9][0-9]{0,14})$/.exec(location.hash);
    if (asked) await this.jump(Number(asked[1]));
    else await this.tail();
    this.poll();
  }

  listen() {
    const on = (name, event, action) => {
      const element = this.root.querySelector(`[data-log-${name}]`);
      if (element) element.addEventListener(event, (happened) => this.guarded(() => action(happened, element)));
    };
    on("end", "click", () => this.tail());
    on("beginning", "click", () => this.load({ offset: 1 }));
    on("older", "click", () => this.load({ offset: Math.max(1, this.first - this.size) }));
    on("newer", "click", () => this.load({ offset: this.first + this.lines.length }));
    on("reload", "click", () => (this.follow ? this.tail() : this.load({ offset: this.first })));
    on("follow", "change", (_, box) => {
      this.follow = box.checked;
      return this.follow ? this.tail() : undefined;
    });
    on("wrap", "change", (_, box) => {
      this.box.classList.toggle("log-wrap", box.checked);
      keep("log-wrap", box.checked ? "1" : "");
    });
    on("size", "change", (_, box) => {
      this.size = Number(box.value) || 1000;
      keep("log-size", String(this.size));
      return this.follow ? this.tail() : this.load({ offset: this.first });
    });
    on("jump", "submit", (event, form) => {
      event.preventDefault();
      return this.jump(Number(new FormData(form).get("line")));
    });
    on("search", "input", (_, field) => this.search(field.value));
    on("search", "keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        this.step(event.shiftKey ? -1 : 1);
      }
    });
    on("next", "click", () => this.step(1));
    on("previous", "click", () => this.step(-1));
    this.box.addEventListener("scroll", () => this.scrolled(), { passive: true });
    const wrap = this.root.querySelector("[data-log-wrap]");
    if (wrap && kept("log-wrap")) {
      wrap.checked = true;
      this.box.classList.add("log-wrap");
    }
    const size = this.root.querySelector("[data-log-size]");
    if (size && kept("log-size") && [...size.options].some((option) => option.value === kept("log-size"))) {
      size.value = kept("log-size");
      this.size = Number(size.value);
    }
  }

  async guarded(action) {
    try {
      await action();
    } catch (error) {
      this.say(error.message || "The log cannot be read now.");
    }
  }

  async ask(query) {
    const url = new URL(this.url, location.href);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, String(value));
    const response = await fetch(url, { credentials: "same-origin", headers: { Accept: "application/json" } });
    const body = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(body.message || `The server answered ${response.status}.`);
    return body;
  }

  async tail() {
    const page = await this.ask({ tail: this.size });
    const lines = split(page.content);
    this.show(lines, Math.max(1, page.totalLines - lines.length + 1), page.totalLines);
    this.box.scrollTop = this.box.scrollHeight;
    if (this.active) this.setFollow(true);
  }

  async load({ offset }) {
    this.setFollow(false);
    const page = await this.ask({ offset, limit: this.size });
    const lines = split(page.content);
    if (!lines.length && offset > 1) return this.tail();
    this.show(lines, offset, page.totalLines);
    this.box.scrollTop = 0;
    return undefined;
  }

  async jump(line) {
    if (!(line >= 1)) return;
    const wanted = Math.floor(line);
    await this.load({ offset: Math.max(1, wanted - Math.floor(this.size / 2)) });
    const row = this.box.querySelector(`[data-line="${Math.min(wanted, this.first + this.lines.length - 1)}"]`);
    if (row) {
      row.classList.add("log-asked");
      row.scrollIntoView({ block: "center" });
    }
  }

  // What is new: the last line may have grown, so it is asked for again.
  async grow() {
    const last = this.first + this.lines.length - 1;
    const page = await this.ask({ offset: Math.max(1, last), limit: this.size });
    const fresh = split(page.content);
    this.total = page.totalLines;
    if (!fresh.length) return;
    const standing = this.lines.length ? this.lines.length - 1 : 0;
    if (this.lines.length && fresh.length === 1 && fresh[0] === this.lines[standing]) return;
    if (page.hasMore) {
      await this.tail();
      return;
    }
    this.lines.length = standing;
    this.states.length = standing;
    this.box.lastElementChild?.remove();
    this.append(fresh, Math.max(1, last));
    this.trim();
    this.tell();
    if (this.follow) this.box.scrollTop = this.box.scrollHeight;
    if (this.words) this.search(this.words, { quiet: true });
  }

  show(lines, first, total) {
    this.lines = [];
    this.states = [];
    this.first = first;
    this.total = total;
    this.box.replaceChildren();
    this.append(lines, first);
    this.tell();
    if (this.words) this.search(this.words, { quiet: true });
  }

  append(lines, first) {
    const rows = document.createDocumentFragment();
    lines.forEach((line, index) => {
      const { pieces: parts, state, cut } = pieces(line, this.states.at(-1) || PLAIN);
      rows.append(rowOf(first + index, parts, cut));
      this.lines.push(line);
      this.states.push(state);
    });
    this.box.append(rows);
  }

  trim() {
    const over = this.lines.length - this.size;
    if (over <= 0) return;
    for (let count = 0; count < over; count += 1) this.box.firstElementChild?.remove();
    this.lines.splice(0, over);
    this.states.splice(0, over);
    this.first += over;
  }

  tell() {
    const shown = this.lines.length;
    const number = (value) => value.toLocaleString("en");
    if (!this.total) this.say(this.active ? "Nothing yet: the log is empty so far." : "The log is empty.");
    else if (shown === this.total) this.say(`${number(shown)} ${shown === 1 ? "line" : "lines"}`);
    else this.say(`Lines ${number(this.first)}–${number(this.first + shown - 1)} of ${number(this.total)}`);
    const enable = (name, on) => {
      const button = this.root.querySelector(`[data-log-${name}]`);
      if (button) button.disabled = !on;
    };
    enable("older", this.first > 1);
    enable("newer", this.first + shown - 1 < this.total);
  }

  say(text) {
    this.note.textContent = text;
  }

  setFollow(on) {
    this.follow = on && this.active;
    const box = this.root.querySelector("[data-log-follow]");
    if (box) box.checked = this.follow;
    this.root.classList.toggle("log-following", this.follow);
  }

  scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.box;
    const atEnd = scrollTop + clientHeight >= scrollHeight - NEAR_END_PX;
    const isLast = this.first + this.lines.length - 1 >= this.total;
    const up = scrollTop < (this.scrollTop || 0);
    this.scrollTop = scrollTop;
    if (this.follow && up && !atEnd) this.setFollow(false);
    else if (!this.follow && this.active && atEnd && isLast && !up) this.setFollow(true);
  }

  async poll() {
    while (!this.stopped) {
      await new Promise((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, this.active && !document.hidden ? ACTIVE_POLL_MS : SLOW_POLL_MS);
      });
      if (this.stopped || !this.root.isConnected) return;
      if (!this.follow) {
        if (!this.active) return;
        continue;
      }
      try {
        await this.grow();
      } catch (error) {
        this.say(`${error.message || "The log cannot be read now."} Trying again.`);
      }
      if (this.ending) {
        this.active = false;
        this.setFollow(false);
      }
    }
  }

  // Somebody knows that the log has grown.
  changed() {
    this.wake?.();
  }

  // The step is over: read once more what came last, then rest.
  ended() {
    this.ending = true;
    this.wake?.();
  }

  stop() {
    this.stopped = true;
    this.wake?.();
  }

  search(words, { quiet = false } = {}) {
    this.words = words;
    this.hits = [];
    const wanted = words.toLowerCase();
    if (wanted) {
      this.lines.forEach((line, index) => {
        if (this.hits.length < MAX_HITS && plain(line).toLowerCase().includes(wanted)) this.hits.push(index + this.first);
      });
    }
    this.hit = Math.min(this.hit, this.hits.length - 1);
    this.mark(wanted);
    if (!quiet && this.hits.length) {
      this.hit = -1;
      this.step(1);
    } else this.count();
  }

  step(by) {
    if (!this.hits.length) return this.count();
    this.hit = (this.hit + by + this.hits.length) % this.hits.length;
    this.box.querySelector(".log-hit-now")?.classList.remove("log-hit-now");
    const row = this.row(this.hits[this.hit]);
    row?.classList.add("log-hit-now");
    if (this.follow) this.setFollow(false);
    row?.scrollIntoView({ block: "center" });
    return this.count();
  }

  count() {
    const place = this.root.querySelector("[data-log-hits]");
    if (!place) return;
    if (!this.words) place.textContent = "";
    else if (!this.hits.length) place.textContent = "none in these lines";
    else place.textContent = `${this.hit + 1} of ${this.hits.length}${this.hits.length >= MAX_HITS ? "+" : ""}`;
  }

  mark(wanted) {
    for (const row of this.box.querySelectorAll(".log-hit")) row.classList.remove("log-hit", "log-hit-now");
    for (const line of this.hits) this.row(line)?.classList.add("log-hit");
    if (!globalThis.CSS?.highlights) return;
    const ranges = [];
    for (const line of this.hits) {
      for (const span of this.row(line)?.lastElementChild?.children || []) {
        const text = span.textContent.toLowerCase();
        for (let at = text.indexOf(wanted); at >= 0 && ranges.length < MAX_HITS; at = text.indexOf(wanted, at + wanted.length)) {
          const range = new Range();
          range.setStart(span.firstChild, at);
          range.setEnd(span.firstChild, Math.min(at + wanted.length, span.textContent.length));
          ranges.push(range);
        }
      }
    }
    CSS.highlights.set("log-search", new Highlight(...ranges));
  }

  row(line) {
    return this.box.children[line - this.first];
  }
}

function rowOf(number, parts, cut) {
  const row = document.createElement("div");
  row.className = "log-line";
  row.dataset.line = String(number);
  const label = document.createElement("a");
  label.className = "log-number";
  label.href = `#L${number}`;
  label.textContent = String(number);
  label.tabIndex = -1;
  const body = document.createElement("span");
  body.className = "log-text";
  for (const part of parts) {
    const span = document.createElement("span");
    if (part.classes.length) span.className = part.classes.join(" ");
    span.textContent = part.text;
    body.append(span);
  }
  if (cut) {
    const more = document.createElement("em");
    more.className = "log-cut";
    more.textContent = ` … ${cut.toLocaleString("en")} more characters: download the log to read them`;
    body.append(more);
  }
  row.append(label, body);
  return row;
}

function split(content) {
  if (!content) return [];
  const lines = content.split("\n");
  if (lines.at(-1) === "") lines.pop();
  return lines;
}

function keep(name, value) {
  try {
    localStorage.setItem(`secure-dagu-${name}`, value);
  } catch {
    // A browser that keeps nothing still shows logs.
  }
}

function kept(name) {
  try {
    return localStorage.getItem(`secure-dagu-${name}`) || "";
  } catch {
    return "";
  }
}
