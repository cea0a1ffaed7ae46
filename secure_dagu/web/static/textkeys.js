// Keys of a textarea that holds YAML: Tab moves lines in and out, Enter goes on at the same depth. Escape gives the Tab
// key back to the page until the next other key, so nobody is caught. Everything can be undone.

const STEP = "  ";

export function keys(field) {
  let isFree = false;
  field.addEventListener("keydown", (event) => {
    if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") isFree = true;
    else if (event.key === "Tab") {
      if (isFree) return;
      event.preventDefault();
      move(field, event.shiftKey);
    } else if (event.key !== "Shift") {
      isFree = false;
      if (event.key === "Enter") enter(field, event);
    }
  });
  field.addEventListener("blur", () => {
    isFree = false;
  });
}

function write(field, text) {
  if (document.execCommand("insertText", false, text)) return;
  field.setRangeText(text, field.selectionStart, field.selectionEnd, "end");
  field.dispatchEvent(new Event("input", { bubbles: true }));
}

function move(field, isOut) {
  const { selectionStart: begin, selectionEnd: end, value } = field;
  if (begin === end && !isOut) {
    const column = begin - (value.lastIndexOf("\n", begin - 1) + 1);
    write(field, STEP.slice(column % STEP.length));
    return;
  }
  const first = value.lastIndexOf("\n", begin - 1) + 1;
  const last = end > begin && value[end - 1] === "\n" ? end - 1 : end;
  const stop = value.indexOf("\n", last) < 0 ? value.length : value.indexOf("\n", last);
  const before = value.slice(first, stop);
  const after = before.split("\n").map((one) => (isOut ? one.replace(/^ {1,2}/, "") : one && STEP + one)).join("\n");
  if (before === after) return;
  field.setSelectionRange(first, stop);
  write(field, after);
  if (begin === end) {
    const at = Math.max(first, begin - (before.length - after.length));
    field.setSelectionRange(at, at);
  } else field.setSelectionRange(first, first + after.length);
}

function enter(field, event) {
  const { selectionStart: begin, value } = field;
  const line = value.slice(value.lastIndexOf("\n", begin - 1) + 1, begin);
  const lead = /^ */.exec(line)[0];
  const item = /^(?:- +)*/.exec(line.slice(lead.length))[0].length;
  const deeper = /[:|>][+-]?\s*$/.test(line) && line.trim() ? STEP : "";
  const depth = lead + " ".repeat(item) + deeper;
  if (!depth) return;
  event.preventDefault();
  write(field, `\n${depth}`);
}
