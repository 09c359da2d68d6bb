-- ready = { http = '/path' }: a worker serves from the moment that it, and no other, answers a GET of that page.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'

local REFUSED = { 'luajit', uv.cwd() .. '/spec/support/refusing.lua', 'steering' }

-- Each answers /health with 503 unless the file `well` is there, after an interim answer, and says that it was asked;
-- all else with its id.
local LUA = [[
local uv = require 'luv'
local id = os.getenv 'DUTCH_MASTER_WORKER'
local server = assert(require('dutch-master.worker').listen(os.getenv 'LISTEN'))
]] .. apps.accept .. [[
        local well = path ~= '/health' or uv.fs_stat('well' .. (os.getenv 'EACH' and id or ''))
        if path == '/health' then
            print(('asked %s %s'):format(id, seen:match 'Host: (%S+)'))
            connection:write 'HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n'
        end
        connection:write(('HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s')
            :format(well and '200 OK' or '503 No', #id, id))
        connection:shutdown()
    end)
end)
]]

local PYTHON = [[
import os, socket, signal, select
me = os.environ['DUTCH_MASTER_WORKER']
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
sockets = [socket.socket(fileno=3 + i) for i in range(int(os.environ['LISTEN_FDS']))]
while os.path.exists('slow') and not os.path.exists('go'):
    select.select([], [], [], 0.02)
while True:
    for s in select.select(sockets, [], [])[0]:
        try:
            c, _ = s.accept()
        except BlockingIOError:
            continue
        c.setblocking(True)
        seen = b''
        while b'\r\n\r\n' not in seen:
            more = c.recv(65536)
            if not more: break
            seen += more
        if not seen:
            c.close()
            continue
        if seen.startswith(b'GET /health '):
            os.write(1, b'asked %s\n' % me.encode()) # in one piece: the master's records go there too
        ill = seen.startswith(b'GET /health ') and not os.path.exists('well')
        c.sendall(b'HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s'
            % (b'503 No' if ill else b'204 Yes' if seen.startswith(b'GET /health ') else b'200 OK', len(me), me.encode()))
        c.close()
]]

local NODE = [[
const http = require('http'), fs = require('fs')
http.createServer((request, response) => {
    response.statusCode = request.url !== '/health' || fs.existsSync('well') ? 200 : 503
    response.end(process.env.DUTCH_MASTER_WORKER)
}).listen(+process.env.PORT, '127.0.0.1')
]]

local function script(port, options)
    return ([[
        local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', restartSoak = 0, logger = dutch.logger { level = 'debug' },
            beforeFork = function() dutch.chdir(dutch.directory) end,
            workerEnvironment = { LISTEN = '127.0.0.1:%d', PORT = '%d', EACH = dutch.environ 'EACH' }, %s }]])
        :format(port, port, options or '')
end

local function kinds(port, node)
    return {
        lua = { files = { ['app.lua'] = LUA }, options = '' },
        exec = { files = { ['app.py'] = PYTHON },
            options = ("worker = { 'python3', 'app.py' }, listen = { 'unix:@probe-%d', '127.0.0.1:%d' },"):format(port, port) },
        node = { files = { ['app.js'] = NODE }, options = ("worker = 'app.js', interpreter = '%s',"):format(node) },
    }
end

describe('a worker that is asked for a page', function()
    after_each(master.cleanup)

    local function becomes_ready(name, kind, node)
        it('is ready when it answers well, and gives way when the next one does: ' .. name, function()
            local port = http.free_port()
            local case = kinds(port, node)[kind]
            local m = master.start { files = case.files,
                script = script(port, case.options .. "ready = { http = '/health', interval = 0.05 }"),
            }
            m:await { msg = 'Worker was asked: GET /health answered 503', workerId = 1 }
            m:await { msg = 'Worker was asked: GET /health answered 503', workerId = 2 }
            assert.equal(0, #m:records 'Worker listening')
            m:rewrite('well', '')
            m:await 'Cluster ready'
            assert.equal('127.0.0.1:' .. port, m:records('Worker listening')[1].address)
            -- The next release is ill: those that are well do not answer for it.
            assert(uv.fs_unlink(m:path 'well'))
            local l = load.start { port = port, clients = 8, rate = 300, expect = '^[12]$' }
            m:signal 'SIGUSR2'
            m:await { msg = 'Worker was asked: GET /health answered 503', workerId = 3 }
            m:await { msg = 'Worker was asked: GET /health answered 503', workerId = 4 }
            l:await(l.counts.total + 200)
            assert.equal(2, #m:records 'Worker listening')
            local counts = l:stop()
            assert.equal(0, counts.failed, counts.text)
            l = load.start { port = port, clients = 8, rate = 300, expect = '^[1234]$' }
            m:rewrite('well', '')
            m:await 'Restart complete'
            m:await('Worker exited', { count = 2 })
            l:await(l.counts.total + 50)
            counts = l:stop()
            assert.equal(0, counts.failed, counts.text)
            m:finish()
        end)
    end
    becomes_ready('lua', 'lua')
    becomes_ready('exec', 'exec')
    versions.each(function(version, binary)
        becomes_ready('Node ' .. version, 'node', binary)
    end)

    it('is told from the others: each is ready when it is well itself', function()
        local port = http.free_port()
        local m = master.start { files = { ['app.lua'] = LUA }, env = { EACH = '1' },
            script = script(port, "numWorkers = 6, ready = { http = '/health', interval = 0.02, host = 'me.example' }"),
        }
        for _, id in ipairs { 4, 2, 6, 1, 5, 3 } do
            local mark = m:mark()
            -- It is asked, at least once more, before anybody serves whom it could be taken for.
            m:await_output('^asked ' .. id .. ' me.example$')
            m:rewrite('well' .. id, '')
            assert.equal(id, m:await('Worker listening', { after = mark }).workerId)
        end
        m:await 'Cluster ready'
        m:finish()
    end)

    it('is asked once while it starts, however long that takes', function()
        local port = http.free_port()
        local m = master.start { files = { ['app.py'] = PYTHON, slow = '', well = '' },
            script = script(port, kinds(port).exec.options .. "numWorkers = 1,"
                .. "ready = { http = '/health', port = " .. port .. ", interval = 0.05, timeout = 1 }"),
        }
        m:await { msg = 'Worker was asked: GET /health: nobody accepted in 1 s' }
        m:rewrite('go', '')
        m:await 'Cluster ready'
        m:signal 'SIGTERM'
        m:exit()
        m:wait_until(function() return m.out_ended end)
        assert.same({ 'asked 1' }, m.output)
        m:finish()
    end)

    it('and is not well in time is given up, with the last result in words', function()
        local port = http.free_port()
        local m = master.start { files = { ['app.lua'] = LUA },
            script = script(port, "numWorkers = 1, backoff = { first = 20, max = 20 }, readyTimeout = 0.7,"
                .. "ready = { http = '/health', interval = 0.05 }"),
        }
        m:await 'Worker was not ready in time: GET /health answered 503'
        m:finish()
        m = master.start { files = { ['app.py'] = PYTHON, slow = '' },
            script = script(port, kinds(port).exec.options .. "numWorkers = 1, backoff = { first = 20, max = 20 },"
                .. "readyTimeout = 0.7, ready = { http = '/health', interval = 0.05, timeout = 0.2 }"),
        }
        m:await 'Worker was not ready in time: GET /health: nobody accepted in 0.2 s'
        m:finish()
    end)

    it('cannot be asked where others have its socket: the log says so, and the rule of its kind does', function()
        for _, kind in ipairs { 'lua', 'exec' } do
            local port = http.free_port()
            local case = kinds(port)[kind]
            local m = master.start { files = case.files, wrap = REFUSED,
                script = script(port, case.options .. "ready = { http = '/health' }"),
            }
            m:await 'Cluster ready'
            local said = m:records 'HTTP readiness check impossible, using the default rule'
            assert.same({ 2, 40, 'all workers have one socket at 127.0.0.1:' .. port }, { #said, said[1].level, said[1].reason })
            m:finish()
        end
    end)

    it('is refused where it cannot be, by name', function()
        local port = http.free_port()
        for options, reason in pairs {
            ["balance = 'shared', ready = { http = '/' }"] = 'ready: with balance = "shared" a worker cannot be asked alone',
            ["worker = { 'sleep', '1' }, ready = { http = '/' }"] = 'ready: a worker of kind "exec" is asked at a TCP address',
            ["worker = { 'sleep', '1' }, listen = 'unix:/x', ready = { http = '/' }"] = 'ready: a worker of kind "exec" is asked',
            ["worker = { 'sleep', '1' }, listen = ':80', ready = { http = '/', port = 81 }"] =
                'ready: no TCP address in listen has the port 81',
            ["ready = { http = 'health' }"] = 'ready.http: expected a path such as "/health", found "health"',
            ["ready = { http = '/a b' }"] = 'ready.http: expected a path',
            ["ready = { http = '/\\r\\nX: y' }"] = 'ready.http: expected a path',
            ["ready = { http = '/', host = 'a\\nb' }"] = 'ready.host: expected the name of a host',
            ["ready = { http = '/', intervall = 1 }"] = 'ready.intervall: unknown option (did you mean "interval"?)',
            ["ready = { http = '/', interval = 0 }"] = 'ready.interval: expected a number of seconds, at least 0.01',
            ["ready = { http = '/', timeout = 0/0 }"] = 'ready.timeout: expected a number of seconds',
            ["ready = { http = '/', port = 0 }"] = 'ready.port: expected an integer from 1 to 65535',
        } do
            local m = master.start { script = script(port, options), files = { ['app.lua'] = LUA } }
            m:exit()
            m:wait_until(function() return m.err_ended end)
            assert.matches(reason, m.stderr, 1, true)
            m:finish { code = 78 }
        end
    end)
end)
