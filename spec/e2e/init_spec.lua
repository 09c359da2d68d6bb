-- `init` on projects of all kinds: what it writes passes `check`, and is a cluster that serves.

local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local read = require('spec.support.files').text
local versions = require 'spec.support.node_versions'

local NODE = "require('http').createServer((q, r) => r.end('ok')).listen(process.env.PORT, '127.0.0.1');\n"
local WSGI = "def application(environ, start):\n    start('200 OK', [('Content-Length', '2')])\n    return [b'ok']\n"
local ASGI = [[
async def application(scope, receive, send):
    if scope['type'] == 'lifespan':
        while True:
            message = await receive()
            await send({'type': message['type'] + '.complete'})
            if message['type'] == 'lifespan.shutdown': return
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', b'2')]})
    await send({'type': 'http.response.body', 'body': b'ok'})
]]
local RACK = "run ->(env) { [200, { 'content-type' => 'text/plain' }, ['ok']] }\n"
-- A server of its own that takes its socket as systemd passes it.
local SERVER = [[#!/usr/bin/env python3
import socket
s = socket.socket(fileno=3)
s.setblocking(True)
while True:
    c, _ = s.accept()
    c.recv(65536)
    c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok')
    c.close()
]]

local PROJECTS = {
    { 'an app of Node', program = 'node', worker = "'server.js'", files = {
        ['package.json'] = '{"name":"shop","scripts":{"start":"node server.js"}}', ['server.js'] = NODE } },
    { 'a package with `main`', program = 'node', worker = "'lib/main.js'", files = {
        ['package.json'] = '{"name":"@a/b","main":"lib/main.js","scripts":{"start":"nodemon"}}', ['lib/main.js'] = NODE } },
    { 'an app as express-generator makes it', program = 'node', worker = "'./bin/www'", says = "kind = 'node'", files = {
        ['package.json'] = '{"name":"shop","scripts":{"start":"cross-env DEBUG=shop:* node ./bin/www"}}',
        ['bin/www'] = { text = '#!/usr/bin/env node\n' .. NODE, mode = '755' } } },
    { 'a program of a package', program = 'node', worker = "'node_modules/.bin/serve'",
        says = "args = { 'start', '%-l', 'info' }", files = {
            ['package.json'] = '{"name":"shop","main":"app.js","scripts":{"start":"serve start -l info"}}',
            ['node_modules/.bin/serve'] = { text = '#!/usr/bin/env node\n' .. NODE, mode = '755' },
            ['app.js'] = 'throw new Error("a part of it, and no program")' } },
    { 'an app with something before it', program = 'node', worker = "'src/server.js'",
        says = "interpreter = { 'node', '%-%-import', './first.mjs', '%-r', './then.cjs' }", files = {
            ['package.json'] = '{"name":"shop","scripts":{"start":"node --import ./first.mjs -r ./then.cjs src/server.js"}}',
            ['first.mjs'] = 'globalThis.order = 1', ['then.cjs'] = '', ['src/server.js'] = NODE } },
    { 'an app of Nest, built', program = 'node', worker = "'dist/main.js'", files = {
        ['package.json'] = '{"name":"shop","scripts":{"start":"nest start","start:prod":"node dist/main"}}',
        ['dist/main.js'] = NODE } },
    { 'PM2', program = 'node', worker = "'app.js'", script = 'api.lua', says = 'maxMemory = \'300M\'', files = {
        ['ecosystem.config.js'] = "module.exports = { apps: [{ name: 'api', script: 'app.js', instances: 2, exec_mode: "
            .. "'cluster', max_memory_restart: '300M', kill_timeout: 3000, env: { A: '1', 'b-c': 2 } }, "
            .. "{ name: 'jobs', script: './jobs.sh', interpreter: 'sh' }] };",
        ['app.js'] = NODE } },
    { 'a master.js of the original', program = 'node', worker = "'app.js'", says = "name = 'my%-app'", files = {
        ['master.js'] = "const master = require('dutch-master');\nmaster({ worker: 'app.js', numWorkers: 2,\n"
            .. "  logger: bunyan.createLogger({ name: 'my-app' }), workerEnvironment: { NODE_ENV: 'production' } });",
        ['app.js'] = NODE } },
    { 'a WSGI app', program = 'gunicorn', worker = "dutch.gunicorn { app = 'wsgi:application' }", files = {
        ['wsgi.py'] = WSGI } },
    { 'an ASGI app', program = 'uvicorn', worker = "dutch.uvicorn { app = 'main:application' }", files = {
        ['main.py'] = ASGI } },
    { 'a Rack app', program = 'puma', worker = 'dutch.puma { }', files = {
        ['Gemfile'] = "source 'https://rubygems.org'\ngem 'puma'\n", ['config.ru'] = RACK } },
    { 'a Rack app with unicorn', program = 'unicorn', worker = 'dutch.unicorn { }', files = {
        ['Gemfile'] = "gem 'unicorn'\n", ['config.ru'] = RACK } },
    { 'a Procfile', program = 'gunicorn', worker = "dutch.gunicorn { app = 'web:application', args = {", files = {
        ['Procfile'] = 'release: ./migrate\nweb: gunicorn web:application --bind 0.0.0.0:$PORT -w 4 --log-level warning\n',
        ['web.py'] = WSGI } },
    { 'a Go program', worker = "{ './shop' }", files = {
        ['go.mod'] = 'module example.org/team/shop\n\ngo 1.21\n', ['shop'] = { text = SERVER, mode = '755' } } },
    { 'a Lua app', worker = "'app.lua'", files = {
        ['app.lua'] = "require('dutch-master.http').serve(tonumber(os.getenv 'PORT'), function(_, r) r:send 'ok' end)" } },
    { 'an executable', worker = "{ './server' }", files = { ['server'] = { text = SERVER, mode = '755' } } },
}

local function write(dir, name, content)
    local text = type(content) == 'table' and content.text or content
    os.execute(("mkdir -p '%s'"):format((dir .. '/' .. name):match '^(.*)/'))
    local file = assert(io.open(dir .. '/' .. name, 'w'))
    file:write(text)
    file:close()
    if type(content) == 'table' then
        os.execute(("chmod %s '%s/%s'"):format(content.mode, dir, name))
    end
end

local node = versions.binary '22'
local PATH = (node and node:match '^(.*)/' .. ':' or '') .. os.getenv 'PATH'

describe('init', function()
    after_each(master.cleanup)

    for _, project in ipairs(PROJECTS) do
        it('makes a cluster of ' .. project[1], function()
            if project.program and os.execute(('PATH=%s command -v %s >/dev/null'):format(PATH, project.program)) ~= 0 then
                return pending(project.program .. ' is not installed')
            end
            local dir = master.temp_dir()
            for name, content in pairs(project.files) do
                write(dir, name, content)
            end
            local env = { PATH = PATH }
            local c = cli.run(nil, { 'init', dir }, { env = env })
            assert.equal(0, c.code, c.err)
            local script = dir .. '/' .. (project.script or 'master.lua')
            assert.truthy(c.out:find('Wrote ' .. script, 1, true), c.out)
            local text = read(script)
            assert.truthy(text:find('worker = ' .. project.worker, 1, true), text)
            assert.matches(project.says or '', text)
            assert.falsy(text:find('Build it first', 1, true), text) -- it is there
            c = cli.run(nil, { 'check', script }, { env = env })
            assert.equal(0, c.code, c.out .. c.err)
            -- A second time it touches nothing.
            assert.equal(1, cli.run(nil, { 'init', dir }, { env = env }).code)
            assert.equal(text, read(script))
            local port = http.free_port()
            -- One worker, which has answered and so is done with its start: gunicorn forgets a SIGTERM that comes during it.
            text = text:gsub('127%.0%.0%.1:8000', '127.0.0.1:' .. port):gsub('numWorkers = function%(%).-\n    end,',
                'numWorkers = 1,'):gsub('numWorkers = 2', 'numWorkers = 1')
            local m = master.start {
                script = text, files = project.files,
                env = { PATH = PATH, PORT = tostring(port), PYTHONDONTWRITEBYTECODE = '1' },
            }
            m:await('Cluster ready', { timeout = 20000 })
            local status, body = http.get { port = port }
            assert.same({ 200, 'ok' }, { status, body })
            m:finish()
        end)
    end

    it('has Node run what tsx would run in a process of its own', function()
        for _, start in ipairs { 'tsx src/server.ts --quick', 'cross-env A=1 npx tsx src/server.ts --quick' } do
            local dir = master.temp_dir()
            write(dir, 'package.json', ('{"name":"shop","scripts":{"start":"%s"}}'):format(start))
            write(dir, 'src/server.ts', '')
            local c = cli.run(nil, { 'init', dir })
            assert.equal(0, c.code, c.err)
            local text = read(dir .. '/master.lua')
            for _, line in ipairs { "worker = 'src/server.ts'", "interpreter = { 'node', '--import', 'tsx' }",
                "args = { '--quick' }" } do
                assert.truthy(text:find(line, 1, true), text)
            end
        end
    end)

    it('says what it looked for where it knows nothing', function()
        local dir = master.temp_dir()
        local c = cli.run(nil, { 'init', dir })
        assert.equal(1, c.code)
        assert.matches('nothing recognised there %(looked for Procfile', c.err)
        write(dir, 'x.json', '{"apps":[]}')
        c = cli.run(nil, { 'init', dir, '--from', dir .. '/x.json' })
        assert.equal(1, c.code)
        assert.matches('no apps in it', c.err)
        assert.equal(2, cli.run(nil, { 'init', dir .. '/nowhere' }).code)
    end)
end)
