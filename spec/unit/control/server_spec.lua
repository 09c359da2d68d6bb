local claims = require 'dutch-master.control.claim'
local fake_control = require 'spec.support.fake_control'

local SCRIPT = fake_control.SCRIPT

describe('the control socket', function()
    local world, platform, cluster, log, open, connect

    before_each(function()
        world = fake_control.new()
        platform, cluster, log, open, connect = world.platform, world.cluster, world.log, world.open, world.connect
    end)

    it('is served at the chosen place and at the usual one', function()
        open { control_socket = '/run/app.sock' }
        assert.is_true(connect('/run/app.sock').ask { id = 1, verb = 'ping' }.ok)
        assert.is_true(connect().ask { id = 1, verb = 'ping' }.ok)
        world.server:close()
        assert.same({}, platform.servers)
        assert.is_true(platform.closed_timer)
    end)

    it('closes what it opened when a place cannot be had', function()
        local claim = assert(claims.take { platform = platform, script = SCRIPT, plan = { control_socket = '/a' } })
        platform.refuse = claims.path_for(SCRIPT, nil, platform)
        local server = world.control(claim)
        local ok, _, code = server:open()
        assert.is_nil(ok)
        assert.equal('EADDRINUSE', code)
        assert.same({}, platform.servers)
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

    describe('a flood', function()
        it('finds the socket again when it and the lock have been removed', function()
            open()
            local path = claims.path_for(SCRIPT, nil, platform)
            local before = platform.servers[path]
            platform.servers[path], platform.taken = nil, {}
            local message, code = select(2, claims.take { platform = platform, script = SCRIPT, plan = {} })
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
                pcall(conn.line, '{"v":1,"id":1,"verb":"status"}')
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

        it('that only asks whether the master is there is answered in the same turn, whoever else asks', function()
            open()
            local crowd, loud, last = {}, connect(), connect()
            for i = 1, 60 do
                crowd[i] = connect()
                crowd[i].line '{"v":1,"verb":"ping"}'
            end
            for _ = 1, 10 do
                loud.line '{"v":1,"verb":"status"}'
            end
            last.line '{"v":1,"verb":"ping"}'
            assert.equal(1, #crowd[60].answers)
            assert.is_true(cluster.snapshots <= 4)
            platform.turn()
            assert.equal(1, #last.answers)
            assert.is_true(cluster.snapshots <= 8)
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
