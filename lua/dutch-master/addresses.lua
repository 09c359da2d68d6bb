--- addresses.lua: where somebody listens, as text. One grammar for all who read such text in Lua: `listen` of the
-- script, `dutch-master web --listen`, a Lua worker's own listen() (src/worker preloads this file there). Each of them
-- says which kinds it takes. What is bound in the end is read by src/net/address.c, which knows the same grammar
-- (core/net/address_spec compares them); here a mistake gets its place in the script.

local M = {}

M.EXPECTED = 'an address such as "127.0.0.1:8000", ":8000", "[::]:8000", "unix:/path" or "udp::53"'

-- Bytes of sun_path without the final NUL; the kernel would cut a longer one off silently.
M.UNIX_PATH_MAX = 107

local LAST_PORT = 65535

-- Before and behind the last colon.
local function split(text)
    return text:match '^(.*):(%d+)$'
end

local function kind_of(host)
    if host == '' then
        return 'any'
    elseif host == '*' then
        return 'star'
    elseif host == 'localhost' then
        return 'localhost'
    elseif host:find '^%[[%x.]*:[%x:.]*%]$' then
        return 'ipv6'
    elseif host:find '^%[[%x.]*:[%x:.]*%%?[%w_.-]*%]$' then
        return 'scoped'
    elseif host:find '^[%d.]+$' then
        local a, b, c, d = host:match '^(%d+)%.(%d+)%.(%d+)%.(%d+)$'
        local is_one = a and math.max(tonumber(a), tonumber(b), tonumber(c), tonumber(d)) <= 255
        return is_one and 'ipv4' or 'digits'
    end
    return host:find '^[%w.-]+$' and 'name' or nil
end

--- Text -> { kind, udp, host, port } (host without brackets) or { kind, udp, path }, if its kind is among `allowed`.
-- The kinds of a host: any (""), star ("*"), localhost, ipv4, ipv6, scoped (ipv6 with its "%eth0"), digits (as ipv4,
-- and is none), name; of a unix socket: path, abstract ("@name"), relative. `allowed.udp`: "udp:" may be before a host.
-- @return nil, and 'port' if nothing but the port is wrong
function M.read(text, allowed)
    local rest, udp = text:gsub('^udp:', '')
    local path = rest:match '^unix:(.+)$'
    if udp > 0 and (path or not allowed.udp) then
        return nil
    elseif path then
        local kind = path:find '^/.' and 'path' or path:find '^@.' and 'abstract' or 'relative'
        return allowed[kind] and { kind = kind, udp = false, path = path } or nil
    end
    local host, port = split(rest)
    local kind = host and kind_of(host)
    if not kind or not allowed[kind] then
        return nil
    elseif tonumber(port) > LAST_PORT then
        return nil, 'port'
    end
    return { kind = kind, udp = udp > 0, host = host:match '^%[(.*)%]$' or host, port = tonumber(port) }
end

--- A host as it stands before a port: an IPv6 address in brackets.
function M.before_port(host)
    return host:find(':', 1, true) and '[' .. host .. ']' or host
end

-- ---------------------------------------------------------------------------------------------------------------------
-- `listen` of the script

local LISTEN = { any = true, star = true, localhost = true, ipv4 = true, ipv6 = true, scoped = true, udp = true,
    path = true, abstract = true }

--- Whether the script may write that for `listen`.
function M.is_one(text)
    return type(text) == 'string' and not text:find '[%c%s]' and M.read(text, LISTEN) ~= nil
end

--- What is wrong with a value that is none; nil where that cannot be told.
function M.hint(value)
    local rest = type(value) == 'string' and value:gsub('^udp:', '') or ''
    local host, port = split(rest)
    if rest:find '^unix:' then
        return rest ~= value and 'a unix socket is no udp socket' or 'the path of a unix socket is absolute'
    elseif rest:find '^/' then
        return ('write "unix:%s"'):format(rest)
    elseif rest:find '^%d+$' then
        return ('write ":%s"'):format(rest)
    elseif rest ~= '' and not port then
        return 'the port is missing'
    elseif port and tonumber(port) > LAST_PORT then
        return 'the highest port is 65535'
    elseif port and host:find '^[%x:]+$' and host:find ':' then
        return ('write "%s:%s"'):format(M.before_port(host), port)
    elseif port and host:find '%a' then
        return 'names of hosts are not looked up'
    end
end

--- Whether the kernel chooses the port: two of these are two addresses.
function M.is_any_port(text)
    return M.read(text, LISTEN).port == 0
end

--- The port of an entry of `listen`, as text, if that is a TCP address.
function M.tcp_port(entry)
    local address = M.read(entry.text, LISTEN)
    return address and address.port and not address.udp and tostring(address.port) or nil
end

--- Whether there is a TCP address among these entries, with this port if one is said.
function M.has_tcp(listen, port)
    for _, entry in ipairs(listen) do
        local found = M.tcp_port(entry)
        if found and (port == nil or tonumber(found) == port) then
            return true
        end
    end
    return false
end

return M
