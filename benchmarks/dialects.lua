-- For wrk: one short text a request, no two of which are alike, in the dialect that is its argument.
-- It prints what was measured as one line of JSON, as proxy/post.lua does.

local bodies = {
  native = {"/embed", '{"input":"a short text, %012d"}'},
  tei = {"/embed", '{"inputs":"a short text, %012d"}'},
  openai = {"/v1/embeddings", '{"input":"a short text, %012d","model":"default"}'},
  openai_base64 = {"/v1/embeddings",
    '{"input":"a short text, %012d","model":"default","encoding_format":"base64"}'},
  kserve = {"/v2/models/default/infer",
    '{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["a short text, %012d"]}]}'},
  kserve_binary = {"/v2/models/default/infer",
    '{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":30}}],'
    .. '"outputs":[{"name":"embedding","parameters":{"binary_data":true}}]}', "\26\0\0\0a short text, %012d"},
}

local head, body, tail, sent

function init(arguments)
  local path, json, tensor = unpack(bodies[arguments[1]])
  local length = #string.format(json, 0)
  local type = "Content-Type: application/json\r\n"
  if tensor then
    type = "Content-Type: application/octet-stream\r\nInference-Header-Content-Length: " .. length .. "\r\n"
    length = length + #string.format(tensor:gsub("%z", "."), 0)
  end
  head = "POST " .. path .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\n" .. type
      .. "Content-Length: " .. length .. "\r\n\r\n"
  body, sent = json, 0
  if tensor then
    head, body = head .. json .. tensor:sub(1, 4), tensor:sub(5)
  end
end

function request()
  sent = sent + 1
  return head .. string.format(body, sent)
end

function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('{"requests":%d,"seconds":%f,"failed":%d}\n',
    summary.requests, summary.duration / 1e6, failed))
end
