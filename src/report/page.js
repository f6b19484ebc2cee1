// A tap shows what pointing at a mark shows: fingers can't hover.
addEventListener("click", (event) => {
  const title = event.target.closest("svg *")?.querySelector("title");
  const note = document.getElementById("note");
  note.textContent = title ? title.textContent : "";
  note.hidden = !title;
});
