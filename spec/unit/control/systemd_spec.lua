local Systemd = require 'dutch-master.control.systemd'

describe('systemd', function()
    local platform, sent, timers, environ, now, refuse

    before_each(function()
        sent, timers, environ, now, refuse = {}, {}, {}, 1000.25, false
        platform = {
            sd_notify_set = function()
                return environ.NOTIFY_SOCKET ~= nil
            end,
            sd_notify = function(text)
                if refuse then
                    return nil, 'no such socket', refuse
                end
                sent[#sent + 1] = text
                return true
            end,
            environ = function()
                return environ
            end,
            pid = function()
                return 42
            end,
            now = function()
                return now
            end,
            timer = function(fn)
                local timer = { fire = fn }
                function timer.start(_, ms)
                    timer.ms = ms
                end
                function timer.stop()
                    timer.ms = nil
                end
                function timer.close()
                    timer.ms, timer.closed = nil, true
                end
                timers[#timers + 1] = timer
                return timer
            end,
        }
        environ.NOTIFY_SOCKET = '@x'
    end)

    local function state(name, serving, more)
        local s = { state = name, wanted = 2, serving = serving, generation = 1, processes = 2 }
        for key, value in pairs(more or {}) do
            s[key] = value
        end
        return s
    end

    it('does nothing without a service manager', function()
        environ.NOTIFY_SOCKET = nil
        environ.WATCHDOG_USEC = '1000000'
        local sd = Systemd.new { platform = platform }
        sd:on_state(state('steady', 2))
        sd:close()
        assert.same({}, sent)
        assert.same({}, timers)
    end)

    it('is ready when the workers are, once', function()
        local sd = Systemd.new { platform = platform }
        sd:on_state(state('booting', 0))
        sd:on_state(state('booting', 1))
        sd:on_state(state('steady', 2))
        sd:on_state(state('steady', 2))
        assert.same({
            'STATUS=starting, 0 of 2 workers ready\nEXTEND_TIMEOUT_USEC=15000000',
            'STATUS=starting, 1 of 2 workers ready',
            'READY=1\nSTATUS=2 of 2 workers serving, generation 1',
        }, sent)
        assert.is_nil(timers[1].ms)
    end)

    it('closes each reload by READY, also a failed one, and says how it went', function()
        local sd = Systemd.new { platform = platform }
        sd:on_state(state('steady', 2))
        sent = {}
        sd:on_state(state('rolling', 2, { roll = { done = 0, total = 2 } }))
        sd:on_state(state('rolling', 2, { roll = { done = 1, total = 2 } }))
        sd:on_state(state('steady', 2, { last_verdict = { result = 'aborted', message = 'exit\n1' } }))
        assert.same({
            'RELOADING=1\nMONOTONIC_USEC=1001000\n'
                .. 'STATUS=restarting, 0 of 2 replaced, 2 of 2 workers serving, generation 1\n'
                .. 'EXTEND_TIMEOUT_USEC=15000000',
            'STATUS=restarting, 1 of 2 replaced, 2 of 2 workers serving, generation 1',
            'READY=1\nSTATUS=2 of 2 workers serving, generation 1; the last restart was aborted: exit 1',
        }, sent)
        sd:on_state(state('steady', 2, { last_verdict = { result = 'rolled_back', message = 'exit 1' } }))
        assert.equal('STATUS=2 of 2 workers serving, generation 1; the last restart was rolled back: exit 1', sent[#sent])
    end)

    it('says both words of a restart that was over at once', function()
        local sd = Systemd.new { platform = platform }
        sd:on_state(state('steady', 2, { restarts = 1 }))
        sent = {}
        sd:on_state(state('steady', 2, { restarts = 2, last_verdict = { result = 'aborted', message = 'exit 1' } }))
        assert.same({
            'RELOADING=1\nMONOTONIC_USEC=1001000',
            'READY=1\nSTATUS=2 of 2 workers serving, generation 1; the last restart was aborted: exit 1',
        }, sent)
        sd:on_state(state('steady', 2, { restarts = 2 }))
        assert.equal(3, #sent)
    end)

    it('does not claim to reload what was never ready', function()
        local sd = Systemd.new { platform = platform }
        sd:on_state(state('booting', 0))
        sd:on_state(state('rolling', 1, { roll = { done = 0, total = 2 } }))
        sd:on_state(state('steady', 2))
        assert.falsy(table.concat(sent):find 'RELOADING')
        assert.truthy(sent[#sent]:find 'READY=1')
    end)

    it('stops for good, and asks for time while it drains', function()
        local sd = Systemd.new { platform = platform }
        sd:on_state(state('steady', 2))
        sd:on_state(state('rolling', 2, { roll = { done = 0, total = 2 } }))
        sent = {}
        sd:on_state(state('stopping', 2))
        assert.equal('STOPPING=1\nSTATUS=stopping, 2 workers left', sent[1])
        assert.equal(5000, timers[1].ms)
        timers[1].fire()
        assert.equal('EXTEND_TIMEOUT_USEC=15000000', sent[2])
        assert.equal(5000, timers[1].ms)
        sd:on_state(state('stopping', 1, { processes = 1 }))
        assert.equal('STATUS=stopping, 1 worker left', sent[3])
        sd:close()
        assert.is_true(timers[1].closed)
    end)

    it('pings the watchdog twice an interval, if it is meant', function()
        for _, case in ipairs {
            { '3000000', nil, 1500 }, { '3000000', '42', 1500 }, { '3000000', '41', nil },
            { '0', nil, nil }, { 'x', nil, nil },
        } do
            environ.WATCHDOG_USEC, environ.WATCHDOG_PID = case[1], case[2]
            timers, sent = {}, {}
            local sd = Systemd.new { platform = platform }
            assert.equal(case[3], timers[2] and timers[2].ms)
            -- At once, too: a former master may have done it last a whole interval ago.
            assert.equal(case[3] and 'WATCHDOG=1', sent[1])
            if case[3] then
                timers[2].fire()
                assert.same({ 'WATCHDOG=1', 'WATCHDOG=1' }, sent)
                assert.equal(case[3], timers[2].ms)
            end
            sd:close()
        end
    end)

    it('pings the watchdog again after a ping that failed', function()
        environ.NOTIFY_SOCKET, environ.WATCHDOG_USEC = '/run/x', '2000000'
        local systemd = Systemd.new { platform = platform }
        function platform.sd_notify()
            error 'a message'
        end
        for _, timer in ipairs(timers) do
            if timer.ms then
                timer.ms = nil
                assert.has_error(timer.fire)
                assert.equal(1000, timer.ms)
            end
        end
        systemd:close()
    end)

    it('tells a manager that was busy later, all of it and in order', function()
        environ.WATCHDOG_USEC = '3000000'
        local sd = Systemd.new { platform = platform }
        local again = timers[3]
        sd:on_state(state('steady', 2))
        assert.is_nil(again.ms)
        sent, refuse = {}, 'EAGAIN'
        sd:on_state(state('rolling', 2, { roll = { done = 0, total = 2 } }))
        sd:on_state(state('steady', 2))
        timers[1].fire()
        timers[2].fire()
        again.fire()
        assert.equal(100, again.ms)
        assert.same({}, sent)
        refuse = false
        again.fire()
        assert.same({ 'RELOADING', 'READY' }, { sent[1]:match '^%u+', sent[2]:match '^%u+' })
        assert.equal(2, #sent)
        timers[2].fire()
        assert.equal('WATCHDOG=1', sent[3])
        -- However long that takes, what is kept is bounded; the last state is not what is given up.
        refuse = 'EAGAIN'
        for i = 1, 1000 do
            sd:on_state(state('steady', 2, { generation = i }))
        end
        sent, refuse = {}, false
        again.fire()
        assert.equal(100, #sent)
        assert.matches('generation 1000$', sent[100])
        sd:close()
        assert.is_true(again.closed)
    end)

    it('reports a failure to notify once', function()
        local warnings = 0
        local sd = Systemd.new { platform = platform, log = { warn = function()
            warnings = warnings + 1
        end } }
        refuse = 'ENOENT'
        sd:on_state(state('booting', 0))
        sd:on_state(state('steady', 2))
        assert.equal(1, warnings)
    end)

    it('asks for more time only while workers are within their own deadlines', function()
        local sd = Systemd.new { platform = platform }
        sd:on_state(state('booting', 0, { patience_ms = 60000 }))
        local extender = timers[1]
        now = now + 59999
        extender.fire()
        assert.equal('EXTEND_TIMEOUT_USEC=15000000', sent[2])
        now = now + 1
        extender.fire()
        assert.equal(2, #sent)
        -- A worker has asked for more.
        sd:on_state(state('booting', 0, { patience_ms = 60000, asked_ms = 5000 }))
        now = now + 4999
        extender.fire()
        assert.equal('EXTEND_TIMEOUT_USEC=15000000', table.remove(sent))
        now = now + 1
        extender.fire()
        -- A step begins another of these times.
        sd:on_state(state('booting', 1, { patience_ms = 60000 }))
        assert.truthy(sent[3]:find('EXTEND_TIMEOUT_USEC=15000000', 1, true))
        extender.fire()
        assert.equal('EXTEND_TIMEOUT_USEC=15000000', sent[4])
    end)
end)
