// A tap shows what pointing at a mark shows: fingers can't hover.
addEventListener("click", (event) => {
  const title = event.target.closest("svg *")?.querySelector("title");
  const note = document.getElementById("note");
  note.textContent = title ? title.textContent : "";
  note.hidden = !title;
});

// A small chart is scaled to its card, its type is not.
const fit = () => {
  for (const chart of document.querySelectorAll("svg.small")) {
    chart.style.setProperty("--type", `${(12 * chart.viewBox.baseVal.width) / chart.clientWidth}px`);
  }
};
addEventListener("resize", fit);
fit();

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    getSelection().selectAllChildren(source);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      // Where a page may not reach the clipboard, the older way may work; else the text is selected.
      button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
    }
  });
}

// The first number of a cell, its units added up: "4 min 5 s" is 245, "< 0.01 %" is less than "0.01 %".
const UNITS = { s: 1, min: 60, h: 3600, d: 86400, B: 1, KiB: 1024, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };
const value = (text) => {
  let sum = -1;
  for (const [, number, unit] of text.matchAll(/([\d.,]+)\s*([a-zA-Z%]*)/g)) {
    sum = Math.max(sum, 0) + Number(number.replaceAll(",", "")) * (UNITS[unit] ?? 1);
    if (!(unit in UNITS)) break;
  }
  return text.startsWith("<") ? sum * 0.99 : sum;
};

// A click on a column's head sorts by it: numbers from the largest, words from A; a second click turns it round.
for (const head of document.querySelectorAll(".grid th")) {
  head.addEventListener("click", () => {
    const column = head.cellIndex;
    const body = head.closest("table").tBodies[0];
    const numbers = head.classList.contains("number");
    const first = numbers ? "descending" : "ascending";
    const order = head.ariaSort === first ? (numbers ? "ascending" : "descending") : first;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const text = (row) => row.cells[column].textContent;
    const rows = [...body.rows].sort((one, other) => {
      const [left, right] = [text(one), text(other)];
      const ascending = numbers ? value(left) - value(right) : left.localeCompare(right, undefined, { numeric: true });
      return order === "ascending" ? ascending : -ascending;
    });
    body.append(...rows);
  });
}
