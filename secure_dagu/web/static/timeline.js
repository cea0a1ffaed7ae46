// The timeline by keyboard: Tab stops once in each row, arrows go along its bars and to other rows.

const bars = (row) => [...row.querySelectorAll(".timeline-bar")];

document.addEventListener("keydown", (event) => {
  const bar = event.target.closest?.(".timeline-bar");
  if (!bar) return;
  const row = bar.closest("li");
  const own = bars(row);
  const at = own.indexOf(bar);
  const goals = {
    ArrowRight: () => own[at + 1],
    ArrowLeft: () => own[at - 1],
    Home: () => own[0],
    End: () => own.at(-1),
    ArrowDown: () => nearest(bar, row.nextElementSibling),
    ArrowUp: () => nearest(bar, row.previousElementSibling),
  };
  if (!(event.key in goals)) return;
  event.preventDefault();
  goals[event.key]()?.focus();
});

function nearest(bar, row) {
  if (!row) return undefined;
  const middle = (one) => {
    const box = one.getBoundingClientRect();
    return box.left + box.width / 2;
  };
  const distance = (one) => Math.abs(middle(one) - middle(bar));
  return bars(row).reduce((best, one) => (best && distance(best) <= distance(one) ? best : one), undefined);
}
