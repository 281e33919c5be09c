// Starts everything: one look at the system a second, and the parts that show it.
import * as api from "./api.js";
import * as attack from "./attack.js";
import { Chart } from "./chart.js";
import { $, attribute, h, rebuilt, text } from "./dom.js";
import * as flow from "./flow.js";
import * as format from "./format.js";
import * as key from "./key.js";
import { between, histograms, quantile } from "./metrics.js";
import * as models from "./models.js";
import { Poll } from "./poll.js";
import { Ring } from "./ring.js";
import * as robustness from "./robustness.js";
import * as theme from "./theme.js";
import * as trial from "./trial.js";

const RATES_S = 12; // requests are counted over so long
const DISTANT_S = 600; // events whose time lies further back than this are of a replay

const ring = new Ring(["events_per_s", "lag", "applied", "users", "windows", "trained", "promoted", "requests", "requests_per_s"]);
const times = new Ring(["fresh50", "fresh99", "answer50", "answer99"]);
let newest = null; // of /v1/stats
let scraped = null; // histograms of the look before
let latency = { p50: null, p99: null };
let silentSince = null;
let asked = ""; // what the list of models was last asked for

const charts = {
  rate: new Chart({ title: "Events", lines: [{ label: "per second", tone: "--accent", fill: true }], format: format.rate, least: 10, under: "Applied to the users' state, each once.", empty: "No events have come yet." }),
  lag: new Chart({ title: "Lag", lines: [{ label: "records waiting", tone: "--second", fill: true }], format: format.count, least: 10, under: "In Kafka, not read yet.", empty: "No events have come yet." }),
  fresh: new Chart({ title: "Freshness", lines: [{ label: "p50", tone: "--accent" }, { label: "p99", tone: "--second" }], format: format.ms, least: 20, under: " ", empty: "Comes with the next events." }),
  answer: new Chart({ title: "Latency", lines: [{ label: "p50", tone: "--accent" }, { label: "p99", tone: "--second" }], format: format.ms, least: 5, under: "Of rankings, within the server.", empty: "Nobody has asked for a list yet." }),
};

async function stats() {
  const now = await api.get("/v1/stats");
  newest = now.pipeline === null ? { ...newest, ...now } : now; // where the supervisor is silent, what it said before stays
  silentSince = null;
  const { events = {}, models: counts = {}, request_ms: requests = {} } = newest;
  if (newest.pipeline !== null && events.applied !== undefined) {
    ring.add(newest.observed_at, {
      events_per_s: events.rate_per_s, lag: newest.lag, applied: events.applied, users: newest.users, windows: newest.windows,
      trained: counts.trained, promoted: counts.promoted, requests: requests.count, requests_per_s: ring.growth("requests", RATES_S),
    });
  }
  show();
  const wanted = JSON.stringify([counts, newest.model?.version, newest.learner?.phase]);
  if (wanted !== asked) {
    models.update(await api.get("/v1/models"), newest.learner);
    asked = wanted;
  }
  robustness.update(models.serving(), newest.learner);
}

function show() {
  latency = { p50: times.last("answer50") ?? newest.request_ms?.p50 ?? null, p99: times.last("answer99") ?? newest.request_ms?.p99 ?? null };
  head();
  flow.update(newest, ring, latency);
  charts.rate.show(ring.at, [ring.columns.events_per_s]);
  charts.lag.show(ring.at, [ring.columns.lag]);
  attack.update(newest);
  trial.know(newest.event_types);
}

function head() {
  const { model = {}, events = {} } = newest;
  const problems = Object.entries(newest.problems ?? {});
  if (newest.error) problems.push(["supervisor", newest.error]);
  if (newest.pipeline === null) problems.push(["pipeline", newest.note]);
  const starting = newest.pipeline !== null && newest.phase !== "running";
  attribute($("pill"), "data-state", newest.pipeline === null ? "bad" : starting ? "wait" : problems.length ? "warn" : "good");
  text($("pill-text"), newest.pipeline === null ? "pipeline does not answer" : starting ? "starting" : problems.length ? format.plural(problems.length, "problem") : "running");
  $("problems").hidden = !problems.length;
  rebuilt($("problems"), JSON.stringify(problems), () => problems.map(([name, words]) => h("li", {}, h("strong", {}, name), ` ${String(words).slice(0, 400)}`)));
  const rate = `${format.rate(events.rate_per_s ?? null)} events a second`;
  text($("lede"), model.version ? `${model.version} answers in ${format.ms(latency.p50)}, while ${rate} teach the next one.`
    : newest.items_servable ? "No model yet. The lists show what is popular, until the first one is let through." : "Waiting for a catalogue: publish items to the items topic.");
  text($("sublede"), `${format.plural(newest.users ?? null, "user")}, ${format.plural(newest.items_servable, "item")}, ${format.count(events.applied)} events, each applied once.`);
}

async function scrape() {
  const found = histograms(await api.getText("/metrics"));
  const before = scraped ?? new Map();
  scraped = found;
  const part = (name) => between(before.get(name), found.get(name));
  const quantiles = (one) => (one ? [quantile(one, 0.5) * 1000, quantile(one, 0.99) * 1000] : [null, null]);
  const own = quantiles(part("headrace_freshness_seconds"));
  const replayed = own[0] !== null && own[0] > DISTANT_S * 1000;
  const [fresh50, fresh99] = own[0] === null || replayed ? quantiles(part("headrace_ingest_batch_duration_seconds")) : own;
  const [answer50, answer99] = quantiles(part("headrace_request_duration_seconds"));
  const finite = (value) => (Number.isFinite(value) ? value : null);
  times.add(Date.now() / 1000, { fresh50: finite(fresh50), fresh99: finite(fresh99), answer50: finite(answer50), answer99: finite(answer99) });
  if (fresh50 !== null) {
    text(charts.fresh.under, replayed || own[0] === null ? "From being read until the state has it. (Event times are of the past: this is a replay.)" : "From an event's own time until the state has it.");
  }
  charts.fresh.show(times.at, [times.columns.fresh50, times.columns.fresh99]);
  charts.answer.show(times.at, [times.columns.answer50, times.columns.answer99]);
}

function silent(error) {
  if (error.status === 401 || error.status === 403) {
    banner(error.status === 401 ? "This system asks for a key." : error.message, true);
    return;
  }
  silentSince ??= Date.now() / 1000;
  attribute($("pill"), "data-state", "bad");
  text($("pill-text"), "no answer");
  banner(`The API does not answer since ${format.clock(silentSince)}: ${error.message}. What you see is from before; trying again.`);
}

function banner(words, withKey = false) {
  rebuilt($("banner"), `${words}|${withKey}`, () => [words, withKey ? h("button", { type: "button", onclick: () => $("key-open").click() }, "Enter a key") : ""]);
  $("banner").hidden = !words;
}

async function remember() {
  const past = await api.get("/v1/stats/history");
  past.at.forEach((at, place) => ring.add(at, Object.fromEntries(Object.keys(ring.columns).map((name) => [name, past[name]?.[place]]))));
}

theme.start($("theme"));
key.start();
flow.start();
models.start();
attack.start();
trial.start();
$("chart-grid").replaceChildren(...Object.values(charts).map((chart) => h("div", { class: "card" }, chart.element)));
const quietly = () => {}; // the first poll tells what is wrong
await remember().catch(quietly);
addEventListener("rekeyed", () => remember().catch(quietly));
new Poll(async () => { await stats(); banner(""); }, 1000, silent);
new Poll(scrape, 4000, quietly);
const users = new Poll(async () => {
  const offered = await trial.offer();
  users.everyMs = offered ? 20_000 : 1500;
}, 1500, quietly);
new Poll(() => trial.refresh(), 5000, quietly);
