for (const section of document.querySelectorAll(".with-table")) {
  const table = new DataTable(section.querySelector("table.layers"), {
    paging: false,
    order: [],
    layout: { topStart: "search", topEnd: "info", bottomStart: null, bottomEnd: null },
    language: { search: "Search", info: "_TOTAL_ layers", infoFiltered: " of _MAX_", infoEmpty: "no layer" },
  });
  for (const choice of section.querySelectorAll("select[data-column]"))
    choice.addEventListener("change", () => {
      table.column(Number(choice.dataset.column)).search(choice.value, { exact: choice.value !== "" }).draw();
    });
}
