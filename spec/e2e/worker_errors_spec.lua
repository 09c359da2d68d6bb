-- Workers that cannot be started: each reason by its own name, at a bounded rate, and gone as soon as it is put right.

local apps = require 'spec.support.apps'
local master = require 'spec.support.master'

-- what, options, files, expected step, code, pattern of the message, how it is put right
local CASES = {
    { 'a missing Lua worker', "worker = 'app.lua'", {}, 'script', 'ENOENT', 'the worker: [^:]*app%.lua',
        { 'app.lua', apps.idle } },
    { 'a directory for a Lua worker', "worker = 'app.lua'", { ['app.lua/x'] = '' }, 'script', 'EISDIR',
        'the worker: [^:]*app%.lua' },
    { 'a missing program', "worker = { './app.sh' }", {}, 'exec', 'ENOENT', 'the program: [^:]*app%.sh',
        { 'app.sh', apps.report } },
    { 'a missing program in PATH', "worker = { 'no-such-program-anywhere' }", {}, 'exec', 'ENOENT',
        'no%-such%-program%-anywhere: not found in PATH %(' },
    { 'a program that is not executable', "worker = { './app.sh' }",
        { ['app.sh'] = { text = apps.report, mode = '644' } }, 'exec', 'EACCES', 'the program: [^:]*app%.sh',
        { 'app.sh', apps.report } },
    { 'a missing interpreter', "worker = { './app.sh' }", { ['app.sh'] = '#!/no/such/sh\nexit 0\n' }, 'interpreter',
        'ENOENT', 'the interpreter named in its #! line: [^:]*/no/such/sh', { 'app.sh', apps.report } },
    { 'a program of another format', "worker = { './app.sh' }", { ['app.sh'] = { text = '\1\2\3\4', mode = '755' } },
        'exec', 'ENOEXEC', 'the program: [^:]*app%.sh', { 'app.sh', apps.report } },
    { 'a missing directory', "worker = 'app.lua', beforeFork = function() dutch.chdir '/no/such/release' end",
        { ['app.lua'] = apps.idle }, 'chdir', 'ENOENT', 'its directory: [^:]*/no/such/release' },
    { 'a file for a directory', "worker = 'app.lua', beforeFork = function() dutch.chdir '/etc/passwd' end",
        { ['app.lua'] = apps.idle }, 'chdir', 'ENOTDIR', 'its directory: [^:]*/etc/passwd' },
    -- The kernel lets arguments and environment have a quarter of the stack.
    { 'too large an environment', "worker = 'app.lua', limits = { stack = 1048576 }, workerEnvironment = "
        .. "{ A = ('x'):rep(100000), B = ('x'):rep(100000), C = ('x'):rep(100000) }",
        { ['app.lua'] = apps.idle }, 'exec', 'E2BIG', 'the program: .*argument list too long' },
}

local function start(case)
    return master.start {
        script = ([[local dutch = require 'dutch-master'
            dutch.start { numWorkers = 1, restartAttempts = 100, ready = { alive = 0.05 }, %s }]]):format(case[2]):gsub(
            case[2]:find('%.lua') and 'ready = { alive = 0.05 },' or '\0', ''),
        files = case[3],
        -- A file of its own: the report is renamed to it, which as root would replace any device.
        env = { OUT = master.temp_dir() .. '/report' },
    }
end

describe('a worker that cannot be started', function()
    after_each(master.cleanup)

    it('is told apart by name', function()
        local masters = {}
        for i, case in ipairs(CASES) do
            masters[i] = start(case)
        end
        for i, case in ipairs(CASES) do
            local m = masters[i]
            local record = m:await(function(r) return r.msg:find('Worker could not be started', 1, true) == 1 end)
            assert.same({ case[4], case[5], 50 }, { record.step, record.code, record.level }, case[1] .. m:dump())
            assert.matches('^Worker could not be started: ' .. case[6], record.msg, case[1])
            assert.same({ 'number', 'number', 1 }, { type(record.workerId), type(record.workerPid), record.generation })
            assert.equal(0, #m:records 'Worker exited')
            assert.equal(0, #m:records 'Worker disconnected unexpectedly while starting', case[1])
        end
        -- The second fork comes at once, each later one after a pause that doubles, more or less by a quarter.
        for i, case in ipairs(CASES) do
            masters[i]:await { msg = 'Waiting before the next fork', failures = 3 }
            local pauses = masters[i]:records 'Waiting before the next fork'
            for _, pause in ipairs(pauses) do
                assert.is_true(pause.wait >= 0.07 * 2 ^ (pause.failures - 2), case[1])
            end
            assert.is_true(#masters[i]:records 'Creating new worker' <= #pauses + 2, case[1])
            if case[7] then
                masters[i]:rewrite(unpack(case[7]))
            end
        end
        for i, case in ipairs(CASES) do
            if case[7] then
                masters[i]:await 'Cluster ready'
            end
            masters[i]:finish()
        end
    end)

    it('in a roll aborts it with the reason', function()
        local m = master.start {
            script = [[require('dutch-master').start { worker = 'app.lua', restartAttempts = 1 }]],
            files = { ['app.lua'] = apps.idle },
        }
        m:await 'Cluster ready'
        os.remove(m:path 'app.lua')
        m:signal 'SIGUSR2'
        assert.matches('app%.lua', m:await('Restart aborted, the old workers stay').reason)
        m:wait_until(function() return #m:family() == 3 end, 'the replacements to be gone')
        assert.equal(2, #m:workers())
        assert.equal(0, #m:records 'Worker exited')
        m:finish()
    end)
end)
