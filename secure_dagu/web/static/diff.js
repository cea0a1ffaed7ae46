// The lines in which two texts differ, each with a sign: `-` only in the first, `+` only in the second, ` ` in both.

const MOST = 3000;

export function diff(before, after) {
  const [left, right] = [before.split("\n"), after.split("\n")];
  let head = 0;
  while (head < left.length && head < right.length && left[head] === right[head]) head += 1;
  let tail = 0;
  while (tail < left.length - head && tail < right.length - head && left.at(-1 - tail) === right.at(-1 - tail)) tail += 1;
  const [one, other] = [left.slice(head, left.length - tail), right.slice(head, right.length - tail)];
  const middle = one.length * other.length > MOST * MOST ? whole(one, other) : common(one, other);
  const same = (lines) => lines.map((line) => [" ", line]);
  return [...same(left.slice(0, head)), ...middle, ...same(left.slice(left.length - tail))];
}

function whole(one, other) {
  return [...one.map((line) => ["-", line]), ...other.map((line) => ["+", line])];
}

// By the longest common subsequence.
function common(one, other) {
  const width = other.length + 1;
  const longest = new Uint16Array((one.length + 1) * width);
  for (let at = one.length - 1; at >= 0; at -= 1) {
    for (let to = other.length - 1; to >= 0; to -= 1) {
      longest[at * width + to] = one[at] === other[to]
        ? longest[(at + 1) * width + to + 1] + 1
        : Math.max(longest[(at + 1) * width + to], longest[at * width + to + 1]);
    }
  }
  const found = [];
  let [at, to] = [0, 0];
  while (at < one.length || to < other.length) {
    if (at < one.length && to < other.length && one[at] === other[to]) {
      found.push([" ", one[at]]);
      at += 1;
      to += 1;
    } else if (to >= other.length || (at < one.length && longest[(at + 1) * width + to] >= longest[at * width + to + 1])) {
      found.push(["-", one[at]]);
      at += 1;
    } else {
      found.push(["+", other[to]]);
      to += 1;
    }
  }
  return found;
}

// Only what is near a difference; `…` stands for the rest.
export function near(lines, around = 2) {
  const shown = lines.map((_, index) => lines.slice(Math.max(0, index - around), index + around + 1).some(([sign]) => sign !== " "));
  return lines.flatMap((line, index) => (shown[index] ? [line] : shown[index - 1] || index === 0 ? [["…", ""]] : []));
}
