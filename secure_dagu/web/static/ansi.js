// Terminal text → pieces of text with class names. Pure: it makes no markup, so nothing in a log can become markup.
//
// Only SGR colours and weights are taken from a list; every other escape sequence is dropped, and control and
// bidirectional characters are shown as visible signs. One line is bounded in characters and in pieces.

export const MAX_CHARS = 20000;
export const MAX_PIECES = 400;

// One escape sequence: CSI, OSC, the other strings, or a short one; or a C1 introducer that means the same.
const ESCAPE = /(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c]*(?:\x1b\\|\x9c)?|\x1b[ -/]*[0-~]?/g;
const ODD = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ufff9-\ufffb]/g;
const LEVELS = [0, 95, 135, 175, 215, 255];
const BASIC = [
  [0, 0, 0], [205, 0, 0], [0, 205, 0], [205, 205, 0], [0, 0, 238], [205, 0, 205], [0, 205, 205], [229, 229, 229],
  [127, 127, 127], [255, 0, 0], [0, 255, 0], [255, 255, 0], [92, 92, 255], [255, 0, 255], [0, 255, 255],
  [255, 255, 255],
];

export const PLAIN = Object.freeze({ fg: -1, bg: -1, bold: false, dim: false, italic: false, line: false, strike: false, swap: false });

// Return {pieces: [{text, classes}], state, cut}: `state` goes to the next line, `cut` counts characters left out.
export function pieces(line, state = PLAIN) {
  const cut = Math.max(0, line.length - MAX_CHARS);
  const shown = lastWritten(cut ? line.slice(0, MAX_CHARS) : line);
  const found = [];
  let from = 0;
  for (const match of shown.matchAll(ESCAPE)) {
    if (match.index > from && found.length < MAX_PIECES) {
      found.push({ text: visible(shown.slice(from, match.index)), classes: classesOf(state) });
      from = match.index;
    }
    if (found.length >= MAX_PIECES) break;
    from = match.index + match[0].length;
    if (match[0].endsWith("m")) state = selected(match[0], state);
  }
  const rest = shown.slice(from).replace(ESCAPE, "");
  if (rest) found.push({ text: visible(rest), classes: classesOf(state) });
  return { pieces: found, state, cut };
}

// Return a line as plain text, for searching and copying.
export function plain(line) {
  return visible(lastWritten(line.slice(0, MAX_CHARS)).replace(ESCAPE, ""));
}

// A carriage return writes over the line: what a terminal would show in the end is what follows the last one.
function lastWritten(line) {
  const text = line.endsWith("\r") ? line.slice(0, -1) : line;
  return text.slice(text.lastIndexOf("\r") + 1);
}

function visible(text) {
  return text.replace(ODD, (char) => {
    const code = char.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return code === 0x7f ? "\u2421" : `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

function selected(sequence, state) {
  const body = sequence.replace(/^(?:\x1b\[|\x9b)/, "").slice(0, -1);
  if (!/^[0-9;:]*$/.test(body)) return state;
  const codes = body.split(/[;:]/).slice(0, 32).map(Number);
  const next = { ...state };
  for (let at = 0; at < codes.length; at += 1) {
    const code = codes[at];
    if (code === 0) Object.assign(next, PLAIN);
    else if (code === 1) next.bold = true;
    else if (code === 2) next.dim = true;
    else if (code === 3) next.italic = true;
    else if (code === 4) next.line = true;
    else if (code === 7) next.swap = true;
    else if (code === 9) next.strike = true;
    else if (code === 22) next.bold = next.dim = false;
    else if (code === 23) next.italic = false;
    else if (code === 24) next.line = false;
    else if (code === 27) next.swap = false;
    else if (code === 29) next.strike = false;
    else if (code >= 30 && code <= 37) next.fg = code - 30;
    else if (code >= 90 && code <= 97) next.fg = code - 82;
    else if (code === 39) next.fg = -1;
    else if (code >= 40 && code <= 47) next.bg = code - 40;
    else if (code >= 100 && code <= 107) next.bg = code - 92;
    else if (code === 49) next.bg = -1;
    else if (code === 38 || code === 48) {
      const wide = codes[at + 1] === 2;
      const colour = wide ? nearest(codes.slice(at + 2, at + 5)) : codes[at + 1] === 5 ? indexed(codes[at + 2]) : -1;
      next[code === 38 ? "fg" : "bg"] = colour;
      at += wide ? 4 : 2;
    }
  }
  return next;
}

function indexed(number) {
  if (!(number >= 0 && number <= 255)) return -1;
  if (number < 16) return number;
  if (number >= 232) return nearest(Array(3).fill(8 + 10 * (number - 232)));
  const cube = number - 16;
  return nearest([LEVELS[Math.floor(cube / 36)], LEVELS[Math.floor(cube / 6) % 6], LEVELS[cube % 6]]);
}

// The sixteen colours of the style sheet are legible in both themes; any other becomes the closest of them.
function nearest(rgb) {
  let best = -1;
  let least = Infinity;
  BASIC.forEach((basic, number) => {
    const distance = basic.reduce((sum, part, index) => sum + (part - (rgb[index] || 0)) ** 2, 0);
    if (distance < least) [best, least] = [number, distance];
  });
  return best;
}

function classesOf(state) {
  const names = [];
  const [fg, bg] = [state.fg, state.bg];
  if (state.swap) names.push("a-swap");
  else {
    if (fg >= 0) names.push(`a-f${fg}`);
    if (bg >= 0) names.push(`a-b${bg}`);
  }
  if (state.bold) names.push("a-bold");
  if (state.dim) names.push("a-dim");
  if (state.italic) names.push("a-italic");
  if (state.line) names.push("a-line");
  if (state.strike) names.push("a-strike");
  return names;
}
