"use strict";
// The figures of the cell under the pointer.
for (const section of document.querySelectorAll("section")) {
  const source = section.querySelector(".heat-data");
  if (!source) continue;
  const data = JSON.parse(source.textContent), tip = document.getElementById("tip");
  const pick = (rows, r, c) => (rows[r] || [])[(rows[r] || []).length === 1 ? 0 : c];
  for (const svg of section.querySelectorAll(".hot")) {
    const title = svg.querySelector("title");
    // The browser's own tooltip would cover ours.
    svg.setAttribute("aria-label", title.textContent);
    svg.removeAttribute("aria-labelledby");
    title.remove();
    const show = event => {
      const box = svg.getBoundingClientRect();
      const at = (x, size, n) => Math.max(0, Math.min(n - 1, Math.floor(x / size * n)));
      const r = at(event.clientY - box.top, box.height, data.layers.length);
      const c = at(event.clientX - box.left, box.width, data.cols);
      const lines = ["layer " + data.layers[r] + ", expert " + c];
      for (const m of data.metrics) {
        const v = pick(m.v, r, c);
        lines.push(m.n + " " + (v == null ? "not measured" : Number(v.toPrecision(3)) + (m.u ? " " + m.u : "")));
      }
      if (data.types) {
        const t = pick(data.t, r, c);
        if (t != null) lines.push("type " + data.types[t]);
      }
      tip.textContent = lines.join("\n");
      tip.style.display = "block";
      const width = tip.offsetWidth, height = tip.offsetHeight;
      const left = event.clientX + 14 + width > innerWidth ? event.clientX - 14 - width : event.clientX + 14;
      const top = event.clientY + 14 + height > innerHeight ? event.clientY - 14 - height : event.clientY + 14;
      tip.style.left = Math.max(4, left) + "px";
      tip.style.top = Math.max(4, top) + "px";
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", () => { tip.style.display = "none"; });
  }
}
// Tables sorted by a column.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[i].dataset.v;
      const compare = (a, b) => {
        const x = key(a), y = key(b);
        if (x === undefined) return a.cells[i].textContent.localeCompare(b.cells[i].textContent, "en", { numeric: true });
        // What was not measured stays at the end.
        if (x === "" || y === "") return (x === "") - (y === "") || 0;
        return x - y;
      };
      const rows = [...body.rows].sort((a, b) => {
        const order = compare(a, b);
        const fixed = key(a) === "" || key(b) === "";
        return down && !fixed ? -order : order;
      });
      body.append(...rows);
    });
  });
}
