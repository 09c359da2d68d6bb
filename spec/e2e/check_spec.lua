-- `dutch-master check`: what a start would say, without any of its effects; and the rest of the command line that needs
-- no master.

local uv = require 'luv'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'

local dir

local function write(name, text)
    local file = assert(io.open(dir .. '/' .. name, 'w'))
    file:write(text)
    file:close()
end

local function run(...)
    return cli.run({ app = dir, dir = dir }, { ... })
end

local function entries()
    local names, scan = {}, uv.fs_scandir(dir)
    local name = uv.fs_scandir_next(scan)
    while name do
        names[#names + 1] = name
        name = uv.fs_scandir_next(scan)
    end
    return names
end

describe('check', function()
    before_each(function()
        dir = master.temp_dir()
    end)
    after_each(master.cleanup)

    it('shows the plan of a good script, and has no effect', function()
        write('master.lua', [[
            local dutch = require 'dutch-master'
            dutch.log.info 'evaluated'
            dutch.restart()
            dutch.start {
                worker = { 'touch', 'started' }, numWorkers = function() return 3 end, listen = '127.0.0.1:1',
                workerEnvironment = { SECRET = 'hush' }, pidFile = '/nowhere/pid', stopTimeout = 1.5,
            }
        ]])
        local c = run 'check'
        assert.equal(0, c.code, c.err)
        assert.matches('^master.lua is valid', c.out)
        assert.matches('\n  numWorkers +3 %(function%)\n', c.out)
        assert.matches('\n  stopTimeout +1.5 s\n', c.out)
        assert.matches('\n  listen +{ 127.0.0.1:1 }\n', c.out)
        assert.matches('\n  killTimeout +5 s  %(default%)\n', c.out)
        assert.matches('\n  kernel migration +%a+: ', c.out)
        assert.matches('SECRET', c.out)
        assert.falsy(c.out:find 'hush')
        local plan = cjson.decode(run('check', '--json').out).plan
        assert.same({ 3, 1500, { 'SECRET' } }, { plan.num_workers, plan.stop_timeout_ms, plan.environment })
        assert.same({ '', 0 }, { run('check', '--quiet').out, run('-t', 'master.lua').code })
        for _, name in ipairs(entries()) do
            assert.is_true(name == 'master.lua' or name == 'run', name)
        end
    end)

    it('tells every error at once, with its line', function()
        write('master.lua', [[
require('dutch-master').start {
    numWorker = 1,
    worker = 'app.js',
    readyTimeout = 'long',
    restartSignal = 'SIGKILL',
}]])
        local c = run 'check'
        assert.equal(78, c.code)
        assert.equal('', c.out)
        local lines = {}
        for line in c.err:gmatch '[^\n]+' do
            lines[#lines + 1] = line
        end
        assert.equal(3, #lines, c.err)
        assert.matches('^master.lua:2: numWorker: unknown option %(did you mean "numWorkers"%?%)', lines[1])
        assert.matches('^master.lua:4: readyTimeout: expected .* found "long"', lines[2])
        assert.matches('^master.lua:5: restartSignal: ', lines[3])
        local json = cjson.decode(run('check', '--json').out)
        assert.same({ false, lines }, { json.ok, json.errors })
    end)

    it('is 78 for scripts of every bad kind, within a second', function()
        local scripts = {
            { 'x = = 1', 'master.lua:1: ' },
            { 'error "boom"', 'master.lua:1: boom' },
            { 'local x', 'never calls start' },
            { 'require("dutch-master").start(1)', 'expected a table' },
            { 'os.exit(0)', 'exit' },
            { string.dump(function() end), 'compiled Lua' },
            { 'require("dutch-master").start { worker = "a", numWorkers = function() return 0 end }', 'numWorkers' },
            { 'require("dutch-master").start { worker = "a", numWorkers = function() error "no" end }', ': no' },
            { 'require "missing"', "module 'missing' not found" },
            { 'require("dutch-master").start { worker = "app.js", interpreter = "bun" }',
                'interpreter: bun does not speak the channel' },
            { 'require("dutch-master").start { worker = "app.ts", interpreter = { "deno", "run" } }',
                'with worker = { "deno", ... } and listen' },
        }
        for _, case in ipairs(scripts) do
            write('master.lua', case[1])
            local c = run 'check'
            assert.equal(78, c.code, case[1])
            assert.truthy(c.err:find(case[2], 1, true), case[1] .. ' -> ' .. c.err)
        end
        assert.equal(78, run('check', 'other.lua').code)
        assert.matches('/other.lua: there is no such file', run('check', 'other.lua').err)
        assert.equal(78, run('check', '.').code)
    end)
end)

describe('check, of what is no error and will not work,', function()
    before_each(function()
        dir = master.temp_dir()
    end)
    after_each(master.cleanup)

    local function warned(options, ...)
        write('master.lua', ("local dutch = require 'dutch-master'\ndutch.start { %s }"):format(options))
        local c = run 'check'
        assert.equal(0, c.code, c.err)
        local count = select('#', ...)
        assert.matches(count == 0 and '^master.lua is valid. The plan:\n'
            or ('^master.lua is valid, %d warnings?. The plan:\n'):format(count), c.out)
        local json = cjson.decode(run('check', '--json').out)
        local _, lines = c.err:gsub('\n', '')
        assert.same({ count, count }, { lines, #json.warnings }, options .. '\n' .. c.err)
        for i, text in ipairs { ... } do
            assert.truthy(c.err:find('master.lua: warning: ' .. text, 1, true), text .. '\n' .. c.err)
            assert.truthy(table.concat(json.warnings, '\n'):find(text, 1, true), i)
        end
    end

    it('warns in a line each', function()
        warned("worker = 'nothere.js', beforeFork = function() end", ('worker: %s/nothere.js: no such file (beforeFork, '
            .. 'which was not run, may choose another directory)'):format(dir), 'the hooks were not run: beforeFork')
        warned("worker = { 'no-such-program' }, listen = '127.0.0.1:1'", 'worker: no-such-program: not found in PATH (')
        warned("worker = 'sleep 1000', listen = '127.0.0.1:1'",
            "worker: sleep 1000: no such program; a command with arguments is a list: { 'sleep', '1000' }")
        warned("worker = dutch.gunicorn { app = 'app:app', command = 'true' }, ready = 'notify'",
            'listen: gunicorn binds its address itself')
        warned("worker = { 'true' }, ready = 'notify', killTimeout = 60",
            'killTimeout: 60 s is not less than stopTimeout (30 s)')
        warned("worker = { 'true' }", 'ready: a worker is taken for ready when it has lived for some time')
        warned("worker = { 'true' }, ready = 'notify', cpus = '0-1023'", 'cpus: ')
        warned("worker = { 'true' }, ready = 'notify', workerOutput = '/nowhere/out.log'",
            'workerOutput: /nowhere: no such file or directory; no worker can start')
    end)

    it('refuses what this user may not set, by the name of the option', function()
        write('master.lua', [[
require('dutch-master').start {
    worker = { 'true' }, ready = 'notify',
    limits = { nofile = { soft = 1, hard = 2 ^ 31 } },
}]])
        assert(uv.fs_chmod(dir, tonumber('755', 8)))
        local somebody = uv.getuid() == 0 and { uid = 65534, gid = 65534 } or {}
        somebody.cwd = dir
        local c = cli.run(nil, { 'check' }, somebody)
        assert.equal(78, c.code, c.out .. c.err)
        assert.matches('^master.lua:3: limits.nofile: [%w-]+ may not set it for the workers: operation not permitted: '
            .. 'only root can raise a hard limit', c.err)
    end)
end)

describe('the command line', function()
    before_each(function()
        dir = master.temp_dir()
    end)
    after_each(master.cleanup)

    it('is 2 with usage on stderr for what it does not know', function()
        for _, words in ipairs {
            {}, { 'statsu' }, { 'status', '--jsn' }, { 'scale' }, { 'scale', 'x' }, { 'restart', '--timeout' },
            { 'restart', '--timeout', 'x' }, { '--nonsense' }, { 'completion', 'csh' }, { 'check', 'a.lua', 'b.lua' },
        } do
            local c = run(unpack(words))
            assert.equal(2, c.code, table.concat(words, ' '))
            assert.equal('', c.out)
            assert.matches(words[1] == 'completion' and 'expected bash, zsh, fish or luals' or '\nusage: dutch%-master', c.err)
        end
    end)

    it('is 3 for each verb when nothing runs', function()
        write('master.lua', 'require("dutch-master").start { worker = "app.lua" }')
        for _, words in ipairs {
            { 'status' }, { 'restart' }, { 'restart', '--wait' }, { 'reload' }, { 'plan' }, { 'stop', '--wait' },
            { 'scale', '2' }, { 'events', '--follow' }, { 'why' }, { 'why', '3' },
        } do
            local c = run(unpack(words))
            assert.equal(3, c.code, table.concat(words, ' '))
            assert.matches('not running', c.err)
        end
        assert.is_false(cjson.decode(run('status', '--json').out).running)
    end)

    it('has help, a version and completions', function()
        assert.matches('^dutch%-master %d+%.%d+%.%d+ %([^\n]+%)\n$', run('--version').out)
        assert.matches('\n  restart ', run('--help').out)
        assert.matches('^dutch%-master restart ', run('restart', '--help').out)
        assert.matches('complete %-F', run('completion', 'bash').out)
    end)

    it('fails when it cannot say what it was asked', function()
        local c = cli.run({ app = dir, dir = dir }, { '-c', ('%s --help > /dev/full'):format(master.binary()) }, {
            program = 'sh',
        })
        assert.equal(1, c.code)
        assert.matches('no space left', c.err)
    end)

    it('takes a reader that goes away for the end', function()
        local c = cli.run({ app = dir, dir = dir }, { '-c', ('%s --help | head -n 1'):format(master.binary()) }, {
            program = 'sh',
        })
        assert.equal(0, c.code)
        assert.equal('', c.err)
    end)
end)
