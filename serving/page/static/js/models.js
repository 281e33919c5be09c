// The models: how good each was when it was judged, and what the gate said.
import { $, h, rebuilt, tag, text } from "./dom.js";
import { Chart } from "./chart.js";
import * as format from "./format.js";

const SHOWN = 5;
const WORDS = { promoted: ["serves", "let through"], rejected: ["bad", "rejected"], candidate: ["warn", "being judged"], rolled_back: ["warn", "rolled back"] };

class Quality extends Chart {
  nameOf(place) {
    return this.names?.[place] ?? "";
  }
}

let chart;
let all = false;
let newest = { versions: [] };

export function start() {
  chart = new Quality({
    title: "NDCG@10 when judged", tall: true, live: false, least: 0.02, format: format.score,
    lines: [
      { label: "clean", tone: "--accent", points: true },
      { label: "under attack", tone: "--second", points: true },
      { label: "popularity", tone: "--strong-line", dash: [4, 4] },
      { label: "rejected", tone: "--bad", points: "only" },
    ],
    under: "Each model is judged on the newest window, which it has not seen; under attack, its input is moved against it (PGD).",
    empty: "No model has been judged yet.",
  });
  $("model-chart").append(chart.element);
  $("all-verdicts").addEventListener("click", () => {
    all = !all;
    list();
  });
}

/** @param models of /v1/models. @param learner of /v1/stats, for what to say before there is any. */
export function update(models, learner) {
  newest = models;
  const judged = models.versions.filter((one) => one.eval?.candidate).reverse();
  const of = (one, contender, name) => one.eval[contender]?.[name] ?? null;
  chart.names = judged.map((one) => one.version);
  const good = (one) => one.status !== "rejected";
  chart.show(
    judged.map((one) => Date.parse(one.created_at) / 1000),
    [
      judged.map((one) => (good(one) ? of(one, "candidate", "ndcg@10") : null)),
      judged.map((one) => (good(one) ? of(one, "candidate", "attacked_ndcg@10") : null)),
      judged.map((one) => of(one, "popularity", "ndcg@10")),
      judged.map((one) => (good(one) ? null : of(one, "candidate", "ndcg@10"))),
    ],
  );
  list(learner);
}

/** The version that serves, or null. */
export const serving = () => newest.versions.find((one) => one.current) ?? null;

function list(learner = {}) {
  const versions = newest.versions;
  text($("verdict-note"), versions.length ? `newest first, ${format.plural(versions.length, "version")} kept` : "");
  const key = `${all}|${versions.map((one) => one.version + one.status + one.current).join()}|${learner.detail && !versions.length}`;
  rebuilt($("verdicts"), key, () => (versions.length ? versions.slice(0, all ? undefined : SHOWN).map(verdict) : [nothing(learner)]));
  for (const when of $("verdicts").querySelectorAll(".when")) text(when, `${format.seconds(Date.now() / 1000 - Number(when.dataset.at))} ago`);
  $("all-verdicts").hidden = versions.length <= SHOWN;
  text($("all-verdicts"), all ? "Show the newest only" : `Show all ${versions.length}`);
}

function nothing(learner) {
  const said = learner.detail ? ` The learner says: ${learner.detail}.` : "";
  return h("li", { class: "empty" }, h("span", { class: "why" }, `No model yet: the first one comes when enough windows have closed. Until then the lists show what is popular.${said}`));
}

function verdict(one) {
  const [tone, words] = WORDS[one.status] ?? ["", one.status];
  const candidate = one.eval?.candidate ?? {};
  const against = one.eval?.incumbent ?? {};
  const numbers = [`NDCG@10 ${format.score(candidate["ndcg@10"])}`, format.change(candidate["ndcg@10"], against["ndcg@10"])].filter(Boolean).join(" ");
  const at = Date.parse(one.created_at) / 1000;
  return h("li", {},
    h("span", { class: "name" }, one.version),
    h("span", {}, one.current ? tag("serves now", "good") : tag(words, tone === "serves" ? "accent" : tone), " ", h("span", { class: "note" }, candidate["ndcg@10"] === undefined ? "" : numbers)),
    h("span", { class: "when", "data-at": String(at) }),
    h("span", { class: "why" }, sentence(one.reason) || "not judged yet"));
}

const sentence = (words) => (words ? words[0].toUpperCase() + words.slice(1) : "");
