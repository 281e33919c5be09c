// Try it: somebody's history and list; a click goes through the whole stream, and the time until the list has it is taken.
import * as api from "./api.js";
import { $, attribute, calm, h, text } from "./dom.js";
import * as format from "./format.js";
import { row } from "./trial_row.js";

const PATIENCE_MS = 15_000;
const PAUSE_MS = 10; // between two looks while a click is on its way
const CHIPS = 6;

let user = null;
let items = []; // as shown
let type = null; // of the events that a click makes: what people of this stream do most
let types = [];
let busy = false;

export function start() {
  $("who").addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = $("user").value.trim();
    if (wanted) show(wanted);
  });
  $("someone-new").addEventListener("click", () => show(`guest-${Math.random().toString(36).slice(2, 8)}`));
  $("list").addEventListener("keydown", (event) => {
    const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const picks = [...$("list").querySelectorAll(".pick")];
    const place = picks.indexOf(document.activeElement);
    if (!way || place < 0) return;
    event.preventDefault();
    picks[(place + way + picks.length) % picks.length].focus();
  });
  $("list").replaceChildren(h("li", { class: "empty" }, "Choose a user, or be somebody new."));
}

/** @param offered event types of this system. */
export function know(offered = []) {
  types = offered;
}

/** Offer users, and return how many; the first of them is shown where nobody is yet. */
export async function offer() {
  const { users } = await api.get("/v1/users?limit=40");
  $("users").replaceChildren(...users.map((id) => h("option", { value: id })));
  if (!$("chips").children.length) {
    $("chips").replaceChildren(...users.slice(0, CHIPS).map((id) => h("button", { type: "button", class: "plain", "aria-pressed": "false", onclick: () => show(id) }, id)));
  }
  if (user === null && users.length) await show(users[0]);
  return users.length;
}

/** Look again, for what the stream brought in the meantime, unless somebody is about to click. */
export async function refresh() {
  if (user === null || busy || $("list").matches(":hover, :focus-within")) return;
  await past(user, await look(user));
}

async function show(id) {
  user = id;
  items = [];
  $("user").value = id;
  for (const chip of $("chips").children) attribute(chip, "aria-pressed", String(chip.textContent === id));
  text($("timing"), "");
  try {
    await past(id, await look(id));
    invite();
  } catch (error) {
    say(error);
  }
}

async function look(id) {
  const answer = await api.recommendations(id);
  if (user === id) listed(answer, false);
  return answer;
}

/** @param answer a list of the user, which says whether there is a state to look at. */
async function past(id, answer) {
  const state = answer.state.known ? await api.get(`/v1/users/${encodeURIComponent(id)}`) : null;
  if (user !== id) return;
  if (state?.events.length) type = state.events[0].type;
  text($("past-note"), state ? `${format.plural(state.total, "event")} in all` : "");
  const shown = $("past").dataset.user === id ? Number($("past").dataset.total) : null;
  const fresh = state && shown !== null ? state.total - shown : 0;
  $("past").dataset.user = id;
  $("past").dataset.total = String(state?.total ?? 0);
  $("past").replaceChildren(...(state ? state.events.map((event, place) => h("li", { class: place < fresh ? "fresh" : null },
    h("span", {}, event.title ?? event.item_id ?? "an item that is not in the catalogue"), h("span", { class: "what" }, event.type), h("span", { class: "when" }, format.moment(event.time))))
    : [h("li", { class: "empty" }, "Nothing yet. Click a title, and it stands here.")]));
  text($("trust"), state ? (state.quarantined ? "Held in quarantine: nothing of this user is learned from." : state.trust < 0.999 ? `Trusted to ${format.share(state.trust)}: counts less in training.` : "Fully trusted.") : "Nobody knows this user yet.");
}

/** Draw a list; rows that stay keep their element and glide to their place. */
function listed(answer, mark) {
  const before = new Map(items.map((item, place) => [item.item_id, place]));
  const list = $("list");
  const rows = new Map([...list.children].map((element) => [element.dataset.item, element]));
  const tops = new Map([...rows].map(([id, element]) => [id, element.getBoundingClientRect().top]));
  const same = items.length === answer.items.length && answer.items.every((item, place) => items[place].item_id === item.item_id && items[place].reasons[0] === item.reasons[0]);
  note(answer);
  if (same && !mark) return;
  items = answer.items;
  const made = items.map((item, place) => {
    const was = before.get(item.item_id);
    const moved = mark ? (was === undefined ? "new" : was - place) : null;
    return row(item, place, moved, { pick: () => click(item), why: () => api.post("/v1/rank", { user_id: user, items: [item.item_id], explain: true }) });
  });
  list.replaceChildren(...(made.length ? made : [h("li", { class: "empty" }, "Nothing can be recommended yet.")]));
  if (calm() || !mark) return;
  for (const element of made) {
    const top = tops.get(element.dataset.item);
    const shift = top === undefined ? 0 : top - element.getBoundingClientRect().top;
    if (shift) element.animate([{ transform: `translateY(${shift}px)` }, { transform: "none" }], { duration: 420, easing: "cubic-bezier(.2,.7,.2,1)" });
  }
}

function note({ model, state }) {
  const by = model.version && items ? `by ${model.version}` : "by popularity, as there is no model yet";
  text($("list-note"), state.known ? `${by}, from ${format.plural(state.events, "event")}` : `${by}; nothing is known of them`);
}

async function click(item) {
  if (busy) return;
  const id = user;
  const [began, sentAs] = [performance.now(), type ?? (types.includes("click") ? "click" : types[0] ?? "view")];
  busy = true;
  let answer = null;
  const place = [...$("list").children].findIndex((element) => element.contains(document.activeElement));
  attribute($("list"), "aria-busy", "true");
  $("timing").replaceChildren(h("div", { class: "line" }, h("b", {}, "…"), h("span", { class: "steps" }, `“${item.title || item.item_id}” is on its way`)));
  try {
    const { accepted: [{ partition, offset }] } = await api.post("/v1/events", { events: [{ user_id: id, item_id: item.item_id, type: sentAs }] });
    const taken = performance.now() - began;
    answer = await visible(id, partition, offset, began);
    const whole = performance.now() - began;
    if (user !== id) return;
    const known = new Set(items.map((one) => one.item_id));
    const fresh = answer.items.filter((one) => !known.has(one.item_id)).length;
    listed(answer, true);
    const [top, steps] = [format.ms(whole), `${format.ms(taken)} until Kafka had the ${sentAs}, ${format.ms(whole - taken)} until it was in the state and the list made from it`];
    $("timing").replaceChildren(
      h("div", { class: "line" }, h("b", {}, top), h("span", {}, `from your click to another list: ${fresh ? format.plural(fresh, "new title") : "the same titles, in another order"}`)),
      h("div", { class: "steps" }, steps));
    $("timing").dataset.ms = whole.toFixed(1);
    if (place >= 0) $("list").children[Math.min(place, items.length - 1)]?.querySelector(".pick")?.focus({ preventScroll: true });
  } catch (error) {
    say(error);
  } finally {
    busy = false;
    attribute($("list"), "aria-busy", null);
  }
  if (answer) await past(id, answer).catch(say);
}

/** The first answer whose state has the event. */
async function visible(id, partition, offset, began) {
  while (performance.now() - began < PATIENCE_MS) {
    const answer = await api.recommendations(id);
    if (answer.state.partition === partition && answer.state.offset >= offset) return answer;
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
  throw new Error(`Kafka has the event, but after ${PATIENCE_MS / 1000} s it is not in the state: the pipeline is behind, see the lag.`);
}

function invite() {
  $("timing").replaceChildren(h("div", { class: "steps" }, "Click a title: the event goes to Kafka, into the state, and the list changes."));
}

function say(error) {
  $("timing").replaceChildren(h("p", { class: "fault" }, error.status === 403 ? `${error.message}.` : `That did not work: ${error.message}`));
}
