// Small helps for the pages; each page works without them too.

// A formula wider than its box scrolls: let the keyboard reach it then.
function markScrollableFormulas() {
  for (const box of document.querySelectorAll("div.math .formula")) {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
    } else {
      box.removeAttribute("tabindex");
    }
  }
}
document.fonts.ready.then(markScrollableFormulas);
window.addEventListener("resize", markScrollableFormulas);

// Turn a recall card: half a turn away, open or close it, half a turn back.
const edge = { transform: "rotateY(90deg)" };
const flat = { transform: "rotateY(0deg)" };
async function turn(card) {
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    await card.animate([flat, edge], { duration: 130, easing: "ease-in" })
      .finished;
    card.animate([edge, flat], { duration: 170, easing: "ease-out" });
  }
  card.open = !card.open;
}
for (const question of document.querySelectorAll(".recall-card > summary")) {
  question.addEventListener("click", (event) => {
    event.preventDefault();
    turn(question.parentElement);
  });
}

// On paper each card shows its answer.
const cards = () => document.querySelectorAll(".recall-card");
window.addEventListener("beforeprint", () => {
  for (const card of cards()) {
    card.dataset.wasOpen = card.open;
    card.open = true;
  }
});
window.addEventListener("afterprint", () => {
  for (const card of cards()) card.open = card.dataset.wasOpen === "true";
});

// The excerpts of a search come from the text, not from the buttons above it.
if (typeof Search !== "undefined") {
  const toText = Search.htmlToText;
  Search.htmlToText = (page, anchor) => {
    const html = new DOMParser().parseFromString(page, "text/html");
    for (const part of html.querySelectorAll(".bd-header-article")) {
      part.remove();
    }
    return toText(html.documentElement.outerHTML, anchor);
  };
}
