local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local signal = require 'posix.signal'
local unistd = require 'posix.unistd'
local p = require 'spec.support.process'

local self = unistd.getpid()

describe('signals', function()
    -- Outside of the specs: the first set opens a descriptor that stays.
    core.signals({ 'SIGUSR1' }, function() end)
    p.leaves_nothing()

    after_each(function()
        core.signals({}, function() end)
    end)

    it('come with the pid and uid of the sender, and when they came', function()
        local got
        core.signals({ 'SIGUSR1', 'HUP' }, function(...) got = { ... } end)
        local before = core.now()
        local record = p.sh('kill -HUP ' .. self)
        p.await(function() return got end)
        local at = table.remove(got)
        assert.are.same({ 'SIGHUP', record.pid, 0 }, got)
        assert.is_true(before <= at and at <= core.now(), at)
        p.exit_of(record)
    end)

    it('are replaced as a set', function()
        local got = {}
        local function note(name) got[#got + 1] = name end
        core.signals({ 'SIGUSR1', 'SIGUSR2' }, note)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        core.signals({ 'SIGUSR2' }, note)
        signal.kill(self, signal.SIGUSR1)
        signal.kill(self, signal.SIGUSR2)
        p.await(function() return #got > 0 end)
        p.step()
        assert.are.same({ 'SIGUSR2' }, got)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    end)

    it('may change the set from within', function()
        local got = {}
        core.signals({ 'SIGUSR1', 'SIGUSR2' }, function(name)
            got[#got + 1] = name
            core.signals({ 'SIGTERM' }, function(other) got[#got + 1] = 'then ' .. other end)
            signal.kill(self, signal.SIGTERM)
        end)
        signal.kill(self, signal.SIGUSR1)
        p.await(function() return #got == 2 end)
        assert.are.same({ 'SIGUSR1', 'then SIGTERM' }, got)
    end)

    it('do not reach the children', function()
        core.signals({ 'SIGUSR1' }, function() end)
        local record = p.sh 'kill -USR1 $$; exit 1'
        assert.are.equal('SIGUSR1', p.exit_of(record).signal)
    end)

    it('have names and numbers', function()
        assert.are.equal(15, loop.signal_number 'SIGTERM')
        assert.are.equal(15, loop.signal_number 'TERM')
        assert.are.equal('SIGKILL', loop.signal_name(9))
        for number = 1, 31 do
            assert.are.equal(number, loop.signal_number(loop.signal_name(number)))
        end
        assert.are.equal(loop.signal_number 'SIGRTMIN' + 3, loop.signal_number 'SIGRTMIN+3')
        assert.are.equal('SIGRTMIN+3', loop.signal_name(loop.signal_number 'SIGRTMIN+3'))
        for _, name in ipairs { '', 'SIG', 'SIGFOO', 'term', 'RTMIN+99', 'RTMIN+', 'RTMIN-1', '15' } do
            assert.is_nil(loop.signal_number(name), name)
        end
        for _, number in ipairs { 0, -1, 65, 1000 } do
            assert.is_nil(loop.signal_name(number))
        end
    end)

    it('refuses what cannot be listened to', function()
        for _, name in ipairs { 'SIGKILL', 'SIGSTOP', 'SIGCHLD', 'SIGFOO' } do
            assert.has_error(function() core.signals({ name }, function() end) end)
        end
    end)
end)
