// The search box of the explorer. Everything else on the page works without scripts.
"use strict";
(() => {
  const MOST = 600;
  const form = document.getElementById("find");
  if (!form) return;
  form.hidden = false;
  const input = form.querySelector("input"), answer = form.querySelector("output");
  const items = [...document.querySelectorAll(".tree li")].map(
    (line) => ({
      line, text: line.textContent.toLowerCase(), token: line.querySelector("small").textContent,
      id: line.closest("[data-prefix]").dataset.prefix + (line.querySelector("code")?.textContent ?? ""),
    }));
  const branches = [...document.querySelectorAll(".tree details")];
  const listed = new Set(items.map((item) => item.token)).size;
  let opened = [];

  function reset() {
    for (const element of document.querySelectorAll(".tree .miss")) element.classList.remove("miss");
    for (const element of opened) element.open = false;
    opened = [];
  }

  function open(element) {
    for (let above = element; above; above = above.parentElement) {
      if (above.tagName !== "DETAILS") continue;
      if (!above.open) { above.open = true; opened.push(above); }
      above.dataset.hit = "";
    }
  }

  function search() {
    const wanted = input.value.trim();
    reset();
    for (const branch of document.querySelectorAll("[data-hit]")) delete branch.dataset.hit;
    answer.value = "";
    if (wanted.length < 2) return;
    // An ID, or the beginning of one: <a_170><b_3>. Otherwise all words, in the title or the token.
    const words = wanted.toLowerCase().split(/\s+/), id = wanted.replace(/\s/g, "");
    const hits = items.filter(wanted.startsWith("<")
      ? (item) => item.id.startsWith(id)
      : (item) => words.every((word) => item.text.includes(word)));
    for (const { line } of hits.slice(0, MOST)) open(line.parentElement);
    if (hits.length) {
      const found = new Set(hits.slice(0, MOST).map(({ line }) => line));
      for (const { line } of items) line.classList.toggle("miss", !found.has(line));
      for (const branch of branches) branch.classList.toggle("miss", !("hit" in branch.dataset));
    }
    const different = new Set(hits.map((item) => item.token)).size;
    const shown = hits.length > MOST ? `, the first ${MOST} places shown` : "";
    answer.value = `${different.toLocaleString("en")} of ${listed.toLocaleString("en")} listed items, `
      + `in ${hits.length.toLocaleString("en")} places${shown}`;
    hits[0]?.line.scrollIntoView({ block: "nearest" });
  }

  let waiting;
  input.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 200); });
  form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
})();
