// The flow: nodes with what they hold, and arrows with what goes along them now.
import { $, attribute, h, text } from "./dom.js";
import * as format from "./format.js";

// id, words, column and row of the grid on a wide screen; in this order on a narrow one
const NODES = {
  kafka: ["Kafka", 1, 1], state: ["User state", 3, 1], api: ["API", 9, 1], people: ["People", 11, 1],
  catalogue: ["Catalogue", 1, 3], windows: ["Windows", 3, 3], learner: ["Learner", 5, 3], gate: ["Gate", 7, 3], model: ["Model", 9, 3],
};
// id, way, unit, spoken, column and row; a column may span
const ARROWS = {
  events: ["right", "events/s", "from Kafka to the user state", "2", 1],
  reads: ["right", "reads/s", "from the user state to the API", "4 / 9", 1],
  answers: ["right", "answers/s", "from the API to people", "10", 1],
  items: ["down", "items", "from Kafka to the catalogue", "1", 2],
  closed: ["down", "windows/min", "from the user state to closed windows", "3", 2],
  learned: ["right", "a minute", "from windows to the learner", "4", 3],
  candidates: ["right", "a minute", "candidates from the learner to the gate", "6", 3],
  promoted: ["right", "a minute", "models from the gate to serving", "8", 3],
  swap: ["up", "", "from the serving model into the API", "9", 2],
};
const NARROW = ["kafka", "events", "state", "reads", "api", "answers", "people", "items", "closed", "windows", "learned", "learner", "candidates", "gate", "promoted", "model", "swap", "catalogue"];

const parts = {};

export function start() {
  const made = NARROW.map((id) => (NODES[id] ? node(id, ...NODES[id]) : arrow(id, ...ARROWS[id])));
  $("flow").replaceChildren(...made);
}

function node(id, name, column, row) {
  const [figure, small] = [h("b", {}, format.DASH), h("small")];
  const element = h("li", { class: "node", "data-id": id }, h("h3", {}, name), figure, small);
  element.style.gridArea = `${row} / ${column}`;
  parts[id] = { element, figure, small };
  return element;
}

function arrow(id, way, unit, spoken, column, row) {
  const figure = h("b");
  const element = h("li", { class: "arrow", "data-way": way, "data-id": id },
    h("span", { class: "track", "aria-hidden": true }),
    h("span", { class: "label" }, figure), h("span", { class: "label" }, unit),
    h("span", { class: "unseen" }, spoken));
  element.style.gridColumn = column;
  element.style.gridRow = String(row);
  parts[id] = { element, figure };
  return element;
}

function put(id, figure, small, tone = null) {
  text(parts[id].figure, figure);
  text(parts[id].small, small);
  attribute(parts[id].element, "data-tone", tone);
}

/** @param words on the arrow. @param perS how much goes along, for the pace; 0 and null stand still. */
function along(id, words, perS) {
  const { element, figure } = parts[id];
  text(figure, words);
  attribute(element, "data-live", perS > 0 ? "yes" : null);
  if (perS > 0) {
    const pace = perS < 1 ? 2.4 : perS < 10 ? 1.5 : perS < 100 ? 0.9 : perS < 1000 ? 0.6 : 0.4; // s for one dash
    element.style.setProperty("--pace", `${pace}s`);
  }
}

/** @param stats of /v1/stats. @param ring of samples. @param latency {p50, p99} in ms. */
export function update(stats, ring, latency) {
  const { events = {}, catalog = {}, learner = {}, models = {}, model = {}, layout = {} } = stats;
  const running = stats.pipeline !== null && stats.phase === "running";
  const asked = ring.last("requests_per_s");
  const closing = perMinute(ring, "windows");
  const [training, promoting] = [perMinute(ring, "trained"), perMinute(ring, "promoted")];
  const down = Object.entries(stats.actors ?? {}).filter(([, state]) => state !== "up").map(([name]) => name);

  along("events", format.rate(running ? events.rate_per_s : null), running ? events.rate_per_s : 0);
  along("reads", format.rate(asked), asked);
  along("answers", format.rate(asked), asked);
  along("items", format.count(catalog.items), catalog.lag);
  along("closed", format.rate(closing), closing / 60);
  along("learned", format.rate(training), learner.phase === "training" ? 5 : 0);
  along("candidates", format.rate(training), learner.phase === "judging" ? 5 : 0);
  along("promoted", format.rate(promoting), model.age_s !== null && model.age_s < 5 ? 5 : 0);
  along("swap", model.version ? `swapped in` : "none yet", model.age_s !== null && model.age_s < 5 ? 5 : 0);

  const waiting = stats.lag ?? null;
  put("kafka", waiting === 0 ? "all read" : format.count(waiting), `${waiting ? "waiting; " : ""}${format.count(events.applied)} events read${events.dead_lettered ? `, ${format.count(events.dead_lettered)} dead letters` : ""}`);
  put("state", format.count(stats.users), down.length ? `down: ${down.join(", ")}` : `users; ${format.plural(layout.shard_actors ?? null, "shard actor")}, ${format.plural(layout.ingestors ?? null, "ingestor")}`, down.length ? "bad" : null);
  put("api", latency.p50 === null ? format.DASH : format.ms(latency.p50), latency.p50 === null ? "nobody has asked yet" : `median answer; 99 of 100 within ${format.ms(latency.p99)}`);
  put("people", format.count(stats.request_ms?.count), `lists since start, ${format.plural(stats.request_ms?.errors ?? null, "error")}`, stats.request_ms?.errors ? "bad" : null);
  put("catalogue", format.count(catalog.items), `items; ${catalog.encoded === catalog.items ? "all texts have vectors" : `${format.count(catalog.encoded)} have vectors`}`);
  put("windows", format.count(stats.windows), stats.trust?.screened ? `closed; screened to ${format.moment(stats.trust.screened)}` : "closed; none screened yet");
  put("learner", learner.phase ?? "starting", learner.detail ? format.moments(learner.detail) : (learner.trained ? `${format.plural(learner.trained, "model")} trained` : "not started yet"), working(learner) ? "active" : learner.phase === "failed" ? "bad" : null);
  bar(learner);
  put("gate", format.count(models.promoted), `let through; ${format.count(models.rejected)} rejected`, learner.phase === "judging" ? "active" : null);
  put("model", model.version ?? "none yet", model.version ? `made ${ago(model.age_s)}` : "until then, what is popular");
}

const working = (learner) => learner.phase === "training" || learner.phase === "judging" || learner.phase === "loading";
const ago = (age) => (age === null || age === undefined ? "" : age < 2 ? "just now" : `${format.seconds(age)} ago`);

function perMinute(ring, name) {
  const growth = ring.growth(name, 180);
  return growth === null ? null : growth * 60;
}

function bar(learner) {
  const part = parts.learner;
  if (!part.progress) part.element.append((part.progress = h("progress", { max: "1", value: "0", "aria-label": "progress of the learner" })));
  part.progress.style.visibility = working(learner) ? "visible" : "hidden";
  part.progress.value = learner.progress ?? 0;
}
