-- Workers for the e2e specs, as texts. Each says what it needs in its environment.

local M = {}

--- The beginning of a Lua worker's server: accepts, and goes on with the path of a request when all of it has come.
M.accept = [[
server:accept(function(connection)
    local seen = ''
    connection:read_start(function(_, data)
        if not data then
            return connection:is_closing() or connection:close()
        end
        seen = seen .. data
        local path = seen:match '^%u+ (%S+).*\r\n\r\n'
        if not path then return end
]]

--- An HTTP server at $LISTEN, a request for each connection. Its answer is "VERSION worker pid", after $DELAY_MS.
--- Paths: /slow (answers after 600 ms), /restart (asks the master to be replaced), /exit (code 3), /hang (for ever).
M.http = [[
local uv = require 'luv'
local worker = require 'dutch-master.worker'
local body = ('%s %s %d'):format(os.getenv 'VERSION' or '-', os.getenv 'DUTCH_MASTER_WORKER', uv.os_getpid())
local answer = ('HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s'):format(#body, body)
local delay = tonumber(os.getenv 'DELAY_MS' or '0')

local function respond(connection)
    if not connection:is_closing() then
        connection:write(answer)
        connection:shutdown()
    end
end

local paths = {
    ['/restart'] = function() worker.send { event = 'request-restart' } end,
    ['/exit'] = function() os.exit(3) end,
    ['/hang'] = function() while true do end end,
}

local server = assert(worker.listen(os.getenv 'LISTEN'))
]] .. M.accept .. [[
        if paths[path] then paths[path]() end
        local pause = path == '/slow' and 600 or delay
        if pause == 0 then return respond(connection) end
        local timer = uv.new_timer()
        timer:start(pause, 0, function()
            timer:close()
            respond(connection)
        end)
    end)
end)
]]

--- A Lua worker that is ready at once, without a socket, and leaves when it is asked to.
M.idle = [[require('dutch-master.worker').ready()]]

--- A Lua worker that is never ready.
M.never_ready = [[require 'dutch-master.worker']]

--- A Lua worker that is ready and takes neither the master's word nor SIGTERM for it.
M.stubborn = [[
local uv = require 'luv'
local worker = require 'dutch-master.worker'
worker.on_disconnect(function() end)
local signal = uv.new_signal()
signal:start('sigterm', function() end)
local keep = uv.new_timer()
keep:start(1000, 1000, function() end)
worker.ready()
]]

--- A worker of kind exec that writes what it is into the file $OUT and leaves at SIGTERM.
M.report = [[#!/bin/sh
{
    echo "pid $$"
    echo "pgid $(ps -o pgid= -p $$ | tr -d ' ')"
    echo "nice $(ps -o ni= -p $$ | tr -d ' ')"
    echo "umask $(umask)"
    echo "cwd $(pwd)"
    echo "fds $(ls /proc/$$/fd | sort -n | tr '\n' ' ')"
    echo "nofile $(ulimit -Sn) $(ulimit -Hn)"
    echo "core $(ulimit -c)"
    grep -E '^(Uid|Gid|Groups|SigBlk|SigIgn|Cpus_allowed_list):' /proc/$$/status | tr -d ':' | tr '\t' ' '
    env | sed 's/^/env /'
} > "$OUT.new"
mv "$OUT.new" "$OUT"
exec sleep 1000
]]

--- What M.report wrote, as a table { name = text, env = { NAME = value } }; nil while it is not there.
function M.read_report(path)
    local file = io.open(path)
    if not file then
        return nil
    end
    local report = { env = {} }
    for line in file:lines() do
        local name, value = line:match '^env ([^=]+)=(.*)$'
        if name then
            report.env[name] = value
        else
            name, value = line:match '^(%S+) *(.-) *$'
            report[name] = value
        end
    end
    file:close()
    return report
end

return M
