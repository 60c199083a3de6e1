"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const views = [];
  // Syntax trees instead of compiled code: the page's policy forbids the latter.
  const options = { ast: true, actions: false, renderer: "svg" };
  const drawn = Object.entries(specs).map(async ([id, spec]) => {
    // Into a place of its own: Vega would replace the chart's label, and give every mark a role.
    const place = document.createElement("div");
    place.ariaHidden = "true";
    document.getElementById(id).append(place);
    const { view } = await vegaEmbed(place, spec, options);
    views.push([id, view]);
  });
  for (const choice of document.querySelectorAll("select[data-bits]"))
    choice.addEventListener("change", () => {
      for (const [id, view] of views)
        if (id.startsWith(choice.dataset.bits)) view.signal("bits", Number(choice.value)).run();
    });
  Promise.all(drawn).then(() => document.documentElement.classList.add("drawn"));
})();
