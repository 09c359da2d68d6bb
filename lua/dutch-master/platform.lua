--- platform.lua: the whole outside world, as one table of functions. Policy gets this table and knows no other; unit
-- specs give it spec/support/fake_platform.lua instead. What it says is said in src/lua/*.c, beside each function.

local core = require 'dutch-master.core'
local linux = require 'dutch-master.linux'
local preload = require 'dutch-master.launch.node_preload'
local shell = require 'dutch-master.shell'
local text = require 'dutch-master.log.text'

local M = setmetatable({}, { __index = core })

math.randomseed(core.pid() * 65536 + core.now() % 65536)

--- A random number in [0, 1), for jitter.
M.random = math.random

--- The path of drain.cjs, nil when it was not installed.
function M.preload()
    return preload.find(M, core.environ())
end

for name, fn in pairs(linux) do
    M[name] = fn
end

--- As core.notify_socket; fn gets the fields of each message that has some.
function M.notify_socket(options, fn)
    return core.notify_socket(options, function(message)
        local fields = text.fields(message)
        if next(fields) then
            fn(fields)
        end
    end)
end

--- The keys of the terminal, whatever standard input is: fn(bytes), fn(nil) at its end. For verbs.
-- -> luv's handle: set_mode(1) gives them one by one and without echo, 0 as before; close() | nil, message, code
function M.keys(fn)
    local uv = require 'luv'
    local fd, message, code = uv.fs_open('/dev/tty', 'r+', 0)
    if not fd then
        return nil, message, code
    end
    local keys = assert(uv.new_tty(fd, true))
    keys:read_start(function(_, bytes)
        fn(bytes)
    end)
    return keys
end

--- As ^Z does: until the shell lets this program go on.
function M.suspend()
    require('luv').kill(0, 'sigtstp')
end

--- Names in a directory, in no order. -> list | nil, message, code
function M.list(path)
    local uv = require 'luv' -- not at the top: a master needs it only when something has gone wrong
    local request, message, code = uv.fs_scandir(path)
    if not request then
        return nil, message, code
    end
    local names = {}
    for name in uv.fs_scandir_next, request do
        names[#names + 1] = name
    end
    return names
end

--- Writes a file that this user alone may read, instead of any that is there. -> true | nil, message, code
function M.save(path, content)
    local uv = require 'luv' -- when something has gone wrong already
    uv.fs_unlink(path)
    local fd, message, code = uv.fs_open(path, 'wx', tonumber('600', 8))
    if not fd then
        return nil, message, code
    end
    local written, why, kind = uv.fs_write(fd, content)
    uv.fs_close(fd)
    if written ~= #content then
        return nil, why or 'it could not be written whole', kind
    end
    return true
end

--- Where a symbolic link leads. -> path | nil, message, code
function M.readlink(path)
    return require('luv').fs_readlink(path)
end

--- What `dutch-master check --json` says of a script. For the verbs, whose loop does not run yet; never in a master.
function M.check(script)
    local pipe = io.popen(('%s check --json -- %s 2>/dev/null'):format(shell.quote(core.executable()),
        shell.quote(script)))
    local answer = pipe and pipe:read '*a' or ''
    if pipe then
        pipe:close()
    end
    return answer
end

--- Writes to stderr, for a person: what must be said before there is a log.
function M.write_stderr(words)
    io.stderr:write(words)
end

return M
