-- What a worker can do to a socket that is not its own: it is found out, named, and put right, and the others' clients
-- see nothing of it.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local APP = [[
local ffi = require 'ffi'
local uv = require 'luv'
local worker = require 'dutch-master.worker'
ffi.cdef 'int shutdown(int, int); int listen(int, int); int fcntl(int, int, ...); int unlink(const char *);'
ffi.cdef 'int setsockopt(int, int, int, const void *, unsigned);'
local server = assert(worker.listen(os.getenv 'LISTEN'))
local deeds = {
    ['/shutdown'] = function() return ffi.C.shutdown(server.fd, 2) end,
    ['/backlog'] = function() return ffi.C.listen(server.fd, 3) end,
    ['/block'] = function() return ffi.C.fcntl(server.fd, 4, ffi.new('int', 0)) end,
    ['/filter'] = function() -- nobody new comes in, for ever
        local code = ffi.new('uint16_t[4]', 6)
        local program = ffi.new('struct { unsigned short length; const void *code; }', 1, code)
        return ffi.C.setsockopt(server.fd, 1, 26, program, ffi.sizeof(program))
            + ffi.C.setsockopt(server.fd, 1, 44, ffi.new('int[1]', 1), 4)
    end,
    ['/unlink'] = function() return ffi.C.unlink(server.path) end,
}
]] .. apps.accept .. [[
        local body = ('%s %d'):format(os.getenv 'DUTCH_MASTER_WORKER', deeds[path] and deeds[path]() or 0)
        connection:write(('HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s'):format(#body, body))
        connection:shutdown()
    end)
end)
]]

local function start(workers, where, options)
    local port = http.free_port()
    local m = master.start {
        script = ([[
            local dutch = require 'dutch-master'
            dutch.start { worker = 'app.lua', numWorkers = %d, %s workerEnvironment = { LISTEN = '%s' } }
            ]]):format(workers, options or '', ((where or '127.0.0.1:PORT'):gsub('PORT', port))),
        files = { ['app.lua'] = APP },
    }
    m.port = port
    m:await 'Cluster ready'
    return m
end

-- A worker does it, and the log says which and what.
local function misbehave(m, target, what)
    local status, body = http.get(target)
    assert.equal(200, status, body)
    local id, result = body:match '^(%d+) (%-?%d+)$'
    assert.equal('0', result)
    local record = m:await(function(record)
        return record.msg == 'Listening socket repaired' and record.repaired == what and record.level == 40
    end)
    assert.truthy(record.address)
    return tonumber(id), record
end

describe('a worker that', function()
    after_each(master.cleanup)

    it('shuts its lane down is found out, and serves again; the others\' clients do not notice', function()
        local m = start(4)
        local status, body = http.get { port = m.port, path = '/shutdown' }
        assert.equal(200, status)
        local l = load.start { port = m.port, clients = 8, rate = 400 }
        local record = m:await { msg = 'Listening socket repaired', repaired = 'shutdown' }
        assert.equal(tonumber(body:match '^%d+'), record.workerId)
        local again = record.workerId .. ' 0'
        m:wait_until(function() return l.bodies[again] end, 'an answer of it')
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        m:finish()
    end)

    it('shuts all lanes down, one after the other, costs nobody the port', function()
        local m = start(3)
        for round = 1, 6 do
            assert.equal(200, (http.get { port = m.port, path = '/shutdown' }))
            m:await({ msg = 'Listening socket repaired', repaired = 'shutdown' }, { count = round })
        end
        local l = load.start { port = m.port, clients = 8, rate = 800 }
        m:wait_until(function() return l.bodies['1 0'] and l.bodies['2 0'] and l.bodies['3 0'] end, 'all three')
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        m:finish()
    end)

    it('shuts the one socket down that all have costs those who come in the moment until it is put right', function()
        local m = start(2, nil, "balance = 'shared',")
        for round = 1, 8 do
            assert.equal(200, (http.get { port = m.port, path = '/shutdown' }))
            local began = uv.hrtime()
            local record = m:await({ msg = 'Listening socket repaired', repaired = 'shutdown' }, { count = round })
            assert((record.arrived - began) / 1e6 < 60 * wait.scale, (record.arrived - began) / 1e6)
            assert.equal(200, (http.get { port = m.port, path = '/' }))
        end
        m:finish()
    end)

    it('gives its lane another backlog is found out', function()
        local m = start(2)
        local id, record = misbehave(m, { port = m.port, path = '/backlog' }, 'backlog')
        assert.equal(id, record.workerId)
        m:finish()
    end)

    it('locks a filter on its lane is replaced, and nobody gets that lane again', function()
        local m = start(2)
        local _, body = http.get { port = m.port, path = '/filter' }
        local id, result = body:match '^(%d+) (%-?%d+)$'
        assert.equal('0', result)
        assert.equal(tonumber(id), m:await('Listening socket spoilt').workerId)
        m:await { msg = 'Worker exited', workerId = tonumber(id) }
        for _ = 1, 30 do -- each on a connection of its own
            assert.equal(200, (http.get { port = m.port, path = '/' }))
        end
        assert.equal(2, #m:workers())
        m:finish()
    end)

    it('makes a socket block that others share is found out', function()
        local m = start(2, nil, "balance = 'shared',")
        misbehave(m, { port = m.port, path = '/block' }, 'nonblock')
        m:finish()
    end)

    it('unlinks a unix path is found out, and the path is back', function()
        local dir = master.temp_dir()
        local path = dir .. '/app.sock'
        local m = start(2, 'unix:' .. path)
        misbehave(m, { socket = path, path = '/unlink' }, 'path')
        assert.equal('socket', uv.fs_stat(path).type)
        local l = load.start { socket = path, clients = 4, rate = 200 }
        l:await(100)
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        l:await(l.counts.total + 50)
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        m:finish()
        assert.is_nil(uv.fs_stat(path))
    end)
end)
