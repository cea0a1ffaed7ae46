// Make one piece of a page like another, and change nothing that is the same already: focus, selection, scroll
// positions, what somebody has typed and what somebody has opened stay. Elements with an id or a data-key are moved.

export function morph(from, to) {
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
  let at = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    const key = keyOf(wanted);
    while (at && !key && keyOf(at)) at = at.nextSibling; // what has a key waits for its like
    const found = key ? keyed.get(key) : at;
    if (!found) {
      from.insertBefore(document.importNode(wanted, true), at);
    } else if (found === at) {
      at = at.nextSibling;
      keyed.delete(key);
      morph(found, wanted);
    } else {
      from.insertBefore(found, at);
      keyed.delete(key);
      morph(found, wanted);
    }
  }
  for (const gone of keyed.values()) {
    if (gone === at) at = at.nextSibling;
    gone.remove();
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}
