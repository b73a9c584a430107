-- For wrk: short texts no two of which are alike (carpool computes equal texts in flight only once).
-- It prints what was measured as one line of JSON. wrk.format would cost as much as the rest of wrk.

local head, sent

function init(arguments)
  local host = wrk.headers["Host"]
  head = "POST /embed HTTP/1.1\r\nHost: " .. host .. "\r\nContent-Type: application/json\r\n"
      .. "Content-Length: 38\r\n\r\n"
  sent = 0
end

function request()
  sent = sent + 1
  return head .. string.format('{"input":"a short text, %012d"}', sent)
end

function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('{"requests":%d,"seconds":%f,"failed":%d,"p50_ms":%f,"p99_ms":%f}\n',
    summary.requests, summary.duration / 1e6, failed, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
