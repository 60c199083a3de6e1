"use strict";
(() => {
  const cells = [...document.querySelectorAll("td[data-cell]")];
  const data = JSON.parse(document.getElementById("cells").textContent);
  const buckets = [...document.querySelectorAll("input[name=bucket]")];
  const tip = document.getElementById("tip");
  let bucket = 0;
  document.documentElement.classList.add("js");
  // The title is for pages without JavaScript; here the tip says more, and at once.
  for (const cell of cells) cell.removeAttribute("title");

  function show(chosen) {
    bucket = chosen;
    cells.forEach((cell, i) => {
      const words = data[i][3][bucket] ?? ["", "unasked"];
      cell.textContent = words[0];
      cell.className = words[1];
    });
  }

  function element(name, text, parent) {
    const made = document.createElement(name);
    made.textContent = text;
    parent.append(made);
    return made;
  }

  function fill([path, bits, dead, shown]) {
    tip.replaceChildren();
    element("strong", `${bits} bits`, tip);
    element("div", path, tip).className = "path";
    if (dead) element("div", "Dead: this layer can’t influence the output.", tip);
    const table = element("table", "", tip);
    const head = element("tr", "", table);
    for (const name of ["", "relative error", "SQNR", "cosine", "mse", "max abs"]) element("th", name, head);
    shown.forEach((words, i) => {
      if (!words) return;
      const row = element("tr", "", table);
      row.className = i === bucket ? "now" : "";
      for (const text of [buckets[i].value, ...words.slice(2)]) element("td", text, row);
    });
  }

  function place(event) {
    const x = event.clientX + 18, y = event.clientY + 18;
    const left = x + tip.offsetWidth > innerWidth - 8 ? event.clientX - tip.offsetWidth - 14 : x;
    const top = y + tip.offsetHeight > innerHeight - 8 ? event.clientY - tip.offsetHeight - 14 : y;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  }

  document.querySelector(".map")?.addEventListener("pointerover", (event) => {
    const index = event.target.dataset?.cell;
    tip.style.display = index === undefined ? "none" : "block";
    if (index === undefined) return;
    fill(data[index]);
    place(event);
  });
  document.querySelector(".map")?.addEventListener("pointerleave", () => { tip.style.display = "none"; });
  buckets.forEach((input, i) => input.addEventListener("change", () => show(i)));
  // A reloaded page may remember another choice than the one it is drawn with.
  show(Math.max(0, buckets.findIndex((input) => input.checked)));
})();
