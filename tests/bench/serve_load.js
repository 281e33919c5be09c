// k6's part of serve_load.py: another user with each request; the curve of latencies goes to a file.
import http from "k6/http";
import { Counter } from "k6/metrics";
import exec from "k6/execution";

const users = Number(__ENV.LOAD_USERS), start = Number(__ENV.LOAD_START), count = Number(__ENV.LOAD_CURVE);
const url = __ENV.LOAD_BASE + __ENV.LOAD_PREFIX;
const step = 7919; // a prime: all users come before one comes again
const failed = new Counter("failed");
const places = Array.from({ length: count }, (_, place) => `p(${(((place + 0.5) * 100) / count).toFixed(2)})`);

export const options = { summaryTrendStats: places, discardResponseBodies: true };

export default function () {
  let asked = url;
  if (users > 0) {
    const at = (start + step * (exec.scenario.iterationInTest + 1)) % users;
    asked += "u" + String(at).padStart(6, "0");
  }
  const answer = http.get(asked, { tags: { name: "load" }, timeout: "10s" });
  if (answer.status === 0 || answer.status > 399) failed.add(1);
}

export function handleSummary(data) {
  const found = data.metrics, took = found.http_req_duration.values;
  const result = {
    seconds: data.state.testRunDurationMs / 1000,
    requests: found.http_reqs.values.count,
    errors: found.failed ? found.failed.values.count : 0,
    latency_ms: places.map((place) => took[place]),
  };
  return { [__ENV.LOAD_RESULT]: JSON.stringify(result) };
}
