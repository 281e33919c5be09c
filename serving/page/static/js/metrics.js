// Reads what the page draws from Prometheus' text format: how long things took between two looks.

const SERIES = /^(headrace_[a-z_]+_seconds)_(bucket|count)(?:\{(.*)\})? ([0-9.eE+]+)$/;
const WANTED = new Set(["headrace_freshness_seconds", "headrace_ingest_batch_duration_seconds", "headrace_request_duration_seconds"]);

/** @returns name → {buckets: Map(upper bound in s → cumulative count), count}; requests: rankings only, all statuses. */
export function histograms(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = SERIES.exec(line);
    if (!match || !WANTED.has(match[1])) continue;
    const [, name, kind, labels = "", value] = match;
    if (name === "headrace_request_duration_seconds" && !labels.includes('route="/v1/recommendations')) continue;
    if (!found.has(name)) found.set(name, { buckets: new Map(), count: 0 });
    const one = found.get(name);
    if (kind === "count") one.count += Number(value);
    else {
      const bound = Number(/le="([^"]+)"/.exec(labels)?.[1].replace("+Inf", "Infinity"));
      one.buckets.set(bound, (one.buckets.get(bound) ?? 0) + Number(value));
    }
  }
  return found;
}

/** What came between two looks, oldest first; null where a process has started anew in between, or nothing came. */
export function between(before, after) {
  if (!before || !after || after.count <= before.count) return null;
  const bounds = [...after.buckets.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => after.buckets.get(bound) - (before.buckets.get(bound) ?? 0));
  return counts.some((count) => count < 0) ? null : { bounds, counts, count: counts.at(-1) };
}

/** A quantile in s, straight within its bucket, as Prometheus has it; Infinity beyond the last bound. */
export function quantile(part, q) {
  const rank = q * part.count;
  const place = part.counts.findIndex((count) => count >= rank);
  if (!Number.isFinite(part.bounds[place])) return Infinity;
  const low = place ? part.bounds[place - 1] : 0;
  const under = place ? part.counts[place - 1] : 0;
  const inside = part.counts[place] - under;
  return low + (part.bounds[place] - low) * (inside ? (rank - under) / inside : 1);
}
