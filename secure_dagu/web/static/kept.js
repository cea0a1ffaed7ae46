// Preferences that this browser keeps; where it keeps nothing, they hold for the page.

export function read(key) {
  try {
    return localStorage.getItem(`secure-dagu-${key}`) || "";
  } catch {
    return "";
  }
}

export function keep(key, value) {
  try {
    localStorage.setItem(`secure-dagu-${key}`, value);
  } catch {
    // It holds for this page then.
  }
}
