--- openmetrics.lua: what masters say in `status`, as text for a monitoring system. Pure.
-- FAMILIES is the table of all there is: the manual, the dashboard in examples/prometheus and the specs go by it.
-- Two dialects: OpenMetrics 1.0, and the older text format of Prometheus, which promtool reads.

local format = require 'dutch-master.cli.format'
local measured = require 'dutch-master.channel.measured'
local sorted_keys = require 'dutch-master.sorted_keys'
local status = require 'dutch-master.cli.status'

local M = {}

--- name (without _total and the like), type, help. A counter's samples end in _total, a histogram's and summary's in
-- _bucket, _sum, _count.
M.FAMILIES = {
    { 'up', 'gauge', 'Whether the master answered: 1, or 0 for one that is dead or hangs.' },
    { 'build_info', 'gauge', 'Version of the master, always 1.' },
    { 'start_time_seconds', 'gauge', 'When the master started, in unix time.' },
    { 'resident_memory_bytes', 'gauge', 'Resident memory of the master.' },
    { 'cpu_seconds', 'counter', 'CPU time of the master.' },
    { 'generation', 'gauge', 'Number of the last restart whose workers are started now.' },
    { 'workers_wanted', 'gauge', 'Workers that there should be.' },
    { 'workers_serving', 'gauge', 'Places in which a worker serves.' },
    { 'workers', 'gauge', 'Workers by state.' },
    { 'worker_exits', 'counter', 'Ends of workers by reason.' },
    { 'worker_kills', 'counter', 'Workers that had to be killed.' },
    { 'restarts', 'counter', 'Restarts of the cluster by verdict.' },
    { 'restart_duration_seconds', 'summary', 'From the request of a restart to its verdict.' },
    { 'restart_in_progress', 'gauge', 'Whether a restart is going on.' },
    { 'connections_rescued', 'counter', 'Waiting connections that were handed to another worker.' },
    { 'connections_lost', 'counter', 'Waiting connections that nobody could be given.' },
    { 'connections_unserved', 'gauge', 'Connections that wait where nobody serves.' },
    { 'callbacks', 'counter', 'Events that the master has handled.' },
    { 'callback_duration_seconds', 'counter', 'Time that handling them took.' },
    { 'callback_duration_max_seconds', 'gauge', 'The longest of the last minute or two: how late anything can be.' },
    { 'hook_duration_seconds', 'summary', 'Time that hooks of the script took.' },
    { 'hook_failures', 'counter', 'Hooks of the script that failed.' },
    { 'log_records_lost', 'counter', 'Log records that could not be written.' },
    { 'output_lines', 'counter', 'Lines of the workers that the master has kept (keepOutput).' },
    { 'worker_start_time_seconds', 'gauge', 'When the worker was started, in unix time.' },
    { 'worker_resident_memory_bytes', 'gauge', 'Resident memory of the worker.' },
    { 'worker_cpu_seconds', 'counter', 'CPU time of the worker.' },
    { 'worker_queue_connections', 'gauge', 'Connections that wait for the worker.' },
    { 'worker_steered', 'gauge', 'Whether new connections are sent to the worker.' },
    { 'http_requests', 'counter', 'Answers of a worker by class of status, and requests broken off (metrics = true).' },
    { 'http_request_duration_seconds', 'histogram', 'Time to answer a request (metrics = true).' },
    { 'worker_open_connections', 'gauge', 'Open connections of the worker (metrics = true).' },
    { 'worker_event_loop_lag_seconds', 'summary', 'Delay of the event loop of the worker (metrics = true).' },
    { 'worker_event_loop_utilization_ratio', 'gauge', 'Share of time in which the loop was busy (metrics = true).' },
    { 'worker_heap_used_bytes', 'gauge', 'Used heap of the worker (metrics = true).' },
    { 'worker_heap_size_bytes', 'gauge', 'Size of the heap of the worker (metrics = true).' },
}

local STATES = { 'starting', 'running', 'retiring', 'settling', 'stopping', 'disconnected', 'terminating', 'killing' }
local CLASSES = { '1xx', '2xx', '3xx', '4xx', '5xx' }

local ESCAPES = { ['\\'] = '\\\\', ['"'] = '\\"', ['\n'] = '\\n' }

local function label_text(labels)
    local parts = {}
    for i = 1, #labels, 2 do
        parts[#parts + 1] = ('%s="%s"'):format(labels[i], (format.block(labels[i + 1]):gsub('[\\"\n]', ESCAPES)))
    end
    return '{' .. table.concat(parts, ',') .. '}'
end

local function number_text(value)
    return value == math.floor(value) and math.abs(value) < 1e15 and ('%.0f'):format(value) or ('%.14g'):format(value)
end

-- Collects samples by family: add(name, labels, value, suffix).
local function new_samples()
    local samples = {}
    local function add(name, labels, value, suffix)
        if type(value) == 'number' and value == value then
            samples[name] = samples[name] or {}
            table.insert(samples[name], { suffix or '', labels, value })
        end
    end
    return samples, add
end

local function with(labels, ...)
    local all = { unpack(labels) }
    for _, word in ipairs { ... } do
        all[#all + 1] = word
    end
    return all
end

local function add_measured(add, labels, values)
    for i, class in ipairs(CLASSES) do
        add('http_requests', with(labels, 'code', class), values.answers[i], '_total')
    end
    add('http_requests', with(labels, 'code', 'broken'), values.broken, '_total')
    local sum = 0
    for i, count in ipairs(values.buckets) do
        sum = sum + count
        add('http_request_duration_seconds', with(labels, 'le', measured.BOUNDS[i] or '+Inf'), sum, '_bucket')
    end
    add('http_request_duration_seconds', labels, values.seconds, '_sum')
    add('http_request_duration_seconds', labels, sum, '_count')
    add('worker_open_connections', labels, values.open)
    for i, quantile in ipairs { '0.5', '0.99', '1' } do
        add('worker_event_loop_lag_seconds', with(labels, 'quantile', quantile), values.lag[i])
    end
    add('worker_event_loop_utilization_ratio', labels, values.utilization)
    add('worker_heap_used_bytes', labels, values.heap[1])
    add('worker_heap_size_bytes', labels, values.heap[2])
end

local function kilobytes(value)
    return value and value * 1024
end

local function seconds(ms)
    return ms and ms / 1000
end

local function add_worker(add, labels, worker, now)
    add('worker_start_time_seconds', labels, worker.uptime_ms and now - worker.uptime_ms / 1000)
    add('worker_resident_memory_bytes', labels, kilobytes(worker.rss_kb))
    add('worker_cpu_seconds', labels, seconds(worker.cpu_ms), '_total')
    add('worker_queue_connections', labels, worker.queue)
    if type(worker.steered) == 'boolean' then
        add('worker_steered', labels, worker.steered and 1 or 0)
    end
    if type(worker.measured) == 'table' then
        add_measured(add, labels, worker.measured)
    end
end

local function add_workers(add, base, s, now)
    local states = {}
    for _, state in ipairs(STATES) do
        states[state] = 0
    end
    for _, worker in ipairs(s.workers) do
        states[worker.state] = (states[worker.state] or 0) + 1
        add_worker(add, with(base, 'worker', worker.id, 'slot', worker.slot, 'generation', worker.generation), worker,
            now)
    end
    add('workers_wanted', base, s.wanted)
    add('workers_serving', base, status.serving(s.workers))
    for _, state in ipairs(STATES) do
        add('workers', with(base, 'state', state), states[state])
        states[state] = nil
    end
    for state, count in pairs(states) do
        add('workers', with(base, 'state', state), count)
    end
end

local function add_totals(add, base, s)
    local totals, sockets = s.totals or {}, s.sockets or {}
    for _, reason in ipairs(sorted_keys(totals.exits)) do
        add('worker_exits', with(base, 'reason', reason), totals.exits[reason], '_total')
    end
    add('worker_kills', base, totals.killed, '_total')
    for _, result in ipairs(sorted_keys(totals.verdicts)) do
        add('restarts', with(base, 'result', result), totals.verdicts[result], '_total')
    end
    add('restart_duration_seconds', base, seconds(totals.roll_ms), '_sum')
    add('restart_duration_seconds', base, totals.rolls, '_count')
    add('restart_in_progress', base, s.roll and 1 or 0)
    add('connections_rescued', base, sockets.rescued, '_total')
    add('connections_lost', base, sockets.lost, '_total')
    add('connections_unserved', base, s.unserved)
    for _, hook in ipairs(sorted_keys(s.hooks)) do
        add('hook_duration_seconds', with(base, 'hook', hook), seconds(s.hooks[hook].ms), '_sum')
        add('hook_duration_seconds', with(base, 'hook', hook), s.hooks[hook].calls, '_count')
        add('hook_failures', with(base, 'hook', hook), s.hooks[hook].failures, '_total')
    end
    if s.held then
        add('callbacks', base, s.held.calls, '_total')
        add('callback_duration_seconds', base, s.held.seconds, '_total')
        add('callback_duration_max_seconds', base, s.held.longest)
    end
    add('log_records_lost', base, s.log_lost, '_total')
    add('output_lines', base, s.output and s.output.lines, '_total')
end

local function add_master(add, s, now)
    local base = { 'script', s.script }
    add('up', base, 1)
    add('build_info', with(base, 'version', s.version), 1)
    add('start_time_seconds', base, s.uptime_ms and now - s.uptime_ms / 1000)
    add('resident_memory_bytes', base, kilobytes(s.rss_kb))
    add('cpu_seconds', base, seconds(s.cpu_ms), '_total')
    add('generation', base, s.generation)
    add_workers(add, base, s, now)
    add_totals(add, base, s)
end

--- @param found what masters.ask gives: { status = ... } or { problem, path }
-- @param now unix time
-- @param dialect 'openmetrics' or 'prometheus'
function M.render(found, now, dialect)
    local samples, add = new_samples()
    for _, master in ipairs(found) do
        if master.status then
            add_master(add, master.status, now)
        elseif master.problem ~= 'foreign' then
            add('up', { 'script', master.script or master.path }, 0)
        end
    end
    local old, lines = dialect == 'prometheus', {}
    for _, family in ipairs(M.FAMILIES) do
        local name, kind, help = unpack(family)
        if samples[name] then
            local full = 'dutch_master_' .. name
            local called = old and kind == 'counter' and full .. '_total' or full
            lines[#lines + 1] = ('# HELP %s %s'):format(called, help)
            lines[#lines + 1] = ('# TYPE %s %s'):format(called, kind)
            if not old and name:find '_seconds$' then
                lines[#lines + 1] = ('# UNIT %s seconds'):format(full)
            elseif not old and name:find '_bytes$' then
                lines[#lines + 1] = ('# UNIT %s bytes'):format(full)
            end
            for _, sample in ipairs(samples[name]) do
                lines[#lines + 1] = full .. sample[1] .. label_text(sample[2]) .. ' ' .. number_text(sample[3])
            end
        end
    end
    lines[#lines + 1] = not old and '# EOF' or nil
    return table.concat(lines, '\n') .. '\n'
end

return M
