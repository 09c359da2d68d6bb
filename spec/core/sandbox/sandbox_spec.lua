-- The script's own state: what it can do, what stops it, and that the master does not notice.

local core = require 'dutch-master.core'
local loop = require 'spec.loop'

local open_sandboxes = {}

local function sandbox(given)
    given = given or {}
    given.host = given.host or function() end
    given.memory = given.memory or 32 * 1024 * 1024
    local s = assert(core.sandbox(given))
    open_sandboxes[#open_sandboxes + 1] = s
    return s
end

local BUDGET = 300 -- ms; what is not about time gets LONG
local LONG = 20000

-- Runs the source, returns the error or nil.
local function run(source, given, budget)
    local ok, err = sandbox(given):run('@master.lua', source, budget or LONG)
    assert.is_true(ok == true or ok == nil)
    return err
end

-- What the script says by `say(...)`, through the host.
local function says(source, given)
    local said = {}
    given = given or {}
    given.host = function(name, ...)
        if name == 'log' then
            said[#said + 1] = select(3, ...)
        end
    end
    local err = run(source, given)
    assert.is_nil(err, err and err.message)
    return table.concat(said, '|')
end

local function descriptors()
    collectgarbage()
    collectgarbage()
    local list = assert(io.popen('ls -l /proc/' .. core.pid() .. '/fd'))
    local text = list:read '*a'
    list:close()
    return select(2, text:gsub('\n', '')), text
end

local function rss_kb()
    local file = assert(io.open '/proc/self/status')
    local kb = file:read('*a'):match '\nVmRSS:%s+(%d+)'
    file:close()
    return tonumber(kb)
end

local scratch

local function write(name, text)
    local file = assert(io.open(scratch .. '/' .. name, 'wb'))
    file:write(text)
    file:close()
    return scratch .. '/' .. name
end

describe('the sandbox', function()
    local before, listed

    setup(function()
        scratch = os.tmpname()
        os.remove(scratch)
        assert(os.execute('mkdir ' .. scratch) == 0)
        before, listed = descriptors()
    end)

    after_each(function()
        for i, s in ipairs(open_sandboxes) do
            s:close()
            open_sandboxes[i] = nil
        end
    end)

    teardown(function()
        os.execute('rm -r ' .. scratch)
        local after, text = descriptors()
        for _ = 1, 50 do -- what earlier specs were closing
            if after <= before then
                break
            end
            loop.run_once(20)
            after, text = descriptors()
        end
        assert.is_true(after <= before, 'before:\n' .. listed .. 'after:\n' .. text)
    end)

    describe('stops', function()
        local loops = {
            ['a loop'] = 'while true do end',
            ['a loop in pcall'] = 'while true do pcall(function() while true do end end) end',
            ['nested pcalls'] = [[
                local function deep(n) pcall(n == 0 and function() while true do end end or deep, n - 1)
                    while true do pcall(error) end end
                while true do pcall(deep, 20) end]],
            ['a loop in a coroutine'] = [[while true do
                local co = coroutine.create(function() while true do pcall(function() while true do end end) end end)
                coroutine.resume(co) end]],
            ['coroutines that take turns'] = [[
                local c = coroutine.wrap(function() while true do pcall(coroutine.yield) end end)
                while true do pcall(c) end]],
            ['a metamethod'] = [[
                local t = setmetatable({}, { __index = function() while true do end end })
                while true do pcall(function() return t.x end) end]],
            ['a handler of xpcall after the budget'] = [[
                while true do xpcall(function() while true do end end, function() while true do end end) end]],
            ['a handler of xpcall after an error'] = [[xpcall(error, function() while true do end end)]],
            ['handlers within handlers'] = [[
                local function h() xpcall(error, h) while true do xpcall(error, h) end end
                while true do xpcall(error, h) end]],
            ['an error that makes its own text'] = [[
                error(setmetatable({}, { __tostring = function() while true do end end }))]],
            ['a comparison function'] = [[table.sort({ 1, 2, 3, 4 }, function() while true do end end)]],
            ['a replacement function'] = [[string.gsub('xx', 'x', function() while true do end end)]],
            ['a command'] = [[os.execute 'sleep 60']],
            ['commands in pcall'] = [[while true do pcall(os.execute, 'sleep 60') end]],
            ['a command that is read'] = [[io.popen('sleep 60'):read '*a']],
            ['slow calls of C'] = [[while true do local s = ('x'):rep(1e7) end]],
            ['slow calls of C in pcall'] = [[while true do pcall(string.rep, 'x', 1e7) end]],
            ['sorting again and again'] = [[
                local t = {} for i = 1, 1e5 do t[i] = i * 7919 % 1e5 end while true do table.sort(t) end]],
            ['opening a fifo'] = [[io.open(fifo)]],
            ['opening a fifo in pcall'] = [[while true do pcall(io.open, fifo) end]],
            ['opening a fifo to write'] = [[io.open(fifo, 'w')]],
            ['reading a fifo'] = [[io.open(fifo, 'r+'):read()]],
            ['the lines of a fifo'] = [[for _ in io.lines(fifo) do end]],
            ['running a fifo'] = [[dofile(fifo)]],
            ['a command that ignores signals'] = [[os.execute 'trap "" TERM INT HUP; sleep 60; sleep 60']],
        }
        local fifo
        setup(function()
            fifo = scratch .. '/fifo'
            assert(os.execute('mkfifo ' .. fifo) == 0)
        end)

        for name, source in pairs(loops) do
            it(name, function()
                local started = core.now()
                local err = run(('local fifo = %q\n'):format(fifo) .. source, nil, BUDGET)
                assert.truthy(err, 'it came to an end')
                assert.equal('budget', err.kind)
                assert.truthy(err.where:match '^master.lua:%d+$', err.where)
                assert.truthy(err.message:find('took longer than its budget of 0.3 s', 1, true))
                assert.is_true(core.now() - started < BUDGET + 3000)
            end)
        end

        it('a script whose host runs another one meanwhile', function()
            local inner = {}
            local err = run('host = require "dutch-master".restart while true do pcall(host) end', {
                host = function()
                    if #inner < 3 then
                        inner[#inner + 1] = run('while true do end', nil, 50).kind
                    end
                end,
            }, BUDGET)
            assert.same({ 'budget', 'budget', 'budget' }, inner)
            assert.equal('budget', err.kind)
        end)

        it('nothing by a signal of somebody else', function()
            assert.equal('ended', says(([[os.execute 'kill -VTALRM %d' print 'ended']]):format(core.pid())))
            assert.equal(0, os.execute(('kill -VTALRM %d'):format(core.pid())))
            assert.equal('ended', says [[print 'ended']])
        end)

        it('a hook, and the next one works', function()
            local s = sandbox()
            assert(s:run('@m', [[require('dutch-master').start {
                onReady = function() while true do pcall(error) end end, onRestart = function() return 7 end }]],
                    LONG))
            local ok, err = s:call('hook', BUDGET, 'onReady')
            assert.is_nil(ok)
            assert.equal('budget', err.kind)
            assert.same({ true, 7 }, { s:call('hook', LONG, 'onRestart') })
        end)

        it('what a killed command started, too', function()
            local pid_file = scratch .. '/pid'
            run(("os.execute 'sleep 61 & echo $! > %s; wait'"):format(pid_file), nil, 5 * BUDGET)
            local file = assert(io.open(pid_file))
            local pid = file:read '*n'
            file:close()
            local limit = core.now() + 5000
            local state
            repeat
                local stat = io.open('/proc/' .. pid .. '/stat')
                state = stat and stat:read('*a'):match '%) (%a)'
                if stat then
                    stat:close()
                end
            until not state or state == 'Z' or core.now() > limit
            assert.is_true(state == nil or state == 'Z')
        end)
    end)

    describe('bounds memory', function()
        it('of a state that only grows', function()
            local err = run [[local t = {} for i = 1, 1e9 do t[i] = ('x'):rep(1e5) .. i end]]
            assert.equal('memory', err.kind)
            assert.equal('used more than its 32 MiB of memory', err.message)
        end)

        it('also when the script catches it', function()
            local err = run [[local t = {} while true do pcall(function() while true do t[#t + 1] = {} end end) end]]
            assert.equal('memory', err.kind)
        end)

        it('of one giant string, which a script may survive', function()
            assert.equal('false', says [[print((pcall(string.rep, 'x', 1e9)))]])
        end)

        it('and the state is closed afterwards', function()
            local s = sandbox()
            s:run('@m', [[local t = {} for i = 1, 1e9 do t[i] = {} end]], LONG)
            assert.equal(0, s:memory())
            local ok, err = s:call('options', LONG)
            assert.is_nil(ok)
            assert.equal('closed', err.kind)
        end)

        it('of endless recursion', function()
            local err = run [[local function f() return 1 + f() end f()]]
            assert.equal('runtime', err.kind)
            assert.truthy(err.message:find('stack overflow', 1, true))
        end)

        it('of what a command writes', function()
            assert.equal('nil\tmore output than 16 MiB', says [[print(io.popen 'yes')]])
        end)
    end)

    describe('reports', function()
        it('a syntax error with its line', function()
            local err = run '\n\nx = = 1'
            assert.equal('syntax', err.kind)
            assert.equal("master.lua:3: unexpected symbol near '='", err.message)
        end)

        it('a runtime error with its line and a traceback', function()
            local err = run '\nlocal function inner() error "boom" end\ninner()'
            assert.equal('runtime', err.kind)
            assert.equal('master.lua:2: boom', err.message)
            assert.truthy(err.traceback:find("in function 'inner'", 1, true) or err.traceback:find('inner', 1, true))
        end)

        it('what is thrown without text', function()
            assert.equal('master.lua:1: an error that is a nil value', run('error()').message)
            assert.equal('master.lua:1: an error that is a table value', run('error {}').message)
            assert.equal('master.lua:1: an error that is a function value', run('error(print)').message)
            assert.equal('master.lua:1: 7', run('error(7)').message)
            assert.equal('master.lua:1: mine',
                run('error(setmetatable({}, { __tostring = function() return "mine" end }))').message)
            assert.equal('runtime', run('error(setmetatable({}, { __tostring = function() error {} end }))').kind)
        end)

        it('text of any kind as one printable line', function()
            assert.equal('master.lua:1: a?b', run("error('a\\0b\\nsecond line')").message)
            assert.is_true(#run("error(('x'):rep(1e6))").message < 1100)
        end)

        it('bytecode by name', function()
            for _, source in ipairs { string.dump(function() end), '\27Lua',
                '#!/bin/x\n' .. string.dump(function() end) } do
                local err = run(source)
                assert.equal('bytecode', err.kind)
                assert.equal('master.lua: is compiled Lua; a script must be text', err.message)
            end
        end)

        it('os.exit, which does not end the master', function()
            local err = run '\nos.exit(0)'
            assert.equal('exit', err.kind)
            assert.truthy(err.message:find('master.lua:2: os.exit was called', 1, true))
        end)
    end)

    it('runs a script with a #! line and counts its lines right', function()
        assert.equal('master.lua:2: x', run('#!/usr/bin/env dutch-master\nerror "x"').message)
    end)

    it('loads text only, by whatever function', function()
        local path = write('code.luac', string.dump(function() end))
        write('compiled.lua', string.dump(function() end))
        local text = says(([[
            print(load(string.dump(print_me or function() end)))
            print(load('\27LJ', 'x', 'b'))
            print(loadstring('\27LJ'))
            local sent = false
            print(load(function() if not sent then sent = true return '\27LJ' end end))
            print(loadfile '%s')
            print(pcall(dofile, '%s'))
            print(pcall(require, 'compiled'))
        ]]):format(path, path), { directory = scratch })
        local _, refused = text:gsub('is compiled Lua; it must be text', '')
        assert.equal(7, refused, text)
    end)

    it('still loads text', function()
        write('answer.lua', 'return 42')
        write('env.lua', 'return value')
        assert.equal('1|2|42|9', says(([[
            print(load('return 1')()) print(loadstring('return 2')())
            print(dofile '%s/answer.lua') print(loadfile('%s/env.lua', 't', { value = 9 })())]]):format(scratch,
                scratch)))
    end)

    it('leaves out what could corrupt the master', function()
        assert.equal('nil|nil|nil|nil|nil|false|false', says [[
            print(debug.sethook) print(debug.getregistry) print(debug.setmetatable)
            print(newproxy) print(package.loadlib)
            print((pcall(require, 'ffi'))) print(getmetatable(io.tmpfile()))]])
    end)

    it('finds modules beside the script, and none in the working directory', function()
        write('beside.lua', 'return "beside"')
        os.execute('mkdir -p ' .. scratch .. '/packed')
        write('packed/init.lua', 'return "packed"')
        assert.equal('beside|packed', says([[print(require 'beside') print(require 'packed')]],
            { directory = scratch }))
        assert.equal('', says [[
            for entry in (package.path .. ';' .. package.cpath):gmatch '[^;]+' do
                if entry:sub(1, 1) ~= '/' then print(entry) end
            end]])
        local err = run([[require 'spec.support.wait']])
        assert.truthy(err.message:find("module 'spec.support.wait' not found", 1, true))
    end)

    it('sees edits of a module in the next state', function()
        write('changing.lua', 'return 1')
        assert.equal('1', says([[print(require 'changing')]], { directory = scratch }))
        write('changing.lua', 'return 2')
        assert.equal('2', says([[print(require 'changing')]], { directory = scratch }))
    end)

    it('gives commands their result', function()
        assert.equal('768\t9\t1', says [[print(os.execute 'exit 3', os.execute 'kill -9 $$', os.execute())]])
        assert.equal('a\nb\n|588895', says [[
            print(io.popen('echo a; echo b'):read '*a' .. '')
            print(#io.popen('seq 100000'):read '*a')]]:gsub('a\nb|', 'a\nb\n|'))
        assert.equal('x|y', says [[for line in io.popen('echo x; echo y'):lines() do print(line) end]])
        assert.equal('file', says [[print(io.type(io.popen 'true'))]])
        assert.equal('0', says [[print(io.popen('wc -c < /dev/stdin', 'r'):read '*l')]])
        local err = run [[io.popen('cat', 'w')]]
        assert.truthy(err.message:find('master.lua:1: io.popen: a script can only read', 1, true))
    end)

    it('reads nothing from the master and writes nothing to its stdout', function()
        assert.equal('nil|a b|c|1\tnil\tx', says [[
            print(io.read()) io.write('a ', 'b\n') io.stdout:write('c') print(1, nil, 'x')]])
        assert.truthy(run('io.lines()').message:find('no standard input', 1, true))
    end)

    it('starts commands and opens files where dutch.chdir said', function()
        write('here.txt', 'found')
        local s = sandbox { host = function(_, _, _, text)
            assert.is_true(text == scratch or text == 'found')
        end }
        assert.is_nil(s:directory())
        local ok, err = s:run('@m', ([[
            local dutch = require 'dutch-master'
            dutch.chdir '%s'
            print(io.popen('pwd'):read '*l')
            print(io.open('here.txt'):read '*a')
            dutch.chdir 'sub'
            dutch.chdir '../x' ]]):format(scratch), LONG)
        assert.is_true(ok, err and err.message)
        assert.equal(scratch .. '/sub/../x', s:directory())
        for _, bad in ipairs { '7', '""', '{}', 'nil', [['a\0b']] } do
            assert.truthy(run(("require('dutch-master').chdir(%s)"):format(bad)).message
                :find('master.lua:1: dutch.chdir: expected a path', 1, true))
        end
    end)

    describe('copies values', function()
        local function echo(...)
            local s = sandbox()
            assert(s:run('@m', [[require('dutch-master').start { onReady = function(...) return ... end }]], LONG))
            return s:call('hook', LONG, 'onReady', ...)
        end

        it('of every plain type', function()
            local given = { 1, -1.5, 1 / 0, 'text', 'a\0b', '', true, false, { 1, { x = { [true] = 'y',
                [1.5] = 2 } } } }
            local ok, back = echo(given)
            assert.is_true(ok)
            assert.same(given, back)
            assert.not_equal(given, back)
            assert.same({ n = 4, true, nil, 1, nil }, { n = select('#', echo(nil, 1, nil)), echo(nil, 1, nil) })
            local _, nan = echo(0 / 0)
            assert.is_true(nan ~= nan)
            assert.equal(1e5, #select(2, echo(('x'):rep(1e5))))
        end)

        it('and refuses others, naming the place', function()
            local cases = {
                { { a = { b = { print } } }, 'value.a.b[1]: a function cannot be passed' },
                { { [print] = 1 }, 'value[?]: a function cannot be a key of what is passed' },
                { io.stdout, 'value: a userdata cannot be passed' },
                { coroutine.create(print), 'value: a thread cannot be passed' },
            }
            local cycle = { down = {} }
            cycle.down.up = cycle
            cases[#cases + 1] = { cycle, 'value.down.up: a table that contains itself cannot be passed' }
            for _, case in ipairs(cases) do
                local ok, err = echo(case[1])
                assert.is_nil(ok)
                assert.equal(case[2], err.message)
            end
        end)

        it('32 levels deep and no deeper', function()
            local function nest(depth)
                return depth == 0 and {} or { x = nest(depth - 1) }
            end
            assert.is_true((echo(nest(31))))
            local ok, err = echo(nest(32))
            assert.is_nil(ok)
            assert.truthy(err.message:find('nested deeper than 32', 1, true))
        end)

        it('and not without end when one table is reached by many ways', function()
            local t = {}
            for _ = 1, 30 do
                t = { t, t }
            end
            local ok, err = echo(t)
            assert.is_nil(ok)
            assert.equal('more than 8 MiB cannot be passed', err.message)
        end)

        it('of the script by the same rules', function()
            local s = sandbox()
            assert(s:run('@m', [[require('dutch-master').start {
                onReady = function() return { a = print } end,
                    onRestart = function() local t = {} t[1] = t return t end,
            }]], LONG))
            local _, err = s:call('hook', LONG, 'onReady')
            assert.equal('value.a: a function cannot be passed', err.message)
            _, err = s:call('hook', LONG, 'onRestart')
            assert.equal('value[1]: a table that contains itself cannot be passed', err.message)
        end)

        it('but tells that an option is a function', function()
            local s = sandbox()
            assert(s:run('@m', [[require('dutch-master').start { a = print, b = { io.stderr } }]], LONG))
            local ok, options, file, line = s:call('options', LONG)
            assert.is_true(ok)
            assert.equal('function', type(options.a))
            assert.equal('userdata', type(options.b[1]))
            assert.has_error(options.a)
            assert.same({ 'm', 1 }, { file, line })
        end)
    end)

    describe('asks the host', function()
        it('and gets its answer', function()
            local asked
            local s = sandbox { host = function(...)
                asked = { ... }
                return 4, { 'x' }
            end }
            local said
            assert(s:run('@m', [[cpus = require('dutch-master').cpus()
                require('dutch-master').start { onReady = function() return cpus end }]], LONG))
            said = { s:call('hook', LONG, 'onReady') }
            assert.same({ 'cpus' }, asked)
            assert.same({ true, 4 }, said)
        end)

        it('and gets its error, at its own line', function()
            local err = run('\nrequire("dutch-master").restart()', { host = function()
                error('not now', 0)
            end })
            assert.equal('master.lua:2: not now', err.message)
            err = run('require("dutch-master").cpus()', { host = function()
                return print
            end })
            assert.truthy(err.message:find('a function cannot be passed', 1, true))
        end)

        it('which cannot enter the script again, and may close it', function()
            local s, inner
            s = sandbox { host = function()
                inner = { s:call('options', LONG) }
                s:close()
                return 1
            end }
            local ok, err = s:run('@m', [[require('dutch-master').cpus()]], LONG)
            assert.is_true(ok, err and err.message)
            assert.is_nil(inner[1])
            assert.equal('busy', inner[2].kind)
            ok, err = s:run('@m', 'x = 1', LONG)
            assert.is_nil(ok)
            assert.equal('closed', err.kind)
        end)
    end)

    it('can be closed twice, and used afterwards without harm', function()
        local s = sandbox()
        s:close()
        s:close()
        assert.equal(0, s:memory())
        assert.is_nil(s:directory())
        assert.equal('closed', select(2, s:run('@m', '', LONG)).kind)
        assert.equal('closed', select(2, s:call('options', LONG)).kind)
        assert.has_error(function()
            core.sandbox()
        end)
        assert.has_error(function()
            core.sandbox {}
        end)
    end)

    it('says so when there is not even memory to begin', function()
        for _, memory in ipairs { 1, 1000, 20000, 60000 } do
            local s, message, code = core.sandbox { memory = memory, host = print }
            assert.is_nil(s)
            assert.is_string(message)
            assert.equal('ENOMEM', code)
        end
    end)

    it('works or fails cleanly at each possible limit of memory', function()
        for memory = 60000, 200000, 501 do
            local s = core.sandbox { memory = memory, host = function()
                return 4
            end }
            if s then
                local ok, err = s:run('@m',
                    [[require('dutch-master').start { a = { require('dutch-master').cpus() } }]], LONG)
                if ok then
                    s:call('options', LONG)
                else
                    assert.equal('memory', err.kind, err.message)
                end
                s:close()
            end
        end
    end)

    it('keeps nothing of 10,000 states', function()
        local function one()
            local s = assert(core.sandbox { host = print })
            assert(s:run('@m', [[require('dutch-master').start { worker = 'x', onReady = print }]], LONG))
            assert(s:call('options', LONG))
            s:close()
        end
        for _ = 1, 1000 do
            one()
        end
        collectgarbage()
        collectgarbage()
        local start = rss_kb()
        for _ = 1, 10000 do
            one()
        end
        collectgarbage()
        collectgarbage()
        local grown = rss_kb() - start
        -- AddressSanitizer keeps for a while what is freed; leaks it finds itself.
        assert.is_true(grown < 1024 or os.getenv 'DM_SANITIZE' ~= nil, ('grew by %d KiB'):format(grown))
    end)

    it('is given back by the collector when it was forgotten', function()
        for _ = 1, 50 do
            assert(core.sandbox { host = print })
        end
        collectgarbage()
        collectgarbage()
    end)
end)
