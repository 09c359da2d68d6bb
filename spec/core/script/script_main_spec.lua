-- Scripts as users write them, from a file, in real processes.

local core = require 'dutch-master.core'
local p = require 'spec.support.process'
local support = require 'spec.support.script'

local here = support.scratch()
local write, subject, evaluate = here.write, here.subject, here.evaluate

-- The message of a script that is refused.
local function refused(text, kind, more)
    local session, err = evaluate(text, more)
    assert.is_nil(session)
    assert.equal(kind, err.kind, err.message)
    assert.is_nil(err.message:find('\n', 1, true))
    return err.message
end

describe('a script', function()
    before_each(here.open)
    after_each(here.close)

    it('of the README', function()
        local session = assert(evaluate('#!/usr/bin/env dutch-master\n' .. support.README))
        assert.equal('node', session.plan.kind)
        assert.equal('my-app', session.plan.logger.name)
        assert.equal(math.max(core.cpus(), 2), session:num_workers())
        assert.is_nil(session.session.cwd)
        assert.same({ true }, { session:call('beforeFork', { id = 1 }) })
        assert.equal('/deploys/app/current', session.session.cwd)
        assert.same({ NODE_ENV = 'production' }, session.plan.environment)
        session:close()
    end)

    it('that is refused: one clear line with file and line', function()
        local missing, err = subject().evaluate()
        assert.is_nil(missing)
        assert.equal('missing', err.kind)
        os.execute('mkdir ' .. here.dir .. '/master.lua')
        assert.equal('unreadable', select(2, subject().evaluate()).kind)
        os.execute('rmdir ' .. here.dir .. '/master.lua')

        assert.equal("master.lua:2: unexpected symbol near '='", refused('\nx = = 1', 'syntax'))
        assert.equal('master.lua:2: boom', refused('\nerror "boom"', 'runtime'))
        assert.equal('master.lua: is compiled Lua; a script must be text', refused(string.dump(function() end),
            'bytecode'))
        assert.equal('master.lua:1: the script never calls start { ... }', refused('x = 1', 'start'))
        assert.equal('master.lua:1: the script never calls start { ... }', refused('', 'start'))
        assert.equal('master.lua:4: start was called twice: master.lua:2 and master.lua:4', refused([[
local dutch = require 'dutch-master'
dutch.start { worker = 'a' }

dutch.start { worker = 'b' }]], 'runtime'))
        assert.truthy(refused('\nos.exit(3)', 'exit'):find('master.lua:2: os.exit was called', 1, true))
        assert.equal('master.lua:2: the script took longer than its budget of 0.2 s',
            refused('\nwhile true do pcall(function() while true do end end) end', 'budget', { budget_ms = 200 }))
        assert.equal('master.lua:1: start: expected a table of options, found nothing',
            refused('require("dutch-master").start()', 'options'))
        write('broken.lua', '\n\nx = = 1')
        assert.truthy(refused("require 'broken'", 'runtime'):find("error loading module 'broken'", 1, true))
    end)

    it('with wrong options: each on its line, with what was meant', function()
        local session, err = evaluate [[
local dutch = require 'dutch-master'
dutch.start {
  worker = 'app.js',
  numWrokers = 4,
  stopTimeout = '30',
  backoff = {
    first = io.stderr,
  },
}]]
        assert.is_nil(session)
        assert.same({
            'master.lua:4: numWrokers: unknown option (did you mean "numWorkers"?)',
            'master.lua:5: stopTimeout: expected a number of seconds, found "30"',
            'master.lua:7: backoff.first: expected a number of seconds, at least 0.001, found userdata',
        }, err.messages)
    end)

    it('names the number of workers it got wrong', function()
        for value, shown in pairs { ['0'] = '0', ['-1'] = '-1', ['0/0'] = 'NaN', ['1/0'] = 'infinity',
            ['1.5'] = '1.5',
            ['"4"'] = '"4"', ['nil'] = 'nothing', ['{}'] = 'an empty table', ['1e6'] = '1000000' } do
            local session = assert(evaluate(([[
local dutch = require 'dutch-master'
dutch.start { worker = 'x',
  numWorkers = function() return %s end }]]):format(value)))
            local count, err = session:num_workers()
            assert.is_nil(count)
            assert.equal('master.lua:3: numWorkers: expected an integer from 1 to 4096, found ' .. shown, err.message)
            session:close()
        end
        local session = assert(evaluate [[
require('dutch-master').start { worker = 'x', numWorkers = function()
  error 'no idea'
end }]])
        assert.equal('master.lua:2: numWorkers: no idea', select(2, session:num_workers()).message)
        session:close()
    end)

    it('has all of Lua, ffi, luv and cjson', function()
        local session = assert(evaluate [[
local ffi, uv, json = require 'ffi', require 'luv', require 'cjson'
ffi.cdef 'int getpid(void);'
local timer, fired = uv.new_timer(), 0
timer:start(1, 0, function() fired = 1 timer:close() end)
uv.run()
assert(debug.sethook and newproxy and package.loadlib and jit.version and os.setlocale() and io.stdin)
require('dutch-master').start { worker = 'x', numWorkers = function()
  local pipe = io.popen('cat > /dev/null', 'w')
  pipe:write 'x'
  pipe:close()
  return ffi.C.getpid() > 1 and fired + json.decode '[1]'[1]
end }]])
        assert.equal(2, (session:num_workers()))
        session:close()
    end)

    it('whose hook forks: its twin is of no account', function()
        local session = assert(evaluate [[
local ffi = require 'ffi'
ffi.cdef 'int fork(void);'
require('dutch-master').start { worker = 'x', beforeFork = function() return ffi.C.fork() ~= -1 end }]])
        for _ = 1, 3 do
            assert.same({ true, true }, { session:call('beforeFork', { id = 1 }) })
        end
        session:close()
    end)

    it('and what it requires are read again at each evaluation', function()
        write('settings.lua', 'return { n = 3 }')
        write('master.lua', [[require('dutch-master').start { worker = 'a.js', numWorkers = require('settings').n }]])
        local first = assert(subject().evaluate())
        assert.equal(3, first:num_workers())
        first:keep()
        first:close()
        write('settings.lua', 'return { n = 4 }')
        local second = assert(here.world.evaluate())
        assert.equal(4, second:num_workers())
        second:close()
    end)

    it('talks to the master', function()
        local session = assert(evaluate [[
local dutch = require 'dutch-master'
local count = (dutch.store.count or 0) + 1
dutch.store.count = count
dutch.start {
  worker = 'x',
  onMessage = function(worker, message)
    worker:send { got = message.text }
    dutch.restart 'asked'
    dutch.scale(3)
    dutch.stop()
    dutch.log:info({ a = 1 }, 'hello')
    dutch.log.warn 'plain'
    dutch.logger({ fields = { b = 2 } }):child({ c = 3 }):error('deep')
    print('n', 1)
  end,
  every = { { 1, function() return dutch.hostname(), dutch.environ 'PATH', dutch.store() end }, { 2, print } },
}]])
        assert.same({ true }, { session:call('onMessage', { id = 7 }, '{"text":"hi"}') })
        assert.same({
            { 'send', 7, '{"got":"hi"}' },
            { 'restart', 'asked' },
            { 'scale', 3 },
            { 'stop' },
            { 'log', 'info', { a = 1 }, 'hello' },
            { 'log', 'warn', {}, 'plain' },
            { 'log', 'error', { b = 2, c = 3 }, 'deep' },
            { 'log', 'info', {}, 'n\t1' },
        }, here.world.asked)
        assert.same({ true, core.hostname(), os.getenv 'PATH', { count = 1 } }, { session:call('every', 1) })
        session:close()
        session = assert(here.world.evaluate { source = session.source, repeated = true }) -- counts once
        assert.same({ true, core.hostname(), os.getenv 'PATH', { count = 1 } }, { session:call('every', 1) })
        session:close()
    end)

    it('may bring its own logger, as functions or as an object', function()
        local session = assert(evaluate [[
local dutch = require 'dutch-master'
local Log = {}
Log.__index = Log
function Log:info(fields, message) dutch.store.info = { self.name, fields.a, message } end
function Log.error(fields, message) dutch.store.error = { fields.a, message } end
dutch.start { worker = 'x', logger = setmetatable({ name = 'mine' }, Log) }]])
        assert.is_true(session.plan.logger.custom)
        assert.same({ info = true, error = true }, session.plan.logger.methods)
        local store = here.world.store
        assert.is_true((session:call('logger', 'info', { a = 1 }, 'one')))
        assert.same({ 'mine', 1, 'one' }, store.info)
        assert.is_true((session:call('logger', 'error', { a = 2 }, 'two')))
        assert.same({ 2, 'two' }, store.error)
        assert.is_true((session:call('logger', 'debug', { a = 3 }, 'three')))
        assert.same({ 'mine', 3, 'three' }, store.info)
        assert.same({}, here.world.asked)
        session:close()
    end)

    it('logs to its own logger from within a hook', function()
        local session = assert(evaluate [[
local dutch = require 'dutch-master'
dutch.start { worker = 'x', onReady = function() dutch.log:info({ a = 1 }, 'ready') print 'text' end,
  logger = { info = function(fields, message)
    dutch.store[message] = fields.a or 0
    dutch.log:info('from within the logger')
    if message == 'text' then error 'broken' end
  end } }]])
        local ok, err = session:call('onReady')
        assert.is_nil(ok)
        assert.equal('master.lua:6: onReady: broken', err.message)
        assert.same({ ready = 1, text = 0 }, here.world.store)
        assert.same({ 'log', 'info', {}, 'from within the logger' }, here.world.asked[1])
        session:close()
    end)

    it('begins each fork in the same directory', function()
        local session = assert(evaluate [[
local dutch = require 'dutch-master'
dutch.chdir '/a'
dutch.start { worker = 'x', beforeFork = function() dutch.chdir 'b' end }]])
        assert.equal('/a', session.session.cwd)
        for _ = 1, 3 do
            assert.same({ true }, { session:call 'beforeFork' })
            assert.equal('/a/b', session.session.cwd)
        end
        session:close()
    end)

    -- What a fork asks for, in a process that keeps an earlier session.
    -- @return {session, ahead = what its process was at by itself, ok, verdict, env, err}
    local function for_a_fork(process, worker)
        return here.world.await(function(done)
            here.world.script:evaluate(process, { worker = worker }, function(session, err)
                if not session then
                    return done(nil, err)
                end
                local got = { session = session, ahead = session.ahead }
                session:call('beforeFork', { worker }, function(ok, verdict)
                    got.ok, got.verdict = ok, verdict
                    if not ok or verdict == false then
                        return done(got)
                    end
                    session:environment(worker, function(env, why)
                        got.env, got.err = env, why
                        done(got)
                    end)
                end)
            end)
        end)
    end

    local budget_ms = 1000 * p.patience
    local FORKS = ([[
local dutch = require 'dutch-master'
dutch.chdir '/a'
local uv = require 'luv'
local function work(seconds) local over = uv.hrtime() + seconds * 1e9 while uv.hrtime() < over do end end
%s
dutch.start { worker = 'x', numWorkers = 3, hookTimeout = HOOK, listen = { ':1' }, logger = dutch.logger { fields = { a = { 1 } } },
  beforeFork = function(worker) dutch.store.before = worker.id worker.id = 0 dutch.chdir 'b' %s end,
  workerEnvironment = function(worker) %s return { ID = worker.id, T = 'first' } end }]]):gsub('HOOK', budget_ms / 1000)

    it('goes on to the hooks of a fork by itself when its plan is what it was', function()
        assert(evaluate(FORKS:format('', '', '')))
        local process = here.world.process
        local first = for_a_fork(process, { id = 1 })
        assert.is_nil(first.ahead) -- nothing is kept yet
        first.session:keep()
        for id = 2, 4 do
            local got = for_a_fork(process, { id = id })
            assert.equal('beforeFork', got.ahead)
            assert.equal(first.session.plan, got.session.plan)
            assert.same({ id, { ID = tostring(id), T = 'first' }, '/a/b' },
                { here.world.store.before, got.env, got.session.cwd })
            got.session:keep()
        end
        write('master.lua', (FORKS:format('', '', ''):gsub('first', 'second'))) -- hooks are those of the text that is there
        local got = for_a_fork(process, { id = 5 })
        assert.same({ 'beforeFork', 'second' }, { got.ahead, got.env.T })
        write('master.lua', (FORKS:format('', '', ''):gsub('= 3', '= 4')))
        got = for_a_fork(process, { id = 6 })
        assert.same({ nil, 4, 6 }, { got.ahead, got.session.plan.num_workers, here.world.store.before })
        got.session:keep()
        assert.equal('beforeFork', for_a_fork(process, { id = 7 }).ahead)
        here.world.lane:give_back(process)
    end)

    it('each hook that follows by itself has its own time and its own name', function()
        local half = 0.55 * budget_ms / 1000
        local function forked(...)
            assert(evaluate(FORKS:format('', '', ''), { budget_ms = budget_ms }))
            local process = here.world.process
            for_a_fork(process, { id = 1 }).session:keep()
            write('master.lua', (FORKS:format(...)))
            local got = for_a_fork(process, { id = 2 })
            assert.equal('beforeFork', got.ahead)
            here.world.lane:give_back(process)
            return got
        end
        local work = ('work(%g)'):format(half)
        assert.same({ ID = '2', T = 'first' }, forked(work, work, work).env)
        local seconds = ('%g s'):format(budget_ms / 1000)
        assert.equal('master.lua:8: beforeFork took longer than its budget of ' .. seconds .. ' (hookTimeout)',
            forked(work, '\nwhile true do end', '').verdict.message)
        assert.truthy(forked(work, work, 'while true do end').err.message
            :find('workerEnvironment took longer than its budget', 1, true))
        assert.truthy(forked('', 'os.exit(3)', '').verdict.message
            :find('^master.lua:7: beforeFork: os.exit was called'))
        assert.equal('master.lua:7: beforeFork: oh', forked('', "error 'oh'", '').verdict.message)
        assert.equal('master.lua:8: workerEnvironment: oh', forked('', '', "error 'oh'").err.message)
        local no = forked('', 'do return false end', "error 'oh'")
        assert.same({ true, false, nil }, { no.ok, no.verdict, no.err })
    end)

    it('takes presets and the judge of a canary', function()
        local session = assert(evaluate [[
local dutch = require 'dutch-master'
dutch.start {
  worker = dutch.gunicorn { app = 'app:application', workers = 2 },
  listen = '127.0.0.1:8000',
  restartConcurrency = { canary = { soak = 5, judge = function(new, old) return new.rss < old.rss end } },
}]])
        assert.equal('gunicorn', session.plan.preset)
        assert.equal('exec', session.plan.kind)
        assert.is_true(session.plan.hooks.judge)
        assert.same({ true, true }, { session:call('judge', { rss = 1 }, { rss = 2 }) })
        session:close()
        assert.truthy(refused("local d = require 'dutch-master'\nd.gunicorn { ap = 1 }", 'runtime')
            :find('master.lua:2: dutch.gunicorn: unknown option ap', 1, true))
    end)

    it('is not harmed by a master whose environment names other modules', function()
        local ffi = require 'ffi'
        ffi.cdef 'int setenv(const char *, const char *, int); int unsetenv(const char *);'
        ffi.C.setenv('LUA_PATH', './?.lua;/evil/?.lua;;', 1)
        local session = assert(evaluate [[
require('dutch-master').start { worker = 'x', workerEnvironment = function() return { P = package.path } end }]])
        local path = session:environment({ id = 1 }).P
        ffi.C.unsetenv 'LUA_PATH'
        session:close()
        assert.equal(here.dir .. '/?.lua;' .. here.dir .. '/?/init.lua', path:match '^[^;]*;[^;]*')
        assert.is_nil(path:find(';./', 1, true))
        assert.equal(core.uid() ~= 0, path:find('/evil', 1, true) ~= nil)
    end)
end)
