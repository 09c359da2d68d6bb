-- A kept master dies in the middle of something, under load: what it may be in the middle of, in which ways it may die, and
-- what must be true afterwards. For death_rows.lua. Longer than 400 lines: one object, a
-- life, and one definition of each moment, way and check.
--
--     local life = deaths.begin(kind, { canary = false })       a master, both loads; nothing is wrong yet
--     local wrong = life:die('rolling', 'sigsegv')              one death; a list of what was not as it should be
--     life:finish()

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local files = require 'spec.support.files'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local servers = require 'spec.support.servers'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local M = {}
local Life = {}
Life.__index = Life

local FIRST_MS = 400 -- how long a moment is thought to take before one was seen
local LONGEST_MS = 4000 -- and at most
local STRIKE_MS = 10 -- how often it is looked at a master that is to die
local STATUS_MS = 50 -- between two questions whether all is well
local SPARE_LANES = 6 -- of four workers, and of those that came in their places, less the two there are
local ASKING, WITHOUT_MEMORY_MS = 8, 4000 -- commands at once; how long it may do without
local WHY_MS = 3000
local SETTLE_MS, TAKE_OVER_MS = 60000, 100000 -- the second: a minute without a sign of life, and more
local TOOK_OVER = 'The former master died, this one has taken over'
local UNFINISHED = 'Ended: it was in the middle of its fork when the former master died'
local UNCLEAN = 'Cluster did not shutdown cleanly within timeout, exiting'
local ERROR = 50 -- level

-- ---------------------------------------------------------------------------------------------------------------------
-- Kinds of workers

local NODE_APP = [[
require('http').createServer((request, response) => {
    setTimeout(() => response.end(`${process.pid}`), Math.random() * 20)
}).listen(Number(process.env.PORT))]]

-- A server of which all workers of a release have one queue is ready when one of them answers. So each says itself that it
-- has read its release: in a file with its pid in the name.
local UP = {
    gunicorn = { ['app.py'] = "open('up.%d' % os.getppid(), 'w').close()\n" },
    puma = { ['config.ru'] = 'File.write("up.#{Process.pid}", "")\n' },
}

--- All that are installed: { name, worker and more as the script says them, files, breaks = { file, text } }, and the
--- names of those that are not.
function M.kinds()
    local kinds, missing = {}, {}
    for _, version in ipairs(versions.since(18)) do
        local binary = versions.binary(version)
        if binary then
            kinds[#kinds + 1] = { name = 'node' .. version, worker = "'app.js'", files = { ['app.js'] = NODE_APP },
                breaks = { 'app.js', 'process.exit(3)' }, more = ('interpreter = { %q },'):format(binary) }
        else
            missing[#missing + 1] = 'node' .. version
        end
    end
    kinds[#kinds + 1] = { name = 'lua', worker = "'app.lua'", files = { ['app.lua'] = apps.http },
        breaks = { 'app.lua', 'os.exit(3)' }, more = '' }
    local there = {}
    for _, server in ipairs((servers.installed())) do
        there[server[1]] = server
    end
    for _, name in ipairs { 'gunicorn', 'puma' } do
        local server = there[name]
        if server then
            local release = servers.files(server, 'good')
            for file, text in pairs(UP[name]) do
                release[file] = release[file] .. text
            end
            kinds[#kinds + 1] = { name = name, worker = server.worker, files = release, says_up = true,
                breaks = { 'how', 'fails at boot' }, more = "listen = LISTEN, ready = { http = '/' }," }
        else
            missing[#missing + 1] = name
        end
    end
    return kinds, missing
end

-- A canary is judged by what is in the file `bad`.
local SCRIPT = [[
local dutch = require 'dutch-master'
local LISTEN = '127.0.0.1:%d'
dutch.start { worker = %s, numWorkers = 2, restartSoak = 0.1, stopTimeout = 10, killTimeout = 2, %s
    restartConcurrency = %s, backoff = { first = 0.01, max = 0.1 },
    workerEnvironment = { LISTEN = LISTEN, PORT = '%d' } }]]
local CANARY = [[{ after = 2, canary = { weight = 1, soak = 0.4, judge = function()
        return not io.open(dutch.directory .. '/bad'), 'bad'
    end } }]]

-- ---------------------------------------------------------------------------------------------------------------------
-- Ways to die: what happens at once, and what every STRIKE_MS until it is dead.

local function signal(name)
    return { strike = function(_, pid) uv.kill(pid, name) end, again = function() end }
end

M.ways = { sigkill = signal 'sigkill', sigsegv = signal 'sigsegv', sigabrt = signal 'sigabrt', minute = signal 'sigstop' }
M.ways.minute.late = true

-- In this order no three die early of themselves in a row: the next one would do without the state.
M.in_turns = { 'sigkill', 'sigsegv', 'sigstop', 'sigabrt', 'memory' }

-- Its keeper ends it, whose minute of patience ends at once.
M.ways.sigstop = { late = true, strike = function(_, pid)
    uv.kill(pid, 'sigstop')
end, again = function(death, pid)
    if death.impatience or kept.is_stopped(pid) then
        death.impatience = death.impatience or kept.impatience(death.m)
        death.impatience()
    end
end }

-- No more memory than it has. It is asked for things by many until it needs some; if it can do without, it is killed.
M.ways.memory = { late = true, strike = function(_, pid)
    os.execute(('prlimit --pid %d --as=4096:4096 2>/dev/null'):format(pid))
end, again = function(death, pid)
    local asking = 0
    for _, command in ipairs(death.asking) do
        asking = asking + (command.ended < 3 and 1 or 0)
    end
    if asking < ASKING then
        local words = #death.asking % 2 == 0 and { 'status', '--json' } or { 'why', '--json' }
        death.asking[#death.asking + 1] = cli.start(death.m, { words[1], words[2], death.m.script })
    end
    if uv.hrtime() > death.at + WITHOUT_MEMORY_MS * 1e6 then
        uv.kill(pid, 'sigkill')
    end
end }

-- One, some time from now.
local function begin_death(m, way, ms)
    local death = { m = m, way = M.ways[way], asking = {}, before = #m:records(TOOK_OVER) }
    local timer = uv.new_timer()
    timer:start(math.max(1, math.floor(ms)), STRIKE_MS, function()
        local alive = death.pid and uv.kill(death.pid, 0) == 0
        if m.ended or death.pid and not alive then
            timer:close()
            death.over = true
            death.at = death.way.late and death.pid and uv.hrtime() or death.at
        elseif death.pid then
            death.way.again(death, death.pid)
        else
            death.pid = kept.pid(m)
            if death.pid then
                death.at = uv.hrtime()
                death.way.strike(death, death.pid)
            end
        end
    end)
    return death
end

local function await_successor(death)
    death.m:wait_until(function()
        death.record = death.m:records(TOOK_OVER)[death.before + 1]
        return death.over and (death.record or death.m.ended)
    end, 'another master', { timeout = TAKE_OVER_MS })
    for _, command in ipairs(death.asking) do
        command:wait()
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- What must be true. Life.wrong: what is not.

function Life:check(ok, text, ...)
    if not ok then
        self.wrong[#self.wrong + 1] = text:format(...)
    end
    return ok
end

-- Who serves or is about to. A pid that has exited may be another process by now.
local function workers_of(m)
    local gone, list = {}, {}
    for _, record in ipairs(m.log) do
        if type(record.workerPid) == 'number' then
            gone[record.workerPid] = record.msg == 'Worker exited'
        end
    end
    for _, pid in ipairs(m:workers()) do
        list[#list + 1] = not gone[pid] and pid or nil
    end
    return list
end

-- So many serve, and nothing is under way.
local function settle(self, count)
    local wanted = ('%d of %d workers serving'):format(count, count)
    local limit = uv.hrtime() + SETTLE_MS * wait.scale * 1e6
    local out
    repeat
        local status = cli.run(self.m, { 'status', self.m.script }, { timeout = SETTLE_MS })
        out = status.out .. status.err
        if out:find(wanted, 1, true) and out:find 'steady' and #workers_of(self.m) == count then
            return
        end
        wait.let_run(STATUS_MS)
    until self.m.ended or uv.hrtime() > limit
    error(('not %s, and %d are there: %s'):format(wanted, #workers_of(self.m), out))
end

-- Until then a worker may take the next release for its own, and gunicorn may miss that it is asked to stop.
local function await_up(self)
    self.m:wait_until(function()
        local up = true
        for _, pid in ipairs(self.kind.says_up and workers_of(self.m) or {}) do
            up = up and uv.fs_access(self.m:path('up.' .. pid), 'r')
        end
        return up
    end, 'each worker to have read its release')
end

local function zombies_of(pid)
    local list = {}
    for child in files.or_empty(('/proc/%d/task/%d/children'):format(pid, pid)):gmatch '%d+' do
        list[#list + 1] = files.or_empty(('/proc/%s/stat'):format(child)):find '%) Z ' and child or nil
    end
    return list
end

-- Whoever is not there any more has ended once, in the eyes of `why`, who may hear of it a moment later.
local function check_exits(self)
    local m, ended = self.m, {}
    for _, record in ipairs(m:records(nil, self.exits_from)) do
        local pid = record.workerPid
        if type(pid) == 'number' and uv.kill(pid, 0) ~= 0 and not self.explained[pid] then
            ended[pid] = record.msg ~= UNFINISHED or nil -- it never was a worker's
        end
    end
    self.exits_from = m:mark()
    local seen, missing
    local limit = uv.hrtime() + WHY_MS * 1e6
    repeat
        seen, missing = {}, {}
        for _, exit in ipairs(cjson.decode(cli.run(m, { 'why', '--json', m.script }).out).exits) do
            if exit.pid then
                local key = ('%s.%d'):format(tostring(exit.worker), exit.pid) -- pids come again
                self:check(not seen[key], 'the worker %s has ended twice', key)
                seen[key], seen[exit.pid] = true, true
            end
        end
        for pid in pairs(ended) do
            missing[#missing + 1] = not seen[pid] and pid or nil
        end
    until #missing == 0 or uv.hrtime() > limit
    self:check(#missing == 0, 'the exit of %s is not told', table.concat(missing, ', '))
    for pid in pairs(ended) do
        self.explained[pid] = true
    end
end

-- Descriptors of the keeper and of the master: as many as there were, but for lanes that are kept for the next ones. One
-- that is lost with each death shows soon.
local function check_descriptors(self)
    local function look()
        return { kept.descriptors(self.m.pid), kept.descriptors(kept.pid(self.m) or 0) }
    end
    local now = look()
    self.descriptors = self.descriptors or now
    local before = self.descriptors
    local fine = wait.try(function()
        now = look()
        return now[1] <= before[1] + SPARE_LANES and now[2] <= before[2] + SPARE_LANES
    end, { timeout = 5000 })
    self:check(fine, 'descriptors of keeper and master: %d and %d, before %d and %d', now[1], now[2], before[1], before[2])
end

local function check_rest(self)
    local left = {}
    local none = wait.try(function()
        left = zombies_of(self.m.pid)
        for _, pid in ipairs(zombies_of(kept.pid(self.m) or 0)) do
            left[#left + 1] = pid
        end
        return #left == 0
    end, { timeout = 5000 })
    self:check(none, 'not reaped: %s', table.concat(left, ' '))
    check_exits(self)
    check_descriptors(self)
end

-- Those that served serve, but for the ones that were in the middle of a line: another one has come for each.
local function check_same(self, before)
    local distrusted, now = kept.distrusted(self.m), {}
    for _, pid in ipairs(workers_of(self.m)) do
        now[pid] = true
    end
    for _, pid in ipairs(before) do
        self:check(now[pid] or distrusted[pid], 'the worker %d is gone', pid)
    end
end

-- A command that gets its answer. While the master hangs it is told so, and asks again.
local function ask(self, death, ...)
    local words = { ... }
    table.insert(words, 2, self.m.script)
    local command = cli.run(self.m, words, { timeout = TAKE_OVER_MS + SETTLE_MS })
    self.over()
    if death and death.way == M.ways.minute and command.code == 124 and command.err:find 'does not answer' then
        await_successor(death)
        command = cli.run(self.m, words, { timeout = SETTLE_MS })
    end
    return command.code, command.out .. command.err
end

-- Where no process could be started, whatever was said of that is true. Afterwards all is as if it had been done.
local function make_up_for(self)
    self.m:wait_until(function()
        return cli.run(self.m, { 'restart', '--wait', self.m.script }, { timeout = SETTLE_MS }).code == 0
    end, 'a restart')
    settle(self, 2)
end

-- One restart. @param code of its one verdict -> who served before
local function roll(self, code)
    local before, death = workers_of(self.m), self.begin_death()
    local verdict, said = ask(self, death, 'restart', '--wait')
    if death.way == M.ways.memory and said:find 'not enough memory' then
        await_successor(death)
        return {}, true
    end
    self:check(verdict == code, 'the verdict was %s: %s', tostring(verdict), said)
    self:check(select(2, said:gsub('Restart done', '')) == (code == 0 and 1 or 0), 'it said %s', said)
    await_successor(death)
    local logged = #self.m:records('Restart complete', self.mark)
    self:check(logged == (code == 0 and 1 or 0), 'the log has %d times that the restart is complete', logged)
    if code ~= 0 then
        return before
    end
    settle(self, 2)
    local old = {}
    for _, pid in ipairs(before) do
        old[pid] = true
    end
    for _, pid in ipairs(workers_of(self.m)) do
        self:check(not old[pid], 'the old worker %d is there after a restart', pid)
    end
    return {}
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Moments

local moments = {}

function moments.idle(self)
    local before = workers_of(self.m)
    await_successor(self.begin_death())
    settle(self, 2)
    check_same(self, before)
end

function moments.rolling(self)
    if select(2, roll(self, 0)) then
        make_up_for(self)
    end
end

function moments.failing(self)
    local file, text = unpack(self.kind.breaks)
    await_up(self)
    self.m:rewrite(file, text)
    local before, spoilt = roll(self, 10)
    self.m:rewrite(file, self.kind.files[file])
    if spoilt then
        make_up_for(self)
    end
    settle(self, 2)
    check_same(self, before)
end

-- By turns it is good and bad.
function moments.canary(self)
    self.bad = not self.bad
    if self.bad then
        self.m:rewrite('bad', '')
    end
    local before, spoilt = roll(self, self.bad and 10 or 0)
    if self.bad then
        assert(uv.fs_unlink(self.m:path 'bad'))
    end
    if spoilt then
        make_up_for(self)
    end
    settle(self, 2)
    check_same(self, before)
end

-- By turns it dies on the way up and on the way down.
function moments.scaling(self)
    self.up = not self.up
    for _, count in ipairs { 4, 2 } do
        local death = self.up == (count == 4) and self.begin_death()
        local code, said = ask(self, death, 'scale', tostring(count))
        self:check(code == 0, 'scale: %s', said)
        self.m:wait_until(function() return #workers_of(self.m) == count end, count .. ' workers',
            { timeout = TAKE_OVER_MS })
        if death then
            self.over()
            await_successor(death)
        end
        settle(self, count)
    end
end

M.moments = { 'idle', 'booting', 'rolling', 'failing', 'canary', 'scaling', 'stopping' }

-- ---------------------------------------------------------------------------------------------------------------------

local function start(kind, options)
    local port = http.free_port()
    local self = setmetatable({ kind = kind, port = port, loads = {}, wrong = {}, explained = {}, options = options }, Life)
    self.m = kept.start { files = kind.files, env = { DUTCH_MASTER_LUA = false }, script = SCRIPT:format(port, kind.worker,
        kind.more, options.canary and CANARY or '1', port) }
    return self
end

local function start_loads(self)
    for _, mode in ipairs { 'keepalive', 'close' } do
        self.loads[#self.loads + 1] = load.start { port = self.port, clients = 3, mode = mode, rate = self.options.rate or 150,
            expect = '.', timeout = 20000 }
    end
end

--- @return how many requests have ended; how many of them failed, but for those that were sent late
function Life:requests()
    local total, failed = 0, 0
    for _, running in ipairs(self.loads) do
        total, failed = total + running.counts.total, failed + running.counts.total - running.counts.ok - running.counts.late
    end
    return total, failed
end

local function clock(at)
    local seconds, us = uv.gettimeofday()
    local ms = math.floor(seconds * 1000 + us / 1000 - (uv.hrtime() - at) / 1e6)
    return ('%s.%03d'):format(os.date('!%H:%M:%S', math.floor(ms / 1000)), ms % 1000)
end

-- When the requests failed that did since then, by the clock of the log.
local function failures_since(self, began)
    local list = {}
    for _, running in ipairs(self.loads) do
        for _, one in ipairs(running.failures) do
            list[#list + 1] = one.ended >= began and ('%s, %s from %s to %s'):format(running.options.mode, one.outcome,
                clock(one.started), clock(one.ended)) or nil
        end
    end
    return table.concat(list, '; ')
end

-- What is measured of one death. -> { died, took (ms until another master supervised), failed, requests, wrong }
local function measure(self, moment, way, act)
    local total, failed = self:requests()
    local lasts, first = self.kind.lasts, uv.hrtime()
    local began = first
    self.wrong, self.mark = {}, self.m:mark()
    self.had_no_memory = self.had_no_memory or way == 'memory'
    local ms = math.random() * math.min(lasts[moment] or FIRST_MS, LONGEST_MS)
    local death
    function self.begin_death()
        began = uv.hrtime()
        death = begin_death(self.m, way, ms)
        return death
    end
    function self.over()
        lasts[moment] = M.ways[way].late and lasts[moment] or (uv.hrtime() - began) / 1e6
    end
    local ok, why = pcall(act, self)
    if not self:check(ok, '%s', tostring(why):gsub('\n%-%-%- .*', '')) then -- the log is told by who tells of the rest
        self.broken = true
    end
    if death and not death.pid then
        lasts[moment] = (lasts[moment] or FIRST_MS) / 2
    end
    local total_now, failed_now = self:requests()
    local record = death and death.record
    self:check(failed_now == failed, '%d requests failed (%s)', failed_now - failed, failures_since(self, first))
    return { died = death and death.pid ~= nil, took = record and (record.arrived - death.at) / 1e6, ms = ms,
        requests = total_now - total, failed = failed_now - failed, wrong = self.wrong, of = record }
end

--- Begins a life: its workers serve, under both loads. With a way, its master dies while it boots: the second result
-- is what came of that. options: canary: restarts begin with one; rate: requests a second of each load (150)
function M.begin(kind, options, way)
    kind.lasts = kind.lasts or {}
    local self = start(kind, options)
    self.m:await('Creating new worker', { timeout = TAKE_OVER_MS })
    kept.await_snapshot(self.m, function(state) return state.cluster end, 'a cluster')
    self.end_pauses = kept.without_pauses(self.m)
    local result = measure(self, 'booting', way or 'sigkill', function()
        local death = way and self.begin_death()
        self.m:await('Worker listening', { timeout = TAKE_OVER_MS })
        start_loads(self)
        if not way then -- descriptors are compared with those of a master that has taken over
            self.m:await('Cluster ready', { timeout = TAKE_OVER_MS })
            kept.kill(self.m)
            return settle(self, 2)
        end
        self.m:await('Worker listening', { count = 2, timeout = TAKE_OVER_MS })
        self.over()
        await_successor(death)
        settle(self, 2)
        check_rest(self)
    end)
    if not way and not self.broken then
        check_rest(self)
    end
    return self, result
end

--- One death in the middle of something, of moments below.
function Life:die(moment, way)
    return measure(self, moment, way, function()
        moments[moment](self)
        check_rest(self)
        if moment ~= 'failing' and moment ~= 'canary' and way ~= 'memory' then
            for _, record in ipairs(self.m:records({ level = ERROR }, self.mark)) do
                self:check(false, 'in the log: %s', record.msg)
            end
        end
    end)
end

--- One death while it stops; nothing is left of it.
function Life:stop(way)
    return measure(self, 'stopping', way, function()
        await_up(self)
        self.m:wait_until(function()
            for _, running in ipairs(self.loads) do
                if running.active > 0 then
                    return true
                end
            end
        end, 'a request that is under way')
        for _, running in ipairs(self.loads) do
            running:no_more()
        end
        self.m:signal 'SIGTERM'
        local death = self.begin_death()
        local exit = self.m:exit { timeout = TAKE_OVER_MS }
        self.over()
        self.m:wait_until(function() return death.over end, 'the end of that')
        death.record = self.m:records(TOOK_OVER)[death.before + 1]
        for _, command in ipairs(death.asking) do
            command:wait()
        end
        -- Who hung for longer than stopTimeout says so.
        local late = way == 'minute' and self.m:records(UNCLEAN)[1] and 1
        self:check(exit.code == (late or 0), 'it ended with %s', cjson.encode(exit))
        self:check(#self.m:records 'Shutdown requested' <= 2, 'it was stopped again')
        self:finish(late)
        for _, gap in ipairs(not self.broken and kept.gaps_in_story(self.m) or {}) do
            self:check(false, 'in the log: %s', gap)
        end
    end)
end

--- The end of a life, unless it has ended: nothing is left.
function Life:finish(code)
    self.end_pauses()
    for _, record in ipairs(self.m:records 'Internal error') do
        if record.traceback:find('not enough memory', 1, true) and self.had_no_memory then
            record.msg = 'No memory, as it was to be'
        end
    end
    local loads = self.loads
    for _, running in ipairs(loads) do
        running:stop()
    end
    if self.broken then
        pcall(self.m.kill, self.m) -- it may have ended
        return pcall(self.m.finish, self.m, { signal = 'SIGKILL', left = true, files_left = true })
    end
    if not self.m.ended then
        await_up(self)
    end
    self.m:finish { code = code or 0 }
end

return M
