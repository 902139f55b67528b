// The verdicts table: sort by a column (buttons in the header), filter by part, verdict, scale and words.
document.querySelectorAll(".verdict-board").forEach((board) => {
  const table = board.querySelector("table");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const controls = board.querySelector("form");
  const status = board.querySelector("[role=status]");

  const shownVerdicts = (row) =>
    controls.scale.value === "both" ? [row.dataset.quick, row.dataset.full] : [row.dataset[controls.scale.value]];

  const filter = () => {
    const { part, family, data, verdict, scale, words } = controls;
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !(
        (!part?.value || row.dataset.part === part.value) &&
        (!family.value || row.dataset.family === family.value) &&
        (!data.value || row.dataset.data.split(",").includes(data.value)) &&
        (!verdict.value || shownVerdicts(row).some((v) => v.split(",").includes(verdict.value))) &&
        wanted.every((word) => text.includes(word))
      );
      if (!row.hidden) shown += 1;
    });
    table.dataset.scale = scale.value; // the style sheet hides the other scale's column
    status.textContent = `${shown} of ${rows.length} claims shown`;
  };

  const sort = (header) => {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    const column = header.cellIndex;
    const key = (row) => row.cells[column].dataset.sort || row.cells[column].textContent.trim();
    table.querySelectorAll("th[aria-sort]").forEach((th) => th.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    rows.sort((a, b) => key(a).localeCompare(key(b), "en", { numeric: true }) * (ascending ? 1 : -1));
    body.append(...rows);
  };

  table.querySelectorAll("th[aria-sort] button").forEach((button) => {
    button.addEventListener("click", () => sort(button.closest("th")));
  });
  if (!controls) return; // a board of one chapter sorts only
  controls.addEventListener("input", filter);
  controls.addEventListener("reset", () => setTimeout(filter));
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.hidden = false;
  filter();
});
