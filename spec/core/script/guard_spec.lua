-- Hooks that must be stopped, in real processes.

local support = require 'spec.support.script'

local here = support.scratch()
local write, subject, evaluate = here.write, here.subject, here.evaluate

describe('a script', function()
    before_each(here.open)
    after_each(here.close)

    it('whose hooks fail in each way', function()
        local text = [[
local dutch = require 'dutch-master'
dutch.start {
  worker = 'x', hookTimeout = 0.3,
  beforeFork = function(worker)
    if worker.id == 1 then error 'boom' end
    if worker.id == 2 then return false, 'not now' end
    if worker.id == 3 then while true do pcall(error) end end
    if worker.id == 4 then os.exit(1) end
    if worker.id == 5 then os.execute 'sleep 60' end
    if worker.id == 6 then return print end
    if worker.id == 7 then require('ffi').cast('int *', 0)[0] = 1 end
    if worker.id == 8 then local ffi = require 'ffi' ffi.cdef 'int close(int);' ffi.C.close(3) while true do end end
    if worker.id == 9 then local ffi = require 'ffi' ffi.cdef 'int raise(int);' ffi.C.raise(19) end
    if worker.id == 10 then local ffi = require 'ffi' ffi.cdef 'long write(int, const char *, long);'
      ffi.C.write(3, 'junk\n', 5) end
    if worker.id == 11 then return coroutine.wrap(function() while true do end end)() end
    if worker.id == 12 then io.popen('trap "" TERM; sleep 60'):read '*a' end
    if worker.id == 13 then error { 'a table' } end
    if worker.id == 14 then local function f() return 1 + f() end f() end
    if worker.id == 15 then xpcall(function() while true do end end, function() while true do end end) end
    if worker.id == 16 then local ffi = require 'ffi' ffi.cdef 'int poll(void *, long, int);'
      while true do ffi.C.poll(nil, 0, 60000) end end
  end,
}]]
        write('master.lua', text)
        subject()
        local function message(id)
            local session = assert(here.world.evaluate())
            local ok, err = session:call('beforeFork', { id = id })
            session:close()
            assert.is_nil(ok)
            return err.message
        end
        assert.equal('master.lua:5: beforeFork: boom', message(1))
        local session = assert(here.world.evaluate())
        assert.same({ true, false, 'not now' }, { session:call('beforeFork', { id = 2 }) })
        session:close()
        local late = ' beforeFork took longer than its budget of 0.3 s (hookTimeout)'
        assert.equal('master.lua:7:' .. late, message(3))
        assert.truthy(message(4):find('master.lua:8: beforeFork: os.exit was called', 1, true))
        assert.equal('master.lua:9:' .. late, message(5))
        assert.equal('master.lua: beforeFork: value: a function cannot be passed', message(6))
        if not os.getenv 'DM_SANITIZE' then -- else the sanitizer has its say
            assert.equal('master.lua: beforeFork was cut short, its process died of SIGSEGV', message(7))
        end
        assert.equal('master.lua: beforeFork closed the socket of its process', message(8))
        assert.equal('master.lua:' .. late, message(9))
        assert.equal('master.lua: beforeFork wrote to the socket of its process what is no answer: "junk"', message(10))
        assert.equal('master.lua:16:' .. late, message(11))
        local pattern = late:gsub('[%.%(%)]', '%%%0') .. '$'
        assert.matches('^master.lua:1[78]:' .. pattern, message(12)) -- the read was interrupted: the next line
        assert.matches('^master.lua:18: beforeFork: an error that is a table value$', message(13))
        assert.matches('^master.lua.*: beforeFork: .*stack overflow', message(14))
        assert.equal('master.lua:' .. late, message(15)) -- no hook comes in a handler
        assert.matches('^master.lua:2[12]:' .. pattern, message(16))
    end)

    it('that eats memory is told so, by strings, tables and ffi', function()
        if os.getenv 'DM_SANITIZE' then
            return pending 'the sanitizer itself needs more than the limit'
        end
        for name, body in pairs {
            tables = 'local t = {} while true do t[#t + 1] = {} end',
            strings = 'local t = {} while true do t[#t + 1] = ("x"):rep(1e6) .. #t end',
            pcall = 'local t = {} while true do pcall(function() t[#t + 1] = ("x"):rep(1e7) .. #t end) end',
            ffi = 'local ffi, t = require "ffi", {} while true do t[#t + 1] = ffi.new("char[?]", 1e6) end',
        } do
            local session = assert(evaluate(("require('dutch-master').start { worker = 'x', hookTimeout = %d, beforeFork = "
                .. 'function() %s end }'):format(name == 'pcall' and 1 or 20, body)))
            local ok, err = session:call('beforeFork', { id = 1 })
            assert.is_nil(ok)
            assert.equal(name == 'pcall' and 'budget' or 'memory', err.kind, name .. ': ' .. err.message)
            if err.kind == 'memory' then
                assert.equal('master.lua: beforeFork used more than its 128 MiB of memory', err.message)
            end
            session:close()
        end
        -- What it starts has the memory that the master has.
        local session = assert(evaluate [[require('dutch-master').start { worker = 'x', numWorkers = function()
            local pipe = io.popen 'ulimit -Sd'
            local limit = pipe:read '*l'
            return limit == 'unlimited' and os.execute '[ $(ulimit -Sd) = unlimited ]' == 0 and 3
        end }]])
        assert.equal(3, (session:num_workers()))
        session:close()
    end)
end)
