local fake_control = require 'spec.support.fake_control'

describe('a verb of the control socket', function()
    local world, platform, cluster, log, open, connect

    before_each(function()
        world = fake_control.new()
        platform = world.platform
        cluster, log, open, connect = world.cluster, world.log, world.open, world.connect
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

        it('what was done for a request once, and not before it is kept', function()
            world.is_kept = true
            open()
            local server, conn = world.server, connect()
            local function ask(request)
                local count = #conn.answers
                conn.ask(request)
                world.platform.turn()
                world.commit:written()
                assert.is_true(#conn.answers > count)
                return conn.answers[#conn.answers]
            end
            assert.is_nil(conn.ask { verb = 'scale', by = 1, key = 'a' })
            assert.equal(3, cluster.wanted)
            world.commit:written()
            assert.same({ 2, 3 }, { conn.answers[1].from, conn.answers[1].to })
            assert.same({ 2, 3 }, { ask({ verb = 'scale', by = 1, key = 'a' }).from, cluster.wanted })
            for i = 1, 31 do
                ask { verb = 'scale', workers = 3, key = 'b' .. i }
            end
            assert.equal(32, #server.answers)
            assert.equal(3, ask({ verb = 'scale', by = -1, key = 'a' }).to)
            ask { verb = 'scale', workers = 3, key = 'c' }
            assert.equal(32, #server.answers) -- and no more than these: that of a is gone
            assert.equal(2, ask({ verb = 'scale', by = -1, key = 'a' }).to)
            for _ = 1, 2 do
                assert.equal('numWorkers', ask({ verb = 'reload', key = 'd' }).changes[1].key)
            end
            assert.equal(1, cluster.reloads)
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

    it('say nothing that another master would not know: they wait for the state to be kept', function()
        world.is_kept = true
        open()
        local conn = connect()
        local function said_after(request)
            platform.touched = false
            local count = #conn.answers
            conn.ask(request)
            assert.equal(count, #conn.answers)
            assert.is_true(platform.touched)
            world.commit:written()
            platform.turn()
            return conn.answers[count + 1]
        end
        assert.equal(3, said_after({ verb = 'scale', workers = 3 }).to)
        assert.is_true(said_after({ verb = 'restart' }).ok)
        assert.equal('accepted', conn.ask({ verb = 'restart', wait = true }).event) -- who waits asks again
        local count = #conn.answers
        cluster.restarts[2].on_progress { done = 1, total = 1 }
        cluster.restarts[2].on_verdict { result = 'done' }
        assert.is_true(#conn.answers == count)
        conn.ask { verb = 'ping', id = 9 } -- behind them
        world.commit:written()
        assert.same({ 1, 'done', 9 }, { conn.answers[count + 1].done, conn.answers[count + 2].verdict.result,
            conn.answers[count + 3].id })
        assert.is_true(conn.ask({ verb = 'ping' }).ok) -- at once
        world.commit:alone() -- the keeper has died
        world.server:alone()
        assert.is_true(conn.ask({ verb = 'restart' }).ok)
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
end)
