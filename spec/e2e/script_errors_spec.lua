-- A script that is no good: at the start one clear line and nothing done, later a record and nothing changed.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local master = require 'spec.support.master'

-- Compiled Lua, as a deploy may bring it by mistake.
local BYTECODE = string.dump(assert(loadstring 'return 1'))

-- what, source, pattern of the line after "dutch-master: "
local BAD = {
    { 'syntax error', 'local x = = 2', "^master%.lua:1: unexpected symbol near '='$" },
    { 'runtime error', '\n\nerror "no luck"', '^master%.lua:3: no luck$' },
    { 'error that is no text', '\nerror {}', '^master%.lua:?2?:? .*table' },
    { 'nil called', '\n\n\nlocal x = nil\nx()', '^master%.lua:5: attempt to call' },
    { 'missing module', '\nrequire "not.there"', "^master%.lua:2: module 'not%.there' not found$" },
    { 'module with an error', '\nrequire "helper"', '^.*helper%.lua:2: .*broken helper' },
    { 'bytecode', BYTECODE, '^master%.lua: is compiled Lua' },
    { 'empty', '', '^master%.lua:1: the script never calls start' },
    { 'never calls start', 'local dutch = require "dutch-master"', '^master%.lua:1: the script never calls start' },
    { 'calls start twice', 'local d = require "dutch-master"\nd.start { worker = "app.lua" }\nd.start { worker = "app.lua" }',
        '^master%.lua:3: .*start was called twice: master%.lua:2 and master%.lua:3$' },
    { 'start without options', 'require("dutch-master").start()', '^master%.lua:1: .*expected a table' },
    { 'no worker', 'require("dutch-master").start {\n}', '^master%.lua:1: worker: ' },
    { 'misspelt option', 'require("dutch-master").start {\n  worker = "app.lua",\n  numWorker = 3,\n}',
        '^master%.lua:3: numWorker: unknown option.*did you mean "numWorkers"' },
    { 'wrong type', 'require("dutch-master").start {\n  worker = "app.lua",\n  restartSignal = 12,\n}',
        '^master%.lua:3: restartSignal: expected .* found .*12' },
    { 'wrong value inside', 'require("dutch-master").start {\n  worker = "app.lua",\n  backoff = { frist = 1 },\n}',
        '^master%.lua:3: backoff%.frist: .*did you mean "first"' },
    { 'no address', 'require("dutch-master").start {\n  worker = { "true" },\n  listen = "localhost",\n}',
        '^master%.lua:3: listen: expected an address' },
    { 'ends the process', 'os.exit(0)', '^master%.lua:1: .*os%.exit was called' },
}

-- Root may read everything, so that the master is somebody else's then.
local ROOT = uv.getuid() == 0
local AS_SOMEBODY = ROOT and { 'setpriv', '--reuid=65534', '--regid=65534', '--clear-groups' } or nil
local UNREADABLE = ROOT and '600' or '000'

-- The lines of stderr that the master wrote.
local function complaints(m)
    local lines = {}
    for line in m.stderr:gmatch '[^\n]+' do
        lines[#lines + 1] = line
    end
    return lines
end

local function check_refusal(m, pattern)
    local text = m:dump()
    assert.same({ code = 78 }, m.ended, text)
    local lines = complaints(m)
    assert.equal(1, #lines, text)
    assert.matches('^dutch%-master: ', lines[1])
    assert.matches(pattern, (lines[1]:gsub('^dutch%-master: ', '')))
    assert.same({}, m.log, text)
    m:finish { code = 78 }
end

describe('a bad script', function()
    after_each(master.cleanup)

    it('ends the start with one line that names the place, exit 78, and nothing left', function()
        local masters = {}
        for i, case in ipairs(BAD) do
            masters[i] = master.start { script = case[2], files = {
                ['app.lua'] = apps.idle, ['helper.lua'] = '\nerror "broken helper"' } }
        end
        for i, case in ipairs(BAD) do
            masters[i]:exit { timeout = 5000 }
            master.wait_until(function() return masters[i].err_ended and masters[i].out_ended end)
            local ok, message = pcall(check_refusal, masters[i], case[3])
            assert.is_true(ok, ok or case[1] .. ': ' .. tostring(message))
        end
    end)

    it('that cannot be read is told so', function()
        local m = master.start { script_path = 'nowhere.lua' }
        m:exit()
        master.wait_until(function() return m.err_ended end)
        check_refusal(m, '^.*nowhere%.lua: no such file')

        m = master.start { script_path = '.' }
        m:exit()
        master.wait_until(function() return m.err_ended end)
        check_refusal(m, 'is a directory')

        m = master.start { script = { text = 'error "never read"', mode = UNREADABLE }, wrap = AS_SOMEBODY }
        m:exit()
        master.wait_until(function() return m.err_ended end)
        check_refusal(m, '^.*master%.lua: may not be read by this user$')
    end)

    it('that may not be read any more is a record, and the last good one serves on', function()
        local good = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 1, restartSoak = 0,
            backoff = { first = 0.02, max = 0.02 } }]]
        local dir = master.temp_dir()
        assert(uv.fs_chmod(dir, tonumber('777', 8)))
        local m = master.start { script = good, files = { ['app.lua'] = apps.idle }, wrap = AS_SOMEBODY,
            env = { DUTCH_MASTER_RUNTIME_DIR = dir .. '/run' } }
        m:await 'Cluster ready'
        m:rewrite('master.lua', { text = good, mode = UNREADABLE })
        m:signal 'SIGUSR2'
        local aborted = m:await 'Restart aborted, the old workers stay'
        assert.matches('^/.*master%.lua: may not be read by this user$', aborted.reason)
        uv.kill(m:workers()[1], 'sigkill')
        m:await(function(record)
            return record.level == 50 and record.msg:find '^Script is bad, .*master%.lua: may not be read by this user$'
        end)
        m:await('Worker listening', { count = 2 })
        m:rewrite('master.lua', good)
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        m:signal 'SIGTERM'
        m:exit()
        assert.is_nil(uv.fs_scandir_next(uv.fs_scandir(dir .. '/run')))
        m:finish()
    end)

    it('is refused before anything is bound', function()
        -- Binding first would say EADDRINUSE and exit with 71.
        local port = http.free_port()
        local taken = uv.new_tcp()
        assert(taken:bind('127.0.0.1', port))
        assert(taken:listen(1, function() end))
        local m = master.start { script = ([[require('dutch-master').start { worker = { 'true' },
            listen = '127.0.0.1:%d', numWorkers = 0 }]]):format(port) }
        m:exit()
        taken:close()
        uv.run 'nowait'
        m:finish { code = 78 }
    end)

    it('after the boot is a record, and the last good one serves on', function()
        local good = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 2, restartSoak = 0,
            backoff = { first = 0.02, max = 0.02 } }]]
        local m = master.start { script = good, files = {
            ['app.lua'] = apps.idle, ['helper.lua'] = '\nerror "broken helper"' } }
        m:await 'Cluster ready'
        local cases = { { 'removed', nil, 'there is no such file' } }
        for i, case in ipairs(BAD) do cases[i + 1] = case end
        for _, case in ipairs(cases) do
            local mark = m:mark()
            if case[2] then
                m:rewrite('master.lua', case[2])
            else
                assert(uv.fs_unlink(m.script))
            end
            local pattern = case[3]:gsub('^%^', '')
            m:signal 'SIGUSR2'
            local aborted = m:await('Restart aborted, the old workers stay', { after = mark })
            assert.matches(pattern, aborted.reason, case[1])
            assert.equal(0, #m:records('Creating new worker', mark), case[1])
            -- A crash is replaced all the same.
            uv.kill(m:workers()[1], 'sigkill')
            local bad = m:await(function(record)
                return record.msg:find('Script is bad, the last good one stays in force: ', 1, true) == 1
            end, { after = aborted })
            assert.matches(pattern, (bad.msg:gsub('^Script is bad, the last good one stays in force: ', '')), case[1])
            assert.equal(50, bad.level)
            m:await('Worker listening', { after = mark })
            assert.equal(2, #m:workers())
        end
        local mark = m:mark()
        m:rewrite('master.lua', (good:gsub('numWorkers = 2', 'numWorkers = 3')))
        m:signal 'SIGUSR2'
        m:await('Restart complete', { after = mark })
        m:wait_until(function() return #m:workers() == 3 end, 'three workers')
        m:finish()
    end)

    it('refers to nothing that the directory it was started from holds', function()
        -- package.path has no relative entries: a module beside the shell's directory is not the script's.
        local dir = master.temp_dir()
        local file = assert(io.open(dir .. '/elsewhere.lua', 'w'))
        file:write 'error "must not be loaded"'
        file:close()
        local m = master.start { script = 'require "elsewhere"', cwd = dir, env = { LUA_PATH = './?.lua;;' } }
        m:exit()
        master.wait_until(function() return m.err_ended end)
        assert.matches("module 'elsewhere' not found", m.stderr)
        m:finish { code = 78 }
    end)
end)
