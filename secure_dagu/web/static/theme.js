// What was chosen in this browser, before the first paint: the theme, and which way graphs run.
(() => {
  const root = document.documentElement;
  const kept = (key) => {
    try {
      return localStorage.getItem(key) || "";
    } catch {
      return "";
    }
  };
  const theme = kept("secure-dagu-theme");
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  const graph = kept("secure-dagu-graph");
  if (graph === "lr" || graph === "tb") root.dataset.graph = graph;
})();
