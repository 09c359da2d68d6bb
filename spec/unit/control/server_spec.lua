local cjson = require 'cjson'
local control = require 'dutch-master.control.server'

local SCRIPT = '/srv/app/master.lua'

-- A platform whose sockets are tables, and whose turns of the loop are counted by hand.
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
    function c.reload(_, _, done)
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

describe('control', function()
    local platform, cluster, log, server

    before_each(function()
        platform, cluster = fake_platform(), fake_cluster()
        log = { records = {}, subscribers = {}, errors = {} }
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
        function log:error(fields)
            self.errors[#self.errors + 1] = fields
        end
    end)

    local function open(plan)
        local claim = assert(control.claim { platform = platform, script = SCRIPT, plan = plan })
        server = control.new { platform = platform, cluster = cluster, log = log, claim = claim }
        assert.is_true(server:open())
        return claim
    end

    local function connect(path)
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
            assert.equal('\n', text:sub(-1))
            conn.answers[#conn.answers + 1] = cjson.decode(text)
            conn.raw = text
        end
        function conn.ask(request)
            request.v = request.v or 1
            conn.line(cjson.encode(request))
            return conn.answers[#conn.answers]
        end
        platform.servers[path or control.path_for(SCRIPT, nil, platform)].accept(conn)
        return conn
    end

    describe('place', function()
        it('follows from the script, and differs between scripts of one name', function()
            local a = control.path_for('/a/master.lua', nil, platform)
            local b = control.path_for('/b/master.lua', nil, platform)
            assert.truthy(a:find '^/run/dm/master%-%x+%.sock$')
            assert.not_equal(a, b)
            assert.equal(a, control.path_for('/a/master.lua', {}, platform))
            assert.equal('/x/y', control.path_for('/a/master.lua', { control_socket = '/x/y' }, platform))
            assert.truthy(control.path_for('/a/ü b;c.lua', nil, platform):find '^/run/dm/[%w_]+%-%x+%.sock$')
        end)

        it('is refused when it is too long for a socket, not cut', function()
            local path, message, code = control.path_for(SCRIPT, { control_socket = '/' .. ('x'):rep(107) }, platform)
            assert.is_nil(path)
            assert.truthy(message:find('108 bytes of at most 107', 1, true))
            assert.equal('ENAMETOOLONG', code)
            assert.truthy(control.path_for('/' .. ('x'):rep(300) .. '.lua', nil, platform))
            assert.is_nil(control.claim { platform = platform, script = SCRIPT,
                plan = { control_socket = '/' .. ('x'):rep(107) } })
            assert.same({}, platform.taken)
        end)
    end)

    describe('claim', function()
        it('lets one master have a script', function()
            local claim = open()
            local second, message, code = control.claim { platform = platform, script = SCRIPT }
            assert.is_nil(second)
            assert.equal('EAGAIN', code)
            assert.equal('a master of /srv/app/master.lua is running already: held by process 77', message)
            claim:release()
            assert.truthy(control.claim { platform = platform, script = SCRIPT })
        end)

        it('holds for a script, whatever socket its masters choose', function()
            open { control_socket = '/run/app.sock' }
            assert.is_nil(control.claim { platform = platform, script = SCRIPT, plan = { control_socket = '/other' } })
        end)

        it('needs no runtime directory when the script chose a socket', function()
            platform.dir = nil
            assert.is_nil(control.claim { platform = platform, script = SCRIPT })
            open { control_socket = '/run/app.sock' }
            assert.truthy(platform.taken['/run/app.sock.lock'])
            assert.truthy(platform.servers['/run/app.sock'])
        end)
    end)

    it('is served at the chosen place and at the usual one', function()
        open { control_socket = '/run/app.sock' }
        assert.is_true(connect('/run/app.sock').ask { id = 1, verb = 'ping' }.ok)
        assert.is_true(connect().ask { id = 1, verb = 'ping' }.ok)
        server:close()
        assert.same({}, platform.servers)
        assert.is_true(platform.closed_timer)
    end)

    it('closes what it opened when a place cannot be had', function()
        local claim = assert(control.claim { platform = platform, script = SCRIPT, plan = { control_socket = '/a' } })
        platform.refuse = control.path_for(SCRIPT, nil, platform)
        server = control.new { platform = platform, cluster = cluster, log = log, claim = claim }
        local ok, _, code = server:open()
        assert.is_nil(ok)
        assert.equal('EADDRINUSE', code)
        assert.same({}, platform.servers)
    end)

    describe('answers', function()
        it('status, with empty lists as lists', function()
            open()
            local conn = connect()
            local answer = conn.ask { id = 'a', verb = 'status' }
            assert.same({ 1, 'a', true, 'steady' }, { answer.v, answer.id, answer.ok, answer.status.state })
            assert.truthy(conn.raw:find('"workers":[]', 1, true))
        end)

        it('scale', function()
            open()
            local conn = connect()
            assert.same({ 2, 3 }, { conn.ask({ verb = 'scale', workers = 3 }).from, cluster.wanted })
            assert.same(2, conn.ask({ verb = 'scale', by = -1 }).to)
            assert.equal('not enough memory', conn.ask({ verb = 'scale', workers = 4 }).error.message)
            for _, workers in ipairs { 0, -1, 1.5, 1e6, '4', {}, false } do
                assert.equal('EINVAL', conn.ask({ verb = 'scale', workers = workers }).error.code, tostring(workers))
            end
            assert.equal('EINVAL', conn.ask({ verb = 'scale' }).error.code)
            assert.equal(2, cluster.wanted)
        end)

        it('reload and plan', function()
            open()
            local conn = connect()
            assert.equal('numWorkers', conn.ask({ verb = 'reload' }).changes[1].key)
            local failed = conn.ask { verb = 'plan' }
            assert.same({ 'ESCRIPT', 'master.lua:3: worker: required' }, { failed.error.code, failed.error.message })
        end)

        it('why', function()
            open()
            local conn = connect()
            assert.equal(2, #conn.ask({ verb = 'why' }).exits)
            assert.equal(2, conn.ask({ verb = 'why', worker = 2 }).exits[1].worker)
            conn.ask { verb = 'why', worker = 3 }
            assert.truthy(conn.raw:find('"exits":[]', 1, true))
            assert.equal('EINVAL', conn.ask({ verb = 'why', worker = 'x' }).error.code)
        end)

        it('events, and those to come until the client goes', function()
            open()
            for i = 1, 30 do
                log.records[i] = { msg = 'record ' .. i }
            end
            local conn = connect()
            conn.ask { id = 1, verb = 'events' }
            assert.equal(21, #conn.answers)
            assert.equal('record 11', conn.answers[1].record.msg)
            conn = connect()
            conn.ask { id = 2, verb = 'events', last = 1, follow = true }
            assert.equal('accepted', conn.answers[1].event)
            assert.equal('record 30', conn.answers[2].record.msg)
            next(log.subscribers)({ msg = 'new' })
            assert.equal('new', conn.answers[3].record.msg)
            conn.gone()
            assert.same({}, log.subscribers)
        end)
    end)

    describe('restart', function()
        it('tells who asked, and answers at once without wait', function()
            open()
            assert.is_true(connect().ask({ verb = 'restart' }).ok)
            local asked = cluster.restarts[1]
            assert.same({ 'control', { pid = 4242, uid = 1000, command = 'dutch-master' } }, { asked.cause, asked.who })
            asked.on_progress { done = 1, total = 2 }
            asked.on_verdict { result = 'done' }
        end)

        it('gives progress and exactly one verdict with wait', function()
            open()
            local conn = connect()
            conn.ask { id = 5, verb = 'restart', wait = true }
            local asked = cluster.restarts[1]
            asked.on_progress { done = 1, total = 2, worker = 9 }
            asked.on_verdict { result = 'done', generation = 2 }
            asked.on_verdict { result = 'aborted', generation = 2 }
            asked.on_progress { done = 2, total = 2 }
            assert.equal(3, #conn.answers)
            assert.equal('accepted', conn.answers[1].event)
            local progress = conn.answers[2]
            assert.same({ 'progress', 1, 2, 9, 5 },
                { progress.event, progress.done, progress.total, progress.worker, progress.id })
            assert.equal('done', conn.answers[3].verdict.result)
        end)

        it('does not mind that the client has gone', function()
            open()
            local conn = connect()
            conn.ask { verb = 'restart', wait = true }
            conn.gone()
            local asked, count = cluster.restarts[1], #conn.answers
            asked.on_progress { done = 1, total = 2 }
            asked.on_verdict { result = 'done' }
            assert.equal(count, #conn.answers)
        end)
    end)

    it('stop answers when all is stopped, or at once', function()
        open()
        local conn = connect()
        assert.equal('accepted', conn.ask({ verb = 'stop', wait = true }).event)
        cluster.stops[1].on_stopped(1)
        assert.equal(1, conn.answers[2].exit_code)
        conn = connect()
        assert.is_true(conn.ask({ verb = 'stop' }).ok)
        cluster.stops[2].on_stopped(0)
        assert.equal(1, #conn.answers)
    end)

    describe('bad requests', function()
        it('are refused by name, and the connection stays', function()
            open()
            local conn = connect()
            assert.equal('EVERSION', conn.ask({ v = 2, verb = 'status' }).error.code)
            assert.equal('ENOVERB', conn.ask({ verb = 'frobnicate' }).error.code)
            assert.equal('ENOVERB', conn.ask({ verb = { 'status' } }).error.code)
            platform.turn()
            assert.equal('ENOVERB', conn.ask({}).error.code)
            assert.is_nil(conn.ask({ id = { 1 }, verb = 'ping' }).id)
            assert.is_nil(conn.ask({ id = ('x'):rep(65), verb = 'ping' }).id)
            assert.is_nil(conn.closed)
        end)

        it('that are no JSON objects end the connection', function()
            open()
            for _, line in ipairs { 'x', '1', '"x"', 'null', ('['):rep(100), '{"v":1', '\0\255' } do
                local conn = connect()
                conn.line(line)
                platform.turn()
                assert.equal('EJSON', conn.answers[1].error.code, line)
                assert.is_true(conn.closed, line)
            end
        end)

        it('that make the cluster fail are answered and logged', function()
            open()
            function cluster.why()
                error 'boom'
            end
            local conn = connect()
            assert.equal('EINTERNAL', conn.ask({ verb = 'why' }).error.code)
            assert.equal('why', log.errors[1].verb)
        end)
    end)

    it('is not refused for a file that had the inode of its script before, nor where births are not kept', function()
        open()
        platform.taken = {} -- as for a script at another path
        local function claim()
            return control.claim { platform = platform, script = SCRIPT, plan = {} }
        end
        assert.is_nil(claim())
        platform.born = '6.000000001'
        local other = assert(claim())
        other:release()
    end)

    describe('a flood', function()
        it('finds the socket again when it and the lock have been removed', function()
            open()
            local path = control.path_for(SCRIPT, nil, platform)
            local before = platform.servers[path]
            platform.servers[path], platform.taken = nil, {}
            local message, code = select(2, control.claim { platform = platform, script = SCRIPT, plan = {} })
            assert.equal('EAGAIN', code)
            assert.truthy(message:find('is running already: held by process 78', 1, true), message)
            platform.look()
            assert.is_not_nil(platform.servers[path])
            assert.are_not.equal(before, platform.servers[path])
            assert.is_not_nil(platform.taken[(path:gsub('%.sock$', '.lock'))])
        end)

        it('whose id or numbers JSON cannot write back are refused, and hurt no other', function()
            open()
            local bad, good = connect(), connect()
            local requests = { '{"v":1,"id":1e999,"verb":"ping"}', '{"v":1,"id":nan,"verb":"ping"}',
                '{"v":1,"id":-1e999,"verb":"pong"}', '{"v":1,"id":1,"verb":"scale","workers":1e999}',
                '{"v":1,"id":1e300,"verb":"ping"}', '{"v":1,"id":{},"verb":"ping"}', '{"v":1,"verb":"why","worker":1e999}' }
            for _ = 1, 6 do
                bad.line '{"v":1,"id":1,"verb":"ping"}'
            end
            for _, line in ipairs(requests) do
                bad.line(line)
            end
            good.line '{"v":1,"id":"me","verb":"ping"}'
            while platform.turn() do end
            assert.equal(6 + #requests, #bad.answers)
            for i = 7, #bad.answers do
                assert.is_false(bad.answers[i].ok)
            end
            assert.same({ v = 1, id = 'me', ok = true }, good.answers[1])
        end)

        it('of which one throws does not keep the next from its turn', function()
            open()
            local conn = connect()
            conn.fails = true
            local write = conn.write
            function conn.write(...)
                if conn.fails then
                    error 'the pipe is odd'
                end
                return write(...)
            end
            for _ = 1, 10 do
                pcall(conn.line, '{"v":1,"id":1,"verb":"ping"}')
            end
            pcall(platform.turn)
            conn.fails = false
            while platform.turn() do end
            assert.is_true(#conn.answers >= 1)
        end)

        it('holds its client until it is answered, if it waits for a verdict', function()
            open()
            local conn = connect()
            conn.line '{"v":1,"id":1,"verb":"restart","wait":true}'
            assert.equal(1, conn.held)
            conn.line '{"v":1,"id":2,"verb":"ping"}'
            assert.equal(1, conn.held)
            cluster.restarts[#cluster.restarts].on_verdict { result = 'done' }
            assert.equal(0, conn.held)
        end)

        it('waits: a few requests a turn, the clients one after the other', function()
            open()
            local loud, quiet = connect(), connect()
            for _ = 1, 100 do
                loud.line '{"v":1,"verb":"status"}'
            end
            quiet.line '{"v":1,"verb":"status"}'
            assert.is_true(cluster.snapshots <= 4)
            assert.equal(0, #quiet.answers)
            platform.turn()
            assert.is_true(cluster.snapshots <= 8)
            assert.equal(1, #quiet.answers)
            local turns = 0
            while platform.turn() do
                turns = turns + 1
            end
            assert.equal(100, #loud.answers)
            assert.is_true(turns >= 23)
        end)

        it('of more than it may is cut off, and its requests are forgotten', function()
            open()
            local conn = connect()
            for _ = 1, 300 do
                if not conn.closed then
                    conn.line '{"v":1,"verb":"status"}'
                end
            end
            assert.is_true(conn.closed)
            assert.equal('EBUSY', conn.answers[#conn.answers].error.code)
            local before = cluster.snapshots
            while platform.turn() do end
            assert.equal(before, cluster.snapshots)
        end)

        it('of unanswered requests is bounded too', function()
            open()
            local conn = connect()
            for _ = 1, 300 do
                if not conn.closed then
                    conn.line '{"v":1,"verb":"restart","wait":true}'
                    platform.turn()
                end
            end
            assert.is_true(conn.closed)
            assert.is_true(#cluster.restarts <= 256)
        end)
    end)
end)
