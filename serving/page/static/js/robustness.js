// How robust the serving model is, as the gate measured it, and what the newest screen found.
import { $, h, rebuilt } from "./dom.js";
import * as format from "./format.js";

/** @param version that serves, as /v1/models has it, or null. @param learner of /v1/stats. */
export function update(version, learner = {}) {
  const screen = learner.trust ?? null;
  rebuilt($("facts"), JSON.stringify([version?.version, screen]), () => [
    h("div", { class: "card-head" }, h("h3", {}, version ? `The model that serves: ${version.version}` : "No model serves yet")),
    ...(version ? measured(version.eval) : [h("p", { class: "empty" }, "Figures come with the first model that the gate lets through.")]),
    screened(screen),
  ]);
}

function measured(evaluation) {
  const { candidate = {}, attack = {}, exam = {} } = evaluation;
  const clean = candidate["ndcg@10"] ?? null;
  const attacked = candidate["attacked_ndcg@10"] ?? null;
  const facts = [];
  if (clean && attacked !== null) {
    facts.push(fact("Quality kept under attack", format.share(attacked / clean),
      `Every representation of a history is moved against the model, by ${format.share(attack.epsilon)} of its length at most. ${format.plural(exam.targets ?? null, "event")} were asked.`,
      meter("clean", clean, clean), meter("under PGD", attacked, clean, "--second")));
  }
  if (candidate.exposure_lift !== undefined) {
    facts.push(fact("Places that pushed items gain", format.share(candidate.exposure_lift),
      "Of all places shown, under a battery of attacks: an event appended to histories, a text moved towards what is popular."));
  }
  if (evaluation.stability !== undefined) {
    facts.push(fact("Lists in common with the model before", format.share(evaluation.stability), "A model whose lists have next to nothing in common with the last one's is rejected."));
  }
  return facts;
}

function screened(screen) {
  if (!screen) return fact("Users screened", format.DASH, "Windows are screened for fake users once a model has learned from earlier ones.");
  const doubted = screen.doubted ? `${format.plural(screen.doubted, "more is", "more are")} doubted, and ${screen.doubted === 1 ? "counts" : "count"} less in training.` : "Nobody else is doubted.";
  return fact("Held in quarantine in the newest window", `${format.count(screen.quarantined)} of ${format.count(screen.users)}`, `${doubted} Window of ${format.moment(screen.window)}.`);
}

function fact(name, figure, words, ...more) {
  return h("div", { class: "fact" }, h("div", { class: "head" }, h("span", {}, name), h("b", {}, figure)), ...more, h("p", {}, words));
}

function meter(name, value, most, tone) {
  const bar = h("i");
  bar.style.width = `${Math.max(0, Math.min(100, (value / most) * 100))}%`;
  if (tone) bar.style.setProperty("--tone", `var(${tone})`);
  return h("div", { class: "meter" }, h("span", {}, name), h("div", { class: "bar" }, bar), h("span", {}, format.score(value)));
}
