-- Where a worker wants to listen: text or number -> what the master is asked for.

local addresses = require 'dutch-master.addresses'
local uv = require 'luv'

local M = {}

-- Digits that are no address the master refuses, saying why.
local LISTEN = { any = true, localhost = true, ipv4 = true, ipv6 = true, digits = true, path = true, abstract = true,
    relative = true }

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
    local address, wrong = addresses.read(where, LISTEN)
    if wrong then
        error(("listen: '%s' is not a port, expected 0 to 65535"):format(where), 0)
    elseif not address then
        error(("listen: '%s' is not an address such as 8000, '127.0.0.1:8000', '[::1]:8000' or 'unix:/path'")
            :format(where), 0)
    elseif address.path then
        local path = absolute(address.path)
        return { family = 'unix', path = path, text = 'unix:' .. path }
    elseif address.kind == 'any' then
        return { port = address.port, text = where }
    end
    return {
        family = address.kind == 'ipv6' and 'inet6' or 'inet',
        host = address.kind == 'localhost' and '127.0.0.1' or address.host,
        port = address.port,
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
