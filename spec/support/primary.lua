-- A tiny master for specs of Lua workers: luv's own spawn, socketpair and handle passing, so that it
-- does not rest on the code under test. One worker, its channel, and what came on it.

local uv = require 'luv'
local cjson = require 'cjson'
local wait = require 'spec.support.wait'

local M = {}
M.__index = M

--- The binary of the build that is being tested.
function M.binary()
    return (os.getenv 'DM_BUILD' or 'build') .. '/dutch-master'
end

--- Runs the loop until predicate() is true; fails after `ms`.
function M.wait_until(predicate, what, ms)
    if not wait.try(predicate, { timeout = ms or 5000 }) then
        error(('timed out waiting for %s'):format(what or 'something'), 2)
    end
end

local function read_all(pipe, into, key)
    pipe:read_start(function(_, data)
        if data then
            into[key] = into[key] .. data
        else
            pipe:close()
        end
    end)
end

function M:read_channel()
    local rest = ''
    self.channel:read_start(function(_, data)
        if not data then
            self.closed = true
            return
        end
        rest = rest .. data
        local newline = rest:find('\n', 1, true)
        while newline do
            local message = cjson.decode(rest:sub(1, newline - 1))
            self.messages[#self.messages + 1] = message
            rest = rest:sub(newline + 1)
            newline = rest:find('\n', 1, true)
        end
    end)
end

--- Starts a worker that runs `source`. options: channel = false for none, args, file.
function M.start(source, options)
    options = options or {}
    local self = setmetatable({ messages = {}, stdout = '', stderr = '', handles = {} }, M)
    self.dir = assert(uv.fs_mkdtemp((os.getenv 'TMPDIR' or '/tmp') .. '/dm-worker-XXXXXX'))
    self.script = options.script or (self.dir .. '/app.lua')
    local file = assert(io.open(self.dir .. '/app.lua', 'w'))
    file:write(source)
    file:close()
    local out, err = uv.new_pipe(false), uv.new_pipe(false)
    local stdio = { nil, out, err }
    local env = { 'PATH=' .. os.getenv 'PATH', 'DUTCH_MASTER_GENERATION=3' }
    for _, name in ipairs { 'DUTCH_MASTER_LUA', 'ASAN_OPTIONS', 'UBSAN_OPTIONS', 'LSAN_OPTIONS' } do
        if os.getenv(name) then
            env[#env + 1] = name .. '=' .. os.getenv(name)
        end
    end
    if options.channel ~= false then
        local pair = assert(uv.socketpair())
        self.channel = uv.new_pipe(true)
        assert(self.channel:open(pair[1]))
        self.worker_end = pair[2]
        stdio[4] = pair[2]
        env[#env + 1], env[#env + 2] = 'NODE_CHANNEL_FD=3', 'NODE_UNIQUE_ID=7'
        self:read_channel()
    end
    local args = { '--lua-worker', self.script }
    for _, argument in ipairs(options.args or {}) do
        args[#args + 1] = argument
    end
    self.process, self.pid = uv.spawn(M.binary(), { args = args, env = env, stdio = stdio, cwd = options.cwd },
        function(code, signal)
            self.exit = { code = code, signal = signal }
        end)
    assert(self.process, self.pid)
    if self.worker_end then
        -- The worker has its copy; with ours open its end would never be seen.
        local closer = uv.new_pipe(false)
        closer:open(self.worker_end)
        closer:close()
    end
    read_all(out, self, 'stdout')
    read_all(err, self, 'stderr')
    self.out, self.err = out, err
    return self
end

--- Sends a message, with a handle's descriptor if one is given.
function M:send(message, handle)
    if handle then
        message = { cmd = 'NODE_HANDLE', type = 'net.Native', msg = message }
        assert(self.channel:write2(cjson.encode(message) .. '\n', handle))
    else
        assert(self.channel:write(cjson.encode(message) .. '\n'))
    end
end

--- Waits for the message with these fields and takes it out of what has come.
function M:expect(fields, ms)
    local found
    local ok, message = pcall(M.wait_until, function()
        for index, candidate in ipairs(self.messages) do
            local same = true
            for key, value in pairs(fields) do
                same = same and type(candidate) == 'table' and candidate[key] == value
            end
            if same then
                found = table.remove(self.messages, index)
                return true
            end
        end
        return false
    end, cjson.encode(fields), ms)
    if not ok then
        error(('%s\nmessages: %s\nstdout: %s\nstderr: %s'):format(message, cjson.encode(self.messages),
            self.stdout, self.stderr), 2)
    end
    return found
end

--- Lends a listening socket for the next queryServer; returns the query and the port.
function M:lend(key)
    local query = self:expect { act = 'queryServer' }
    local handle
    if query.addressType == -1 then
        handle = uv.new_pipe(false)
        assert(handle:bind(query.address))
    else
        handle = uv.new_tcp()
        assert(handle:bind(type(query.address) == 'string' and query.address or '::', query.port))
    end
    self.handles[#self.handles + 1] = handle
    self:send({ cmd = 'NODE_CLUSTER', ack = query.seq, errno = 0, key = key or 'k1' }, handle)
    local name = query.addressType ~= -1 and handle:getsockname()
    return query, name and name.port
end

--- Waits for the worker's end.
function M:await_exit(ms)
    local ok, message = pcall(M.wait_until, function()
        return self.exit and self.out:is_closing() and self.err:is_closing()
    end, 'the exit', ms)
    if not ok then
        error(message .. '\n' .. self.stdout .. self.stderr, 2)
    end
    return self.exit
end

--- Ends what is left of it.
function M:close()
    if not self.exit then
        self.process:kill 'sigkill'
        self:await_exit()
    end
    for _, handle in ipairs { self.channel or false, self.process, unpack(self.handles) } do
        if handle and not handle:is_closing() then
            handle:close()
        end
    end
    uv.run 'nowait'
    os.remove(self.dir .. '/app.lua')
    uv.fs_rmdir(self.dir)
end

return M
