--- watcher.lua: one master, watched over its control socket from a loop of cqueues: its status each second, its log
-- records and its workers' output as they come, its last exits whenever one is new. Keeps a bounded past for whoever
-- opens the page later. Asks only what changes nothing.

local cjson = require 'cjson.safe'
local cqueues = require 'cqueues'
local socket = require 'cqueues.socket'

local wire = require 'dutch-master.control.wire'
local list = require 'dutch-master.cli.list'
local measured = require 'dutch-master.channel.measured'
local why = require 'dutch-master.cli.why'

local Watcher = {}
Watcher.__index = Watcher

local EVERY_S = 1
local SILENT_S = 2 -- until a master is said to hang
local AGAIN_S = 1 -- until a master that is away is looked for again
local ANSWER_MAX = 4 * 1024 * 1024 -- bytes of one answer
-- What is kept: five minutes of samples, as many records and lines as a page shows.
local SAMPLES, RECORDS, LINES, EXITS = 300, 300, 500, 10

local PLAIN = { paint = function(_, text)
    return text
end }

--- { path = of the socket, owner = uid of its directory, tell = function(kind, data) }
function Watcher.new(options)
    local self = setmetatable(options, Watcher)
    self.id = options.path:match '([^/]+)%.sock$'
    self.samples, self.records, self.lines, self.exits = {}, {}, {}, {}
    self.before = {} -- worker id -> { at, cpu_ms, measured }
    return self
end

local function keep(items, item, most)
    items[#items + 1] = item
    if #items > most then
        table.remove(items, 1)
    end
end

-- One connection: ask(request, on_event) -> answer | nil, message, code
local Link = {}
Link.__index = Link

local ROOT = 0

local function open_link(self)
    local conn, message = socket.connect { path = self.path }
    if not conn then
        return nil, message
    end
    conn:setmode('bf', 'bf')
    conn:setmaxline(ANSWER_MAX)
    conn:onerror(function(_, _, code)
        return code
    end)
    local ok = conn:connect(SILENT_S)
    local uid = ok and conn:peereid()
    if not ok or uid ~= ROOT and uid ~= self.owner then
        conn:close()
        return nil, ok and 'foreign' or 'dead'
    end
    return setmetatable({ conn = conn, next_id = 1 }, Link)
end

--- One request. on_event(answer): for those that come before. seconds: until the first word, nil to wait for ever.
function Link:ask(request, seconds, on_event)
    request.v, request.id = wire.VERSION, self.next_id
    self.next_id = self.next_id + 1
    if not self.conn:write(wire.encode(request), '\n') or not self.conn:flush(SILENT_S) then
        return nil, 'dead'
    end
    while true do
        local line, code = self.conn:xread('*l', nil, seconds)
        if not line then
            return nil, code and 'hangs' or 'dead'
        end
        local answer = cjson.decode(line)
        if type(answer) == 'table' and answer.id == request.id then
            if not answer.event then
                return answer.ok and answer or nil, 'failed'
            elseif on_event then
                if answer.event == 'accepted' then
                    seconds = nil
                end
                on_event(answer)
            end
        end
    end
end

function Link:close()
    self.conn:close()
end

-- What the page needs of a worker, with rates since the last look.
local function of_worker(self, worker, now)
    local before = self.before[worker.id]
    local result = {
        id = worker.id, slot = worker.slot, pid = worker.pid, state = worker.state, generation = worker.generation,
        release = worker.release, uptime_ms = worker.uptime_ms, restarts = worker.restarts, rss_kb = worker.rss_kb,
        queue = worker.queue, steered = worker.steered, status = worker.status,
    }
    local elapsed = before and now - before.at
    if elapsed and elapsed > 0 and worker.cpu_ms and before.cpu_ms then
        result.cpu = math.max(worker.cpu_ms - before.cpu_ms, 0) / 10 / elapsed -- per cent of one CPU
    end
    local sum = type(worker.measured) == 'table' and worker.measured
    if sum and elapsed and elapsed > 0 then
        local grown = measured.digest(measured.since(sum, before.measured))
        result.rate = grown.requests / elapsed
        result.errors = grown.errors / elapsed
        result.p95 = measured.quantile(sum, 0.95)
        result.lag = sum.lag[2]
    end
    return result, { at = now, cpu_ms = worker.cpu_ms, measured = sum or nil }
end

local function digest(self, status)
    local now, before = cqueues.monotime(), {}
    local d = list.digest(status)
    d.id, d.workers, d.slots, d.roll, d.up = self.id, {}, status.slots, status.roll, true
    d.last_verdict, d.last_request, d.kept = status.last_verdict, status.last_request, status.output
    d.master_rss_kb = status.rss_kb
    local sample = { queue = 0, rss = 0, cpu = 0 }
    for i, worker in ipairs(status.workers) do
        d.workers[i], before[worker.id] = of_worker(self, worker, now)
        sample.queue = sample.queue + (tonumber(worker.queue) or 0)
        sample.rss = sample.rss + (tonumber(worker.rss_kb) or 0)
        sample.cpu = sample.cpu + (d.workers[i].cpu or 0)
        if d.workers[i].rate then
            sample.rate = (sample.rate or 0) + d.workers[i].rate
            sample.errors = (sample.errors or 0) + d.workers[i].errors
        end
    end
    self.before = before
    return d, sample
end

local function note_exits(self, link, status)
    local count = 0
    for _, number in pairs(status.totals and status.totals.exits or {}) do
        count = count + number
    end
    if count == self.exit_count then
        return
    end
    self.exit_count = count
    local answer = link:ask({ verb = 'why' }, SILENT_S)
    if answer then
        self.exits = {}
        for i = #answer.exits, math.max(#answer.exits - EXITS + 1, 1), -1 do
            local report = answer.exits[i]
            local lines = why.explain(PLAIN, report)
            if why.is_ordinary(report) then
                lines[1] = why.mention(report)
            end
            self.exits[#self.exits + 1] = { text = table.concat(lines, '\n'),
                at = report.at, unexpected = report.unexpected or report.killed or false }
        end
        self.tell('exits', { id = self.id, exits = wire.list(self.exits) })
    end
end

local function away(self, what)
    if self.problem ~= what then
        self.problem, self.before = what, {}
        self.tell('away', self:say_away())
    end
end

function Watcher:say_away()
    return { id = self.id, up = false, problem = self.problem, name = self.now and self.now.name or self.id,
        script = self.now and self.now.script }
end

local function look(self)
    local link, problem = open_link(self)
    if not link then
        return away(self, problem == 'foreign' and problem or 'dead')
    end
    repeat
        local answer, what = link:ask({ verb = 'status' }, SILENT_S)
        if answer then
            local sample
            self.problem, self.status = nil, answer.status
            self.now, sample = digest(self, answer.status)
            for _, name in ipairs { 'workers', 'slots', 'releases' } do
                self.now[name] = wire.list(self.now[name])
            end
            keep(self.samples, sample, SAMPLES)
            self.tell('status', { master = self.now, sample = sample })
            note_exits(self, link, answer.status)
            cqueues.sleep(EVERY_S)
        else
            self.status = nil
            away(self, what)
        end
    until not answer or self.closed
    link:close()
end

-- After a new connection the past comes again: pages that are open have it.
-- @return function(item) -> whether it is none of those
local function unknown(items, key)
    local known = {}
    for _, item in ipairs(items) do
        known[key(item)] = true
    end
    return function(item)
        return not known[key(item)]
    end
end

local function key_of_record(record)
    return ('%s %s %s'):format(record.time, tostring(record.workerId), record.msg)
end

local function key_of_line(line)
    return ('%d %.3f'):format(line.number, line.time)
end

local function follow_events(self)
    local link = not self.problem and open_link(self)
    if not link then
        return
    end
    local is_new = unknown(self.records, key_of_record)
    link:ask({ verb = 'events', last = RECORDS, follow = true }, SILENT_S, function(answer)
        local record = answer.record
        if answer.event == 'record' and is_new(record) then
            record.name, record.hostname, record.v = nil, nil, nil
            keep(self.records, record, RECORDS)
            self.tell('record', { id = self.id, record = record })
        end
    end)
    link:close()
end

local function follow_output(self)
    local link = not self.problem and open_link(self)
    if not link then
        return
    end
    local after, more
    local is_new = unknown(self.lines, key_of_line)
    repeat
        local answer = link:ask({ verb = 'logs', after = after, last = not after and LINES or nil,
            wait = after ~= nil and not more }, SILENT_S, function(event)
            if event.event == 'line' and is_new(event.line) then
                keep(self.lines, event.line, LINES)
                self.tell('line', { id = self.id, line = event.line })
            end
        end)
        if answer then
            after, more = answer.next, answer.more
            cqueues.sleep(0.1)
        end
    until not answer or self.closed
    link:close()
end

--- Watches until close().
function Watcher:start(loop)
    for _, fn in ipairs { look, follow_events, follow_output } do
        loop:wrap(function()
            while not self.closed do
                local ok, message = pcall(fn, self)
                if not ok then
                    io.stderr:write('dutch-master: web: ', tostring(message), '\n')
                end
                cqueues.sleep(AGAIN_S)
            end
        end)
    end
end

--- Everything there is to know, for a page that was just opened.
function Watcher:whole()
    return { id = self.id, master = self.now and not self.problem and self.now or self:say_away(),
        samples = wire.list(self.samples), records = wire.list(self.records), lines = wire.list(self.lines),
        exits = wire.list(self.exits) }
end

function Watcher:close()
    self.closed = true
end

return Watcher
