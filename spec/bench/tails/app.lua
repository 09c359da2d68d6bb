-- The same as app.cjs, as a Lua worker.
local uv = require 'luv'
local worker = require 'dutch-master.worker'

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
        local ms = tonumber(seen:match '^GET /(%d+)')
        if ms > 0 then
            uv['sleep'](ms)
        end
        connection:write 'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok'
        connection:shutdown()
    end)
end)
