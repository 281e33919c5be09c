// One row of a list: a title to click, what moved, and on request why it is there.
import { attribute, h, text } from "./dom.js";

/**
 * @param moved places up (negative: down), "new", or null where nothing is to be said of it.
 * @param actions {pick: what a click does, why: asks for the answer with explanations}.
 */
export function row(item, place, moved, actions) {
  const [way, words, spoken] = movement(moved);
  const ask = h("button", { type: "button", class: "quiet ask", "aria-expanded": "false", "aria-label": `Why ${item.title || item.item_id}?` }, "Why?");
  const element = h("li", { "data-item": item.item_id, class: way === "new" ? "fresh" : null },
    h("button", { type: "button", class: "pick", onclick: actions.pick },
      h("span", { class: "rank", "aria-hidden": true }, String(place + 1)),
      h("span", {}, h("span", { class: "title" }, item.title || item.item_id), h("span", { class: "why", title: item.reasons.join("; ") }, item.reasons[0] ?? ""))),
    h("span", { class: "side" }, h("span", { class: "moved", "data-way": way }, h("span", { "aria-hidden": true }, words), h("span", { class: "unseen" }, spoken)), ask));
  let effects = null;
  ask.addEventListener("click", async () => {
    if (effects) {
      effects.remove();
      effects = null;
      attribute(ask, "aria-expanded", "false");
      return;
    }
    effects = h("ul", { class: "effects" }, h("li", {}, "leaving out one event after the other …"));
    element.append(effects);
    attribute(ask, "aria-expanded", "true");
    try {
      const answer = await actions.why();
      const told = answer.items[0]?.explanation ?? [];
      effects?.replaceChildren(...(told.length ? bars(told) : [h("li", {}, "No event moved it: it is what is popular.")]));
    } catch (error) {
      if (effects) text(effects.firstChild, error.message);
    }
  });
  return element;
}

function movement(moved) {
  if (moved === null || moved === 0) return [null, "", ""];
  if (moved === "new") return ["new", "new", "new in the list"];
  return moved > 0 ? ["up", `▲ ${moved}`, `${moved} places up`] : ["down", `▼ ${-moved}`, `${-moved} places down`];
}

function bars(told) {
  const most = Math.max(...told.map((one) => Math.abs(one.effect)), 1e-9);
  return told.map((one) => {
    const bar = h("i", { "data-sign": one.effect < 0 ? "minus" : null });
    bar.style.width = `${(Math.abs(one.effect) / most) * 100}%`;
    return h("li", {}, h("span", { class: "bar", "aria-hidden": true }, bar), h("span", {}, one.text));
  });
}
