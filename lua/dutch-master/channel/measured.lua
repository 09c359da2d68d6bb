--- measured.lua: what a worker says of its own work (`metrics = true`), as plain numbers that can be added up.
--
-- A worker with a channel sends the whole of it, once a second if it has changed:
--   { cmd = 'NODE_DUTCH_METRICS', answers = { 1xx, 2xx, 3xx, 4xx, 5xx }, broken, seconds, buckets = { ... },
--     open, lag = { p50, p99, max }, utilization, heap = { used, total } }
-- `answers`, `broken`, `seconds` and `buckets` only grow over a worker's life; the others are what is now. Seconds and
-- bytes throughout. What is not a number in its place is 0: a worker is not believed, and cannot break anything here.

local M = {}

--- Upper bounds of the classes of latency, in seconds; one more class above. lua/node/metrics.cjs has the same.
M.BOUNDS = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10 }

local CLASSES = 5

local function number(value)
    return type(value) == 'number' and value >= 0 and value < 1e15 and value or 0
end

local function numbers(list, count)
    local result = {}
    for i = 1, count do
        result[i] = number(type(list) == 'table' and list[i])
    end
    return result
end

--- What a worker sent, with every number in its place.
function M.read(message)
    return {
        answers = numbers(message.answers, CLASSES), broken = number(message.broken), seconds = number(message.seconds),
        buckets = numbers(message.buckets, #M.BOUNDS + 1), open = number(message.open), lag = numbers(message.lag, 3),
        utilization = math.min(number(message.utilization), 1), heap = numbers(message.heap, 2),
    }
end

--- Nothing measured.
function M.zero()
    return M.read {}
end

local function combine(a, b, sign)
    local function lists(x, y)
        local result = {}
        for i, value in ipairs(x) do
            result[i] = math.max(value + sign * y[i], 0)
        end
        return result
    end
    local result = M.zero()
    result.answers, result.buckets = lists(a.answers, b.answers), lists(a.buckets, b.buckets)
    result.broken = math.max(a.broken + sign * b.broken, 0)
    result.seconds = math.max(a.seconds + sign * b.seconds, 0)
    return result
end

--- What grew between `before` and `now` of one worker; lag, open, utilization and heap are those of now.
function M.since(now, before)
    local result = combine(now, before or M.zero(), -1)
    result.open, result.lag, result.utilization, result.heap = now.open, now.lag, now.utilization, now.heap
    return result
end

--- The sum of two workers; of lag, the worse.
function M.add(a, b)
    local result = combine(a, b, 1)
    result.open = a.open + b.open
    result.utilization = math.max(a.utilization, b.utilization)
    for i = 1, 3 do
        result.lag[i] = math.max(a.lag[i], b.lag[i])
    end
    result.heap = { a.heap[1] + b.heap[1], a.heap[2] + b.heap[2] }
    return result
end

--- The latency that a share of the requests stayed below, in seconds, interpolated within its class as Prometheus does;
-- nil without requests.
function M.quantile(measured, share)
    local total = 0
    for _, count in ipairs(measured.buckets) do
        total = total + count
    end
    if total == 0 then
        return nil
    end
    local rank, below = share * total, 0
    for i, count in ipairs(measured.buckets) do
        if below + count >= rank and count > 0 then
            local low, high = M.BOUNDS[i - 1] or 0, M.BOUNDS[i]
            return high and low + (high - low) * (rank - below) / count or low
        end
        below = below + count
    end
    return M.BOUNDS[#M.BOUNDS]
end

--- For `judge` and `web`: requests, errors (5xx and broken ones), p50, p95, p99 and mean in seconds, lag in seconds.
function M.digest(measured)
    local requests = measured.broken
    for _, count in ipairs(measured.answers) do
        requests = requests + count
    end
    return {
        requests = requests, errors = measured.answers[5] + measured.broken,
        p50 = M.quantile(measured, 0.5), p95 = M.quantile(measured, 0.95), p99 = M.quantile(measured, 0.99),
        mean = requests > 0 and measured.seconds / requests or nil, lag = measured.lag[2], open = measured.open,
    }
end

return M
