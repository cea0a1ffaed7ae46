// Make one piece of a page like another, and change nothing that is the same already: focus, selection, scroll
// positions, what somebody has typed and what somebody has opened stay. Elements with an id or a data-key are moved.

export function morph(from, to) {
  const focused = document.activeElement;
  same(from, to);
  // What had to be moved has lost the focus.
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
}

function same(from, to) {
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName) {
    from.replaceWith(document.importNode(to, true));
  } else if (from.nodeType !== Node.ELEMENT_NODE) {
    if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
  } else if (!from.isEqualNode(to)) {
    attributes(from, to);
    children(from, to);
  }
}

function attributes(from, to) {
  for (const { name } of [...from.attributes]) {
    const isOpened = name === "open" && (from.nodeName === "DETAILS" || from.nodeName === "DIALOG");
    if (!to.hasAttribute(name) && !isOpened) from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
}

const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.id || node.dataset.key || "" : "");

function children(from, to) {
  const keyed = new Map([...from.childNodes].filter(keyOf).map((node) => [keyOf(node), node]));
  const all = [...to.childNodes];
  const keys = new Set(all.map(keyOf).filter(Boolean));
  // Between keyed elements, which are rows and boxes, blanks mean nothing; passing over them leaves the rows in place.
  const isBlank = (node) => keys.size > 0 && node.nodeType === Node.TEXT_NODE && !node.nodeValue.trim();
  const told = (node) => {
    let at = node;
    while (at && isBlank(at)) at = at.nextSibling;
    return at;
  };
  for (const [key, gone] of keyed) {
    if (!keys.has(key)) {
      gone.remove();
      keyed.delete(key);
    }
  }
  let at = told(from.firstChild);
  for (const wanted of all.filter((node) => !isBlank(node))) {
    const key = keyOf(wanted);
    while (at && !key && keyOf(at)) at = told(at.nextSibling); // what has a key waits for its like
    const found = key ? keyed.get(key) : at;
    if (!found) {
      from.insertBefore(document.importNode(wanted, true), at);
      continue;
    }
    if (found === at) at = told(at.nextSibling);
    else from.insertBefore(found, at);
    keyed.delete(key);
    same(found, wanted);
  }
  for (const gone of keyed.values()) {
    if (gone === at) at = told(at.nextSibling);
    gone.remove();
  }
  while (at) {
    const next = told(at.nextSibling);
    at.remove();
    at = next;
  }
}
