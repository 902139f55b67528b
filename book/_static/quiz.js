// The verdict quiz of a chapter: predictions below the claims, kept in this browser; the verdict table opens after.
document.querySelectorAll("details.verdict-quiz").forEach((quiz) => {
  const verdicts = JSON.parse(quiz.dataset.verdicts); // {claim: verdict}
  const ids = Object.keys(verdicts);
  const form = quiz.querySelector("form");
  const said = form.querySelector("[role=status]");
  const table = document.querySelector(".verdict-table");
  const name = `verdict-quiz:${quiz.dataset.chapter}`;
  if (!table) return;

  const gate = document.createElement("div");
  gate.className = "verdict-gate";
  gate.innerHTML = '<p role="status"></p><button type="button">Open the verdict table</button>';
  table.before(gate);
  const [result, open] = gate.children;

  const stored = () => {
    try {
      return JSON.parse(localStorage.getItem(name)) || {};
    } catch {
      return {}; // no storage, or not ours: the quiz starts anew
    }
  };
  const keep = (state) => {
    try {
      localStorage.setItem(name, JSON.stringify(state));
    } catch { /* the predictions last as long as the page */ }
  };
  let { guesses = {}, opened = false } = stored();

  const mark = () => {
    table.querySelectorAll(".quiz-mark").forEach((note) => note.remove());
    if (!opened) return;
    table.querySelectorAll("tbody tr").forEach((row) => {
      const id = row.cells[0].textContent.trim();
      if (!guesses[id]) return;
      const note = document.createElement("span");
      note.className = "quiz-mark";
      note.textContent = guesses[id] === verdicts[id] ? "\u2713 as you said" : `you said ${guesses[id]}`;
      row.cells[0].append(note);
    });
  };

  const show = () => {
    const made = ids.filter((id) => guesses[id]);
    const right = made.filter((id) => guesses[id] === verdicts[id]);
    const guessing = made.length > 0 && !opened;
    ids.forEach((id) => form.elements[id].forEach((choice) => { choice.checked = choice.value === guesses[id]; }));
    document.body.classList.toggle("quiz-running", guessing); // the style sheet hides what would tell the answers
    table.hidden = guessing;
    gate.hidden = made.length === 0;
    open.hidden = !guessing;
    const counted = `${made.length} of ${ids.length} verdicts predicted`;
    said.textContent = made.length ? `${counted}. They are kept in this browser only.` : "";
    result.textContent = opened ? `You were right about ${right.length} of the ${made.length} you predicted.` : `${counted}.`;
    mark();
  };

  form.addEventListener("change", (event) => {
    guesses[event.target.name] = event.target.value;
    opened = false;
    keep({ guesses, opened });
    show();
  });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    guesses = {};
    opened = false;
    keep({});
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  open.addEventListener("click", () => {
    opened = true;
    keep({ guesses, opened });
    show();
    result.tabIndex = -1;
    result.focus();
  });
  quiz.hidden = false;
  show();
});
