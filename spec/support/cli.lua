-- `dutch-master VERB` as a user types it, for a master of spec.support.master or for none.

local uv = require 'luv'
local master = require 'spec.support.master'
local pair = require 'spec.support.pair'
local wait = require 'spec.support.wait'

local M = {}
local Command = {}
Command.__index = Command

local function environment(m, more)
    local env = uv.os_environ()
    env.DUTCH_MASTER_RUNTIME_DIR = m and m.dir .. '/run' or nil
    env.NO_COLOR, env.TERM = nil, 'dumb'
    if m and os.getenv 'DM_SANITIZE' then
        env.ASAN_OPTIONS = 'log_path=' .. m.dir .. '/sanitizer:detect_leaks=1:handle_segv=0'
        env.UBSAN_OPTIONS = 'print_stacktrace=1:log_path=' .. m.dir .. '/sanitizer'
        env.LSAN_OPTIONS = 'suppressions=' .. uv.cwd() .. '/spec/support/lsan.supp:print_suppressions=0'
    end
    for name, value in pairs(more or {}) do
        env[name] = value or nil
    end
    local result = {}
    for name, value in pairs(env) do
        result[#result + 1] = name .. '=' .. value
    end
    return result
end

local function read(pipe, add, on_end)
    pipe:read_start(function(_, data)
        if data then
            return add(data)
        end
        pipe:close()
        on_end()
    end)
end

--- Starts a command line. words: of the verb; options: env, wrap (words in front of the
--- program), program (another one), cwd, uid, gid.
function M.start(m, words, options)
    options = options or {}
    local self = setmetatable({ out = '', err = '', ended = 0 }, Command)
    local all = { unpack(options.wrap or {}) }
    all[#all + 1] = options.program or master.binary()
    for _, word in ipairs(words) do
        all[#all + 1] = word
    end
    local out, err = uv.new_pipe(false), uv.new_pipe(false)
    local process
    process, self.pid = uv.spawn(table.remove(all, 1), {
        args = all, env = environment(m, options.env), cwd = options.cwd or m and m.app, stdio = { nil, out, err },
        uid = options.uid, gid = options.gid,
    }, function(code, signal)
        self.code, self.signal = code, signal
        self.ended = self.ended + 1
        process:close()
    end)
    assert(process, self.pid)
    local function on_end()
        self.ended = self.ended + 1
    end
    read(out, function(data) self.out = self.out .. data end, on_end)
    read(err, function(data) self.err = self.err .. data end, on_end)
    return self
end

--- Waits for its end; the result is the command itself: code, signal, out, err.
function Command:wait(options)
    wait.wait_until(function()
        return self.ended == 3
    end, { what = 'the end of the command\n' .. self.out .. self.err, timeout = options and options.timeout or 40000 })
    return self
end

--- Waits until what it printed matches.
function Command:await_output(pattern)
    return wait.wait_until(function()
        return self.out:match(pattern)
    end, { what = pattern .. ' in the output' })
end

--- By SIGKILL unless another signal is given. A master has no time to do anything about its keeper's end, nor it about
-- the master's.
function Command:kill(signal)
    if signal then
        return uv.kill(self.pid, signal)
    end
    return pair.kill(self.pid)
end

--- Runs a command line to its end.
function M.run(m, words, options)
    return M.start(m, words, options):wait(options)
end

return M
