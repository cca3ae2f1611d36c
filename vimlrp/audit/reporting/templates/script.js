(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Tables whose headings can be pressed to sort by them.
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    if (a === "" || b === "") return (a === "") - (b === "");
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  const sortBy = (table, heading) => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    all("th[aria-sort]", table.tHead).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const column = heading.cellIndex;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [valueOf(a, column), valueOf(b, column)];
      // What has no value stays last, whatever the direction.
      return x === "" || y === "" || ascending ? compare(x, y) : -compare(x, y);
    });
    table.tBodies[0].append(...rows);
  };
  all("table.sortable").forEach((table) => {
    all("thead th", table).forEach((heading) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sortBy(table, heading));
      heading.append(button);
    });
  });

  // The ranking can be narrowed.
  const search = document.getElementById("search");
  const flagged = document.getElementById("only-flagged");
  const narrow = () => {
    const wanted = search.value.trim().toLowerCase();
    all("#ranking tbody tr").forEach((row) => {
      const named = row.cells[1].textContent.toLowerCase().includes(wanted);
      row.hidden = !named || (flagged.checked && !row.classList.contains("flagged"));
    });
  };
  if (search) {
    search.addEventListener("input", narrow);
    flagged.addEventListener("change", narrow);
  }

  // Decisions: kept for this report in the browser where it lets us, and always exportable.
  const bar = document.getElementById("decisions");
  if (!bar) return;
  const format = Number(bar.dataset.format);
  const key = `vimlrp-audit-${bar.dataset.report}`;
  const status = bar.querySelector("[role=status]");
  const boxes = all("fieldset[data-finding]");
  const read = () => Object.fromEntries(boxes.map((box) => [box.dataset.finding, {
    class: Number(box.dataset.class),
    name: box.dataset.name,
    channel: box.dataset.channel,
    verdict: box.dataset.verdict,
    decision: box.querySelector("input[type=radio]:checked").value,
    note: box.querySelector("input[type=text]").value,
  }]));
  const count = () => {
    const chosen = Object.values(read()).map((entry) => entry.decision);
    const of = (decision) => chosen.filter((one) => one === decision).length;
    bar.querySelector("output").textContent =
      `${of("accept")} accepted, ${of("reject")} rejected, ${of("open")} open`;
  };
  const keep = () => {
    count();
    try { localStorage.setItem(key, JSON.stringify(read())); } catch { /* private windows refuse */ }
  };
  const apply = (decisions) => {
    let applied = 0;
    boxes.forEach((box) => {
      const entry = decisions[box.dataset.finding];
      if (!entry) return;
      const radio = all("input[type=radio]", box).find((one) => one.value === entry.decision);
      if (!radio) return;
      radio.checked = true;
      box.querySelector("input[type=text]").value = String(entry.note ?? "");
      applied += 1;
    });
    return applied;
  };
  bar.querySelector("button").addEventListener("click", () => {
    const content = { format, report: bar.dataset.report, exported: new Date().toISOString(), decisions: read() };
    const address = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2) + "\n"], { type: "application/json" }));
    const link = Object.assign(document.createElement("a"), { href: address, download: "decisions.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
    status.textContent = "Exported as decisions.json.";
  });
  bar.querySelector("input[type=file]").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    let content;
    try { content = JSON.parse(await file.text()); } catch { content = null; }
    if (!content || content.format !== format || typeof content.decisions !== "object" || !content.decisions) {
      status.textContent = `${file.name} holds no decisions of a report; nothing was changed.`;
      return;
    }
    const given = Object.keys(content.decisions).length;
    const applied = apply(content.decisions);
    keep();
    status.textContent = `${applied} of ${given} decisions of ${file.name} were taken over.`
      + (applied < given ? " The others belong to findings that this report does not have." : "");
  });
  try { apply(JSON.parse(localStorage.getItem(key)) ?? {}); } catch { /* nothing kept */ }
  boxes.forEach((box) => box.addEventListener("input", keep));
  count();
})();
