--- dutch-master web: a page and /metrics, in a process of its own; a client of the masters like every other verb.

local addresses = require 'dutch-master.addresses'
local arguments = require 'dutch-master.cli.arguments'
local client = require 'dutch-master.cli.client'

local M = {
    name = 'web',
    takes_script = false,
    takes_scripts = true,
    summary = 'serve a live page of all masters, and /metrics',
    description = 'Serves one page that shows the masters of this user (for root: of all users), or those of the\n'
        .. 'scripts named: workers as they come and go, queues, memory and CPU over the last minutes, restarts with\n'
        .. 'their verdict, the last exits, the log. /metrics is for Prometheus. It can only look. It listens on\n'
        .. 'loopback or a unix socket; at any other address it wants a token. Needs lua-http.',
    options = {
        { long = 'listen', short = 'l', value = 'ADDRESS', doc = 'host:port or unix:/path (default 127.0.0.1:9615)' },
        { long = 'token-file', value = 'PATH', doc = 'file with a token that browsers must show (16 letters)' },
    },
    examples = {
        'dutch-master web', 'sudo dutch-master web --listen unix:/run/dutch-master-web.sock',
        'dutch-master web --listen 10.0.0.5:9615 --token-file /etc/dutch-master/token',
    },
    codes = '1 it cannot listen there, or lua-http is missing; else it runs until it is stopped',
}

local MULTIARCH = { x64 = 'x86_64-linux-gnu', arm64 = 'aarch64-linux-gnu' }
local LEAST_TOKEN = 16

-- lua-http comes from the system; all else is in the binary.
local function find_modules(environ)
    local arch = MULTIARCH[require('jit').arch]
    local lua = { '/usr/local/share/lua/5.1', '/usr/share/lua/5.1' }
    local c = { '/usr/local/lib/lua/5.1', arch and '/usr/lib/' .. arch .. '/lua/5.1', '/usr/lib/lua/5.1',
        '/usr/lib64/lua/5.1' }
    local path, cpath = {}, {}
    for _, dir in ipairs(lua) do
        path[#path + 1] = dir .. '/?.lua;' .. dir .. '/?/init.lua'
    end
    for i = 1, 4 do
        cpath[#cpath + 1] = c[i] and c[i] .. '/?.so' or nil
    end
    package.path = (environ.LUA_PATH or ''):gsub(';;', ';') .. ';' .. table.concat(path, ';')
    package.cpath = (environ.LUA_CPATH or ''):gsub(';;', ';') .. ';' .. table.concat(cpath, ';')
end

local function is_loopback(host)
    return host == 'localhost' or host == '::1' or host:find '^127%.' ~= nil
end

-- lua-http looks names up; what is none the system refuses.
local LISTEN = { any = true, localhost = true, ipv4 = true, ipv6 = true, digits = true, name = true, path = true }

--- "127.0.0.1:9615", "[::1]:9615", ":9615", "unix:/path" -> { host, port } or { path }, or nil
local function address_of(text)
    local address = addresses.read(text, LISTEN)
    if address and address.kind == 'any' then
        address.host = '0.0.0.0'
    end
    return address
end

local function read_token(ctx)
    local path = ctx.options.token_file
    if not path then
        return true, nil
    end
    local text, message = ctx.platform.read_file(path, 4096)
    local token = text and text:match '^%s*(%w+)%s*$'
    if not text then
        return nil, ('--token-file: %s'):format(message)
    elseif not token or #token < LEAST_TOKEN then
        return nil, ('--token-file: %s: expected one word of at least %d letters and digits (openssl rand -hex 16)')
            :format(path, LEAST_TOKEN)
    end
    return true, token
end

-- Of a process that was killed; a living one still answers.
local function remove_stale(platform, path)
    local there = platform.stat(path)
    if there and there.type == 'socket' and not platform.connect(path, 100) then
        os.remove(path)
    end
end

local function serve(ctx, address, token)
    local cqueues = require 'cqueues'
    local http_server = require 'http.server'
    local Hub = require 'dutch-master.web.hub'
    local loop = cqueues.new()
    local hub = Hub.new { platform = ctx.platform, loop = loop, scripts = ctx.scripts }
    local hosts
    if address.host then
        hosts = { ['localhost'] = true, ['127.0.0.1'] = true, ['[::1]'] = true, [address.host] = true }
    end
    if address.path then
        remove_stale(ctx.platform, address.path)
    end
    local answer = require('dutch-master.web.server').new {
        platform = ctx.platform, hub = hub, token = token, hosts = hosts, page = require 'dutch-master.web.page',
    }
    local server, message = http_server.listen {
        host = address.host, port = address.port, path = address.path, mode = address.path and 'rw-------' or nil,
        cq = loop, tls = false, version = 1.1, max_concurrent = 128, intra_stream_timeout = 30,
        onstream = answer,
        onerror = function() end, -- browsers come and go
    }
    local ok
    if server then
        ok, message = server:listen(5)
    end
    if not ok then
        return client.fail(ctx, ('web: %s: %s'):format(ctx.options.listen or 'listen', tostring(message)))
    end
    hub:start()
    local where = address.path and 'unix:' .. address.path or ('http://%s:%d/'):format(
        addresses.before_port(address.host), address.port)
    ctx.out(('dutch-master web: %s%s\n'):format(where, token and '?token=...' or ''))
    while true do
        local fine, why = loop:loop()
        if not fine then
            io.stderr:write('dutch-master: web: ', tostring(why), '\n')
        end
    end
end

function M.run(ctx)
    local text = ctx.options.listen or '127.0.0.1:9615'
    local address = address_of(text)
    if not address then
        return ctx.usage(('--listen: expected host:port or unix:/path, found "%s"'):format(text))
    end
    local ok, token = read_token(ctx)
    if not ok then
        return client.fail(ctx, 'web: ' .. token)
    elseif address.host and not is_loopback(address.host) and not token then
        return ctx.usage(('--listen: %s can be reached from elsewhere: a --token-file is needed'):format(text))
    end
    for _, word in ipairs(ctx.words) do
        ctx.scripts = ctx.scripts or {}
        local path, message = arguments.absolute(ctx.platform, word)
        if not path then
            return client.fail(ctx, message)
        end
        ctx.scripts[path] = true
    end
    find_modules(ctx.environment)
    if not pcall(require, 'http.server') then
        return client.fail(ctx, 'web needs lua-http (Debian: apt-get install lua-http; LuaRocks: http, for Lua 5.1)')
    end
    return serve(ctx, address, token)
end

return M
