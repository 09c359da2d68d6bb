-- Where a worker wants to listen: text or number -> what the master is asked for.

local uv = require 'luv'

local M = {}

local function port_number(text, where)
    local port = tonumber(text)
    if not port or port % 1 ~= 0 or port < 0 or port > 65535 then
        error(("listen: '%s' is not a port, expected 0 to 65535"):format(tostring(where)), 0)
    end
    return port
end

local function absolute(path)
    return path:sub(1, 1) == '/' and path or (uv.cwd() .. '/' .. path:gsub('^%./', ''))
end

--- `8000`, `':8000'`, `'127.0.0.1:8000'`, `'[::1]:8000'`, `'localhost:8000'`, `'unix:/path'` ->
--- { family, host, port, path, text }. A host of nil means every address, IPv6 and IPv4.
function M.parse(where)
    if type(where) == 'number' then
        where = ':' .. where
    elseif type(where) ~= 'string' then
        error(('listen: expected a port or an address, got a %s'):format(type(where)), 0)
    elseif where:match('^%d+$') then
        where = ':' .. where
    end
    local path = where:match('^unix:(.+)$')
    if path then
        return { family = 'unix', path = absolute(path), text = 'unix:' .. absolute(path) }
    end
    local host, port = where:match('^%[([%x:.]+)%]:(%d+)$')
    if host then
        return { family = 'inet6', host = host, port = port_number(port, where), text = where }
    end
    host, port = where:match('^([%d.]*):(%d+)$')
    if not host then
        port = where:match('^localhost:(%d+)$')
        host = port and '127.0.0.1'
    end
    if not host then
        error(("listen: '%s' is not an address such as 8000, '127.0.0.1:8000', '[::1]:8000' or 'unix:/path'")
            :format(where), 0)
    end
    return {
        family = host ~= '' and 'inet' or nil,
        host = host ~= '' and host or nil,
        port = port_number(port, where),
        text = where,
    }
end

--- The address in the words of Node's cluster protocol (`null` is JSON's).
function M.query(address, null)
    if address.path then
        return { address = address.path, port = -1, addressType = -1 }
    end
    return {
        address = address.host or null,
        port = address.port,
        -- Without a host, 4 means "unspecified": dual stack where there is IPv6.
        addressType = address.family == 'inet6' and 6 or 4,
    }
end

return M
