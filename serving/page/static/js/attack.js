// Fake users on request, and what becomes of them: trust, quarantine, and what their targets gain.
import * as api from "./api.js";
import { $, attribute, h, rebuilt, text } from "./dom.js";
import * as format from "./format.js";

const KINDS = { bandwagon: "bandwagon: had with what is popular", segment: "segment: had with what is alike", average: "average: had with usual items", random: "random: had with anything" };
const STEPS = [["planning", "Planned from what people did"], ["sending", "Sent as ordinary events"], ["screening", "Screened when their window closes"], ["learning", "Next model learns the window"]];
const PHASES = [...STEPS.map(([phase]) => phase), "done"];

let parts;

export function start() {
  const kind = h("select", { id: "attack-kind" }, ...Object.entries(KINDS).map(([value, words]) => h("option", { value }, words)));
  const size = h("input", { id: "attack-size", type: "number", min: "1", max: "20", step: "1", value: "5", required: true });
  const targets = h("input", { id: "attack-targets", type: "number", min: "1", max: "20", step: "1", value: "3", required: true });
  const send = h("button", { type: "submit" }, "Send fake users");
  const form = h("form", { class: "order", autocomplete: "off" },
    h("div", {}, h("label", { for: "attack-kind" }, "How they act"), kind),
    h("div", {}, h("label", { for: "attack-size" }, "Users, %"), size),
    h("div", {}, h("label", { for: "attack-targets" }, "Targets"), targets),
    send);
  const off = h("p", { class: "note" }, "Switched off on this system, because the events go into the real stream. The setting serving.simulations = true allows it to callers with scope admin; ", h("code", {}, "headrace attack stream"), " does the same from a terminal.");
  const fault = h("p", { class: "fault", role: "alert", hidden: true });
  const steps = h("ol", { class: "steps4", "aria-label": "Steps of the attack" }, ...STEPS.map(([, words]) => h("li", {}, words)));
  const crowd = h("div", { class: "crowd", role: "img" });
  const legend = h("p", { class: "legend" });
  const shares = h("div");
  const outcome = h("p", { class: "outcome", role: "status", "aria-live": "polite" });
  const targetsNamed = h("p", { class: "targets" });
  const story = h("div", { hidden: true }, steps, outcome, crowd, legend, shares, targetsNamed);
  parts = { form, send, off, fault, steps, crowd, legend, shares, outcome, targetsNamed, story, last: null };
  $("attack").replaceChildren(
    h("div", { class: "card-head" }, h("h3", {}, "Attack it")),
    h("p", { class: "note" }, "Fake users who push items that hardly anybody has. They look like people, and their events go the way of everybody's."),
    form, off, fault, story);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    fault.hidden = true;
    send.disabled = true;
    try {
      await api.post("/v1/attacks", { kind: kind.value, size: Number(size.value) / 100, targets: Number(targets.value) });
      text(outcome, "");
    } catch (error) {
      text(fault, error.message);
      fault.hidden = false;
      send.disabled = false;
    }
  });
}

/** @param stats of /v1/stats. */
export function update(stats) {
  const status = stats.attack ?? null;
  const running = status !== null && PHASES.indexOf(status.phase) >= 0 && status.phase !== "done";
  parts.form.hidden = !stats.simulations;
  parts.off.hidden = Boolean(stats.simulations);
  if (stats.simulations) parts.send.disabled = running;
  text(parts.send, running ? "An attack is under way" : "Send fake users");
  parts.story.hidden = status === null;
  if (status !== null) tell(status);
}

function tell(status) {
  const at = status.phase === "failed" ? -1 : PHASES.indexOf(status.phase);
  [...parts.steps.children].forEach((step, place) => attribute(step, "data-done", place < at ? "yes" : place === at ? "now" : null));
  text(parts.outcome, sentence(status));
  const trust = status.trust ?? [];
  const kinds = trust.map((value) => (value === null ? "none" : value === 0 ? "held" : value < 0.999 ? "less" : "full"));
  rebuilt(parts.crowd, `${status.number}|${kinds.length}`, () => kinds.slice(0, 400).map(() => h("i")));
  [...parts.crowd.children].forEach((dot, place) => attribute(dot, "data-trust", kinds[place]));
  const many = (kind) => kinds.filter((one) => one === kind).length;
  const [held, less, full] = [many("held"), many("less"), many("full")];
  parts.crowd.setAttribute("aria-label", `${format.plural(kinds.length, "fake user")}: ${held} held, ${less} doubted, ${full} trusted so far`);
  rebuilt(parts.legend, `${kinds.length}|${held}|${less}|${full}|${status.honest_held}`, () => (kinds.length ? [
    h("span", {}, h("b", {}, format.plural(kinds.length, "fake user")), ":"),
    h("span", {}, h("b", {}, format.count(held)), " held"),
    h("span", {}, h("b", {}, format.count(less)), " doubted"),
    h("span", {}, h("b", {}, format.count(full)), " trusted so far"),
    h("span", {}, h("b", {}, format.count(status.honest_held)), " real users held"),
  ] : []));
  const seen = status.exposure ?? [];
  rebuilt(parts.shares, JSON.stringify(seen), () => exposures(seen, status.asked));
  const named = (status.targets ?? []).map((target) => target.title || target.item_id).join("; ");
  text(parts.targetsNamed, named ? `Targets: ${named}.` : "");
}

function exposures(seen, asked) {
  if (!seen.length) return [];
  const shown = seen.length > 4 ? [seen[0], ...seen.slice(-3)] : seen;
  const most = Math.max(0.05, ...shown.map((one) => one.share));
  return [h("p", { class: "note" }, `Share of the places in the lists of ${format.plural(asked ?? null, "real user")} that the targets take:`),
    ...shown.map((one, place) => {
      const bar = h("i");
      bar.style.width = `${(one.share / most) * 100}%`;
      bar.style.setProperty("--tone", `var(${place ? "--second" : "--strong-line"})`);
      return h("div", { class: "share" }, h("span", {}, `${place ? "with" : "before, with"} ${one.version ?? "what is popular"}`), h("div", { class: "bar" }, bar), h("b", {}, format.share(one.share)));
    })];
}

function sentence(status) {
  const fakes = status.fake_users ?? 0;
  const held = `${format.count(status.held)} of ${format.count(fakes)} fake users were held, and ${status.honest_held ? format.plural(status.honest_held, "real user") : "no real user"}.`;
  switch (status.phase) {
    case "planning": return "Watching what people did in the newest windows, to look like them.";
    case "sending": return `${format.count(status.sent)} of ${format.count(status.events)} events sent, by ${format.plural(fakes, "fake user")}.`;
    case "screening": return `All ${format.count(status.events)} events are in. Until their window closes, nobody knows: lists may already use them, models do not.`;
    case "learning": return `${held} The next model learns that window.`;
    case "done": return status.error ? `It ended early: ${status.error}.` : `${held} ${status.judged} has learned the window, and ${gained(status.exposure)}`;
    default: return `The attack failed: ${status.error}`;
  }
}

function gained(seen) {
  const gain = seen.at(-1).share - seen[0].share;
  return Math.abs(gain) < 0.0005 ? "the targets have gained nothing." : `the targets have ${gain > 0 ? "gained" : "lost"} ${format.share(Math.abs(gain))} of the places.`;
}
