--- fake_control.lua: a control server over a platform of tables, whose turns of the loop are counted by hand.

local cjson = require 'cjson'
local Output = require 'dutch-master.log.output'
local claims = require 'dutch-master.control.claim'
local Commit = require 'dutch-master.keeper.commit'
local control = require 'dutch-master.control.server'

local SCRIPT = '/srv/app/master.lua'

local function fake_platform()
    local p = { servers = {}, locks = {}, taken = {}, claims = {}, dir = '/run/dm', born = '5.000000001' }
    function p.runtime_dir()
        if not p.dir then
            return nil, 'read-only', 'EROFS'
        end
        return p.dir
    end
    function p.stat(path)
        if path == SCRIPT then
            return { dev = 1, ino = 2, born = p.born }
        end
        return p.taken[path] and {} or p.servers[path] and {} or nil
    end
    function p.claim(name)
        assert(name:find '^script/1%-2%-', name)
        if p.claims[name] then
            return nil, 'held by process 78', 'EAGAIN'
        end
        p.claims[name] = true
        return { close = function()
            p.claims[name] = nil
        end }
    end
    function p.who(pid, uid)
        return { pid = pid, uid = uid, command = 'dutch-master' }
    end
    function p.lock(path)
        if p.taken[path] then
            return nil, 'held by process 77', 'EAGAIN'
        end
        local lock = {}
        function lock.close()
            if p.taken[path] == lock then -- another file by now is not removed
                p.taken[path] = nil
            end
        end
        p.taken[path] = lock
        return lock
    end
    function p.serve(path, options)
        if p.refuse == path then
            return nil, path .. ' is in use', 'EADDRINUSE'
        end
        local server = { accept = options.on_client, close = function()
            p.servers[path] = nil
        end }
        p.servers[path] = server
        return server
    end
    function p.timer(fn)
        p.tick = nil
        return {
            start = function(_, ms)
                if ms == 0 then
                    p.tick = fn
                else
                    p.look = fn
                end
            end,
            stop = function()
                p.tick = nil
            end,
            close = function()
                p.closed_timer = true
            end,
        }
    end
    function p.touch()
        p.touched = true
    end
    --- The next turn of the loop. Returns whether there was something to do.
    function p.turn()
        local fn = p.tick
        p.tick = nil
        if fn then
            fn()
        end
        return fn ~= nil
    end
    return p
end

local function fake_cluster()
    local c = { stops = {}, restarts = {}, snapshots = 0, wanted = 2 }
    function c:snapshot()
        self.snapshots = self.snapshots + 1
        return { script = SCRIPT, pid = 1, version = '1', state = 'steady', generation = 1, wanted = self.wanted,
            uptime_ms = 5, rss_kb = 6, workers = {}, slots = {} }
    end
    function c:restart(options)
        self.restarts[#self.restarts + 1] = options
    end
    function c:stop(options)
        self.stops[#self.stops + 1] = options
    end
    function c:scale(n)
        if n > 3 then
            return nil, 'not enough memory'
        end
        self.wanted = n
        return true
    end
    function c:reload(_, done)
        self.reloads = (self.reloads or 0) + 1
        done({ changes = { { key = 'numWorkers', from = 2, to = 3, applies = 'now' } } })
    end
    function c.preview(_, done)
        done(nil, { message = 'master.lua:3: worker: required' })
    end
    function c.why(_, id)
        return { slots = {}, exits = id == 2 and { { worker = 2 } } or id and {} or { { worker = 1 }, { worker = 2 } } }
    end
    return c
end

local M = { SCRIPT = SCRIPT }

local function fake_log()
    local log = { records = {}, subscribers = {}, errors = {} }
    function log:recent(n)
        local last = {}
        for i = math.max(1, #self.records - n + 1), #self.records do
            last[#last + 1] = self.records[i]
        end
        return last
    end
    function log:subscribe(fn)
        self.subscribers[fn] = true
        return function()
            self.subscribers[fn] = nil
        end
    end
    function log.warn() end
    function log.lost()
        return 0
    end
    function log:error(fields)
        self.errors[#self.errors + 1] = fields
    end
    return log
end

--- @return {is_kept = set to true: a keeper is there,
---   platform, cluster, log, open = function(plan) -> claim, connect = function(path) -> conn, server}
function M.new()
    local world = { platform = fake_platform(), cluster = fake_cluster(), log = fake_log() }
    local platform = world.platform
    function world.control(claim)
        world.commit = Commit.new { touch = world.is_kept and platform.touch }
        return control.new { platform = platform, cluster = world.cluster, log = world.log, claim = claim,
            is_kept = world.is_kept, commit = world.commit, output = Output.new { platform = platform } }
    end
    function world.open(plan)
        local claim = assert(claims.take { platform = platform, script = SCRIPT, plan = plan })
        world.server = world.control(claim)
        assert(world.server:open() == true)
        return claim
    end
    function world.connect(path)
        local conn = { answers = {} }
        function conn.on_line(_, fn)
            conn.line = fn
        end
        function conn.on_close(_, fn)
            conn.gone = fn
        end
        conn.held = 0
        function conn.hold(_, by)
            conn.held = conn.held + by
        end
        function conn.pid()
            return 4242
        end
        function conn.uid()
            return 1000
        end
        function conn.close()
            conn.closed = true
        end
        function conn.write(_, text)
            assert(text:sub(-1) == '\n')
            conn.answers[#conn.answers + 1] = cjson.decode(text)
            conn.raw = text
        end
        function conn.ask(request)
            request.v = request.v or 1
            conn.line(cjson.encode(request))
            return conn.answers[#conn.answers]
        end
        platform.servers[path or claims.path_for(SCRIPT, nil, platform)].accept(conn)
        return conn
    end
    return world
end

return M
