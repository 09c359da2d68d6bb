--- addresses.lua: the addresses of `listen`, as text. What is bound in the end is read by src/net/address.c; here a
-- mistake gets its place in the script.

local M = {}

M.EXPECTED = 'an address such as "127.0.0.1:8000", ":8000", "[::]:8000", "unix:/path" or "udp::53"'

--- Whether the script may write that for `listen`.
function M.is_one(text)
    if type(text) ~= 'string' or text:find('[%c%s]') then
        return false
    end
    local rest = text:gsub('^udp:', '')
    local path = rest:match('^unix:(.+)$')
    if path then
        return rest == text and (path:match('^@.') or path:match('^/.')) and true or false
    end
    local host, port = rest:match('^(.*):(%d+)$')
    if not host or tonumber(port) > 65535 then
        return false
    elseif host == '' or host == 'localhost' or host == '*' then
        return true
    elseif host:sub(1, 1) == '[' then
        return host:match('^%[[%x.]*:[%x:.]*%%?[%w_.-]*%]$') ~= nil
    end
    local a, b, c, d = host:match('^(%d+)%.(%d+)%.(%d+)%.(%d+)$')
    return a ~= nil and math.max(tonumber(a), tonumber(b), tonumber(c), tonumber(d)) <= 255
end

--- What is wrong with a value that is none; nil where that cannot be told.
function M.hint(value)
    local rest = type(value) == 'string' and value:gsub('^udp:', '') or ''
    local host, port = rest:match '^(.*):(%d+)$'
    if rest:find '^unix:' then
        return rest ~= value and 'a unix socket is no udp socket' or 'the path of a unix socket is absolute'
    elseif rest:find '^/' then
        return ('write "unix:%s"'):format(rest)
    elseif rest:find '^%d+$' then
        return ('write ":%s"'):format(rest)
    elseif rest ~= '' and not port then
        return 'the port is missing'
    elseif port and tonumber(port) > 65535 then
        return 'the highest port is 65535'
    elseif port and host:find '^[%x:]+$' and host:find ':' then
        return ('write "[%s]:%s"'):format(host, port)
    elseif port and host:find '%a' then
        return 'names of hosts are not looked up'
    end
end

-- Bytes of sun_path without the final NUL; the kernel would cut a longer one off silently.
M.UNIX_PATH_MAX = 107

--- The port of an entry of `listen`, as text, if that is a TCP address.
function M.tcp_port(entry)
    return not entry.text:find '^udp:' and not entry.text:find '^unix:' and entry.text:match ':(%d+)$' or nil
end

return M
