-- The same as app.cjs, as a Lua worker.
local uv = require 'luv'
local worker = require 'dutch-master.worker'

local FAST, SLOW, SLOW_SHARE = 2, 100, 0.05
math.randomseed(uv.os_getpid())

local server = assert(worker.listen('127.0.0.1:' .. os.getenv 'PORT'))
server:accept(function(connection)
    local seen = ''
    connection:read_start(function(_, data)
        if not data then
            return connection:is_closing() or connection:close()
        end
        seen = seen .. data
        if not seen:find '\r\n\r\n' then
            return
        end
        local ms = math.random() < SLOW_SHARE and SLOW or FAST
        uv['sleep'](ms)
        local body = tostring(ms)
        connection:write(('HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s'):format(#body, body))
        connection:shutdown()
    end)
end)
