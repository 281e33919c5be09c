-- wrk's part of serve_load.py: another user with each request; the curve of latencies goes to a file.
local prefix, users = os.getenv("LOAD_PREFIX"), tonumber(os.getenv("LOAD_USERS"))
local step = 7919 -- a prime: all users come before one comes again

function init()
  requests = {}
  if users == 0 then
    requests[0] = wrk.format("GET", prefix)
  end
  for user = 0, users - 1 do
    requests[user] = wrk.format("GET", prefix .. string.format("u%06d", user))
  end
  at = users == 0 and 0 or tonumber(os.getenv("LOAD_START")) % users
end

function request()
  if users > 0 then
    at = (at + step) % users
  end
  return requests[at]
end

function done(summary, latency)
  local count, errors, curve = tonumber(os.getenv("LOAD_CURVE")), summary.errors, {}
  for place = 1, count do
    curve[place] = string.format("%.3f", latency:percentile((place - 0.5) * 100 / count) / 1000)
  end
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  local file = assert(io.open(os.getenv("LOAD_RESULT"), "w"))
  file:write(string.format('{"seconds": %.6f, "requests": %d, "errors": %d, "latency_ms": [%s]}',
    summary.duration / 1e6, summary.requests, failed, table.concat(curve, ", ")))
  file:close()
end
