--- server.lua: what `dutch-master web` answers. GET only; nothing here can change anything.
--
-- Who may ask: on loopback whoever can connect, if it names a host that is ours (a page of somebody else's whose name
-- was made to lead here is refused: DNS rebinding) and comes from no other origin. With a token, whoever has it.

local new_headers = require('http.headers').new

local mend = require 'worker.dutch-master.http_stream'
local openmetrics = require 'dutch-master.cli.openmetrics'

local M = {}

local HEADER_S = 10
local WRITE_S = 20

local SECURITY = {
    ['content-security-policy'] = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        .. "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ['x-content-type-options'] = 'nosniff',
    ['referrer-policy'] = 'no-referrer',
    ['cross-origin-resource-policy'] = 'same-origin',
    ['cross-origin-opener-policy'] = 'same-origin',
    ['cache-control'] = 'no-store',
}

local function headers_for(status, kind)
    local headers = new_headers()
    headers:append(':status', tostring(status))
    headers:append('content-type', kind)
    for name, value in pairs(SECURITY) do
        headers:append(name, value)
    end
    return headers
end

local function reply(stream, status, kind, body, more)
    local headers = headers_for(status, kind)
    for name, value in pairs(more or {}) do
        headers:append(name, value)
    end
    if body then
        headers:append('content-length', tostring(#body))
    end
    local head = stream.request_method == 'HEAD'
    if stream:write_headers(headers, head, WRITE_S) and body and not head then
        stream:write_chunk(body, true, WRITE_S)
    end
end

local TEXT = 'text/plain; charset=utf-8'

local function refuse(stream, status, text)
    reply(stream, status, TEXT, text .. '\n')
end

--- Takes as long for a wrong one, wherever it differs.
local function same(a, b)
    if #a ~= #b then
        return false
    end
    local differ = 0
    for i = 1, #a do
        differ = differ + (a:byte(i) == b:byte(i) and 0 or 1)
    end
    return differ == 0
end

local function cookie_of(headers)
    for part in (headers:get 'cookie' or ''):gmatch '[^;]+' do
        local value = part:match '^%s*dutch_master=(%w+)%s*$'
        if value then
            return value
        end
    end
end

--- -> whether the request may be answered, or false and it was refused already
local function admitted(site, stream, headers, path, query)
    local host, origin = (headers:get ':authority' or headers:get 'host' or ''):lower(), headers:get 'origin'
    if origin and origin:lower() ~= 'http://' .. host and origin:lower() ~= 'https://' .. host then
        refuse(stream, 403, 'This page answers no other origin.')
        return false
    elseif not site.token then
        local name = host:gsub(':%d+$', '')
        if site.hosts and not site.hosts[name] then
            refuse(stream, 421, 'This host name is not ours. Use the address that dutch-master web was started with.')
            return false
        end
        return true
    end
    local given = (headers:get 'authorization' or ''):match '^[Bb]earer%s+(%w+)$' or cookie_of(headers)
    if given and same(given, site.token) then
        return true
    end
    given = (query or ''):match '^token=(%w+)$'
    if given and same(given, site.token) then
        -- Not to stay in the address bar, nor in the history.
        reply(stream, 303, TEXT, '', { location = path,
            ['set-cookie'] = ('dutch_master=%s; Path=/; HttpOnly; SameSite=Strict'):format(given) })
        return false
    end
    refuse(stream, 401, 'A token is needed: open /?token=..., or send it as Authorization: Bearer.')
    return false
end

local routes = {}

local function part_of_page(name, kind)
    return function(site, stream)
        reply(stream, 200, kind .. '; charset=utf-8', site.page[name])
    end
end

routes['/'] = part_of_page('html', 'text/html')
routes['/app.css'] = part_of_page('css', 'text/css')
routes['/app.js'] = part_of_page('js', 'text/javascript')

routes['/metrics'] = function(site, stream, headers)
    local dialect = (headers:get 'accept' or ''):find('application/openmetrics-text', 1, true) and 'openmetrics'
        or 'prometheus'
    local kind = dialect == 'openmetrics' and 'application/openmetrics-text; version=1.0.0; charset=utf-8'
        or 'text/plain; version=0.0.4; charset=utf-8'
    reply(stream, 200, kind, openmetrics.render(site.hub:found(), site.platform.wall(), dialect))
end

routes['/events'] = function(site, stream)
    local headers, begun = headers_for(200, 'text/event-stream'), false
    if stream.request_method == 'HEAD' then
        return stream:write_headers(headers, true, WRITE_S)
    end
    local served = site.hub:serve(function(text)
        if not begun then
            begun = true
            if not stream:write_headers(headers, false, WRITE_S) then
                return nil
            end
        end
        return stream:write_chunk(text, false, WRITE_S)
    end)
    if not served then
        refuse(stream, 503, 'Too many pages are open.')
    end
end

routes['/favicon.ico'] = function(_, stream)
    reply(stream, 204, TEXT)
end

--- { platform, hub, page = { html, css, js }, token or nil, hosts = set of names, or nil for any }
function M.new(options)
    --- Answers one request on a stream of lua-http.
    return function(_, stream)
        mend(stream)
        local headers = stream:get_headers(HEADER_S)
        if not headers then
            return
        end
        stream.request_method = headers:get ':method'
        local path, query = (headers:get ':path' or ''):match '^([^?#]*)%??(.*)$'
        if stream.request_method ~= 'GET' and stream.request_method ~= 'HEAD' then
            return reply(stream, 405, TEXT, 'Only GET: this page changes nothing.\n', { allow = 'GET, HEAD' })
        elseif not admitted(options, stream, headers, path, query) then
            return
        end
        local route = routes[path]
        if not route then
            return refuse(stream, 404, 'There is nothing here. The page is at /, numbers are at /metrics.')
        end
        return route(options, stream, headers)
    end
end

return M
