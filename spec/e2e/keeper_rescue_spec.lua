-- The master dies in the middle of a rescue: it has accepted a connection that waited for a busy worker, and the idle one
-- has it, has it in its channel, or was never given it. Whoever takes over finds out which: every request is answered, by
-- one worker, once. Workers of kind exec have no channel: for them nothing is accepted.

local cjson = require 'cjson'
local uv = require 'luv'
local cli = require 'spec.support.cli'
local files = require 'spec.support.files'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local points = require 'spec.support.faults'
local versions = require 'spec.support.node_versions'

local STEPS = 12 -- system calls that matter between the accept and the end of the rescue, about
local TOOK_OVER = 'The former master died, this one has taken over'
local MANY = 1000000
local SETTLED = 'Connections that the former master had in hand are settled'

-- Each notes in the file served what it was asked, and answers with its pid. /hold keeps it until somebody writes to the
-- pipe `go`.
local APPS = {
    lua = [[
        local uv = require 'luv'
        local worker = require 'dutch-master.worker'
        local dir = os.getenv 'DIR'
        local server = assert(worker.listen('127.0.0.1:' .. os.getenv 'PORT'))
        server:accept(function(connection)
            local seen = ''
            connection:read_start(function(_, data)
                if not data then return connection:is_closing() or connection:close() end
                seen = seen .. data
                local path = seen:match '^%u+ (%S+).*\r\n\r\n'
                if not path then return end
                local file = io.open(dir .. '/served', 'a')
                file:write(path, ' ', uv.os_getpid(), '\n')
                file:close()
                if path == '/hold' then io.open(dir .. '/go'):read '*a' end
                local body = tostring(uv.os_getpid())
                connection:write(('HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s'):format(#body, body))
                connection:shutdown()
            end)
        end)]],
    node = [[
        const fs = require('fs')
        require('http').createServer((request, response) => {
            fs.appendFileSync(process.env.DIR + '/served', `${request.url} ${process.pid}\n`)
            if (request.url === '/hold') fs.readFileSync(process.env.DIR + '/go')
            response.end(String(process.pid))
        }).listen({ port: +process.env.PORT, host: '127.0.0.1' })]],
    exec = [[
import os, socket
server, folder = socket.socket(fileno=3), os.environ['DIR']
while True:
    connection, seen, more = server.accept()[0], b'', b'?'
    while more and b'\r\n\r\n' not in seen:
        more = connection.recv(4096)
        seen += more
    if not more: # the master's own, which asks whether somebody accepts
        continue
    path, pid = seen.split()[1].decode(), os.getpid()
    with open(folder + '/served', 'a') as file:
        file.write('%s %d\n' % (path, pid))
    if path == '/hold':
        open(folder + '/go').read()
    connection.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%d' % (len(str(pid)), pid))
    connection.close()
]],
}

-- kind -> what its worker is
local WORKERS = { lua = "worker = 'app.lua'", node = "worker = 'app.js', interpreter = { %q }",
    exec = "worker = { '/usr/bin/python3', 'app.py' }, listen = '127.0.0.1:%d'" }

local World = {}
World.__index = World

local function start(kind, options)
    local self = setmetatable({ port = http.free_port(), dir = master.temp_dir(), asked = 0 }, World)
    self.faults = points.counter(self.dir)
    assert(os.execute(('mkfifo %s/go'):format(self.dir)) == 0)
    local worker = WORKERS[kind]:format(kind == 'node' and assert(versions.newest()) or self.port)
    self.m = kept.start { script = ([[require('dutch-master').start { %s, numWorkers = 2, restartSoak = 0,
            %s workerEnvironment = { DIR = %q, PORT = '%d', LD_PRELOAD = false } }]]):format(worker, options or '',
            self.dir, self.port), env = points.environment(self.dir),
        files = { ['app.lua'] = APPS.lua, ['app.js'] = APPS.node, ['app.py'] = APPS.exec } }
    self.m:await('Cluster ready', { timeout = 20000 })
    self.with_pauses = kept.without_pauses(self.m)
    return self
end

function World:served()
    local lines = {}
    for line in files.or_empty(self.dir .. '/served'):gmatch '[^\n]+' do
        lines[#lines + 1] = line
    end
    return lines
end

-- One request, on its way from now on. -> function() -> its answer, a pid; nil: it is not there yet
function World:request(path)
    self.asked = self.asked + 1
    local outcome = http.begin { port = self.port, path = path }
    return function()
        local how, body = outcome()
        assert(how == nil or how == 'done', tostring(how) .. self.m:dump())
        return how and tonumber(body)
    end
end

-- One worker is kept busy. -> its pid, function() -> whether that request is answered
function World:hold()
    local count = #self:served()
    local answered, pid = self:request '/hold', nil
    self.m:wait_until(function()
        for i = count + 1, #self:served() do
            pid = pid or tonumber(self:served()[i]:match '^/hold (%d+)$')
        end
        return pid
    end, 'a worker to be held')
    return pid, answered
end

function World:let_go()
    assert(io.open(self.dir .. '/go', 'w')):close() -- when somebody reads
end

function World:settle()
    self.m:wait_until(function()
        local out = cli.run(self.m, { 'status', self.m.script }).out
        return out:find('2 of 2 workers serving', 1, true) and out:find 'steady' and #self.m:workers() == 2
    end, 'two workers to serve')
    kept.await_quiet(self.m, self.keeper)
end

-- What became of connections in hand, over all masters.
function World:outcomes()
    local sums = { rescued = 0, taken = 0, closed = 0 }
    for _, record in ipairs(self.m:records(SETTLED)) do
        for name in pairs(sums) do
            sums[name] = sums[name] + (record[name] or 0)
        end
    end
    return sums
end

-- Descriptors of connections of ours that the process has.
function World:connections_of(pid)
    local found = 0
    local text = files.or_empty '/proc/net/tcp'
    local inodes = {}
    for line in text:gmatch '[^\n]+' do
        local port, state, inode = line:match '^%s*%d+: %x+:(%x+) %x+:%x+ (%x+) %S+ %S+ %S+%s+%d+%s+%d+%s+(%d+)'
        if port and tonumber(port, 16) == self.port and state ~= '0A' then
            inodes[inode] = true
        end
    end
    local scan = uv.fs_scandir(('/proc/%d/fd'):format(pid))
    for name in function() return scan and (uv.fs_scandir_next(scan)) end do
        local link = uv.fs_readlink(('/proc/%d/fd/%s'):format(pid, name)) or ''
        found = found + (inodes[link:match '^socket:%[(%d+)%]$' or ''] and 1 or 0)
    end
    return found
end

function World:nothing_left()
    local keeper = self.keeper or self.m.pid
    self.m:wait_until(function()
        return self:connections_of(keeper) == 0 and self:connections_of(kept.pid(self.m, keeper) or keeper) == 0
    end, 'no connection to be left with keeper and master')
end

function World:finish()
    self.with_pauses()
    self:nothing_left()
    assert.equal(0, self:outcomes().closed, self.m:dump())
    if self.keeper then
        assert.equal(0, cli.run(self.m, { 'stop', '--wait', self.m.script }).code, self.m:dump())
        return self.m:finish { signal = 'SIGKILL' }
    end
    self.m:finish { code = 0 }
end

describe('a master that dies in the middle of a rescue', function()
    after_each(master.cleanup)
    teardown(points.clean_up)

    for _, kind in ipairs { 'lua', 'node' } do
        it('costs no request: between any two of its steps, ' .. kind, function()
            local w = start(kind)
            for step = 1, STEPS do
                local deaths, answered = #w.m:records(TOOK_OVER), select(2, w:hold())
                w.faults.set(0, 0, step)
                local l = load.start { port = w.port, clients = 4, rate = 200, timeout = 20000, expect = '^%d+$' }
                w.m:await(TOOK_OVER, { count = deaths + 1, timeout = 20000 })
                w:let_go() -- where the other one is replaced, it alone can be given anything
                l:await(l.counts.total + 40)
                local counts = l:stop()
                w.asked = w.asked + counts.total
                assert.equal(0, counts.failed, ('step %d: '):format(step) .. counts.text .. w.m:dump())
                w.m:wait_until(answered, 'the held one')
                w:settle()
            end
            assert.equal(w.asked, #w:served())
            local sums = w:outcomes()
            assert.is_true(sums.rescued > 0, w.m:dump())
            assert.is_true(sums.taken > 0, w.m:dump())
            w:finish()
        end)

        -- Its only taker stands still from the accept on: what it is sent waits in its channel.
        -- @param go function(world): the master goes, nil: it dies as soon as that is sent
        local function in_its_channel(after, go)
            local w = start(kind, 'stallTimeout = 60,')
            local busy, held = w:hold()
            local other
            for _, pid in ipairs(w.m:workers()) do
                other = pid ~= busy and pid or other
            end
            w.faults.set(0, 0, go and MANY or 4, other)
            local waiting
            repeat -- until one comes to the busy worker
                waiting = w:request '/'
                w.m:wait_until(function()
                    return waiting() or select(2, w.faults.get()) == 0
                end, 'an answer, or a rescue')
            until not waiting()
            if go then
                w.faults.set(0)
                go(w)
            else
                w.m:await(TOOK_OVER)
            end
            assert.is_true(kept.is_stopped(other))
            w:let_go()
            w.m:wait_until(held, 'the held one')
            local l = load.start { port = w.port, clients = 4, rate = 200, timeout = 20000, expect = '^%d+$' }
            l:await(100) -- half a second
            assert.equal(0, #w.m:records(SETTLED))
            after(w, other)
            w.m:await(SETTLED)
            local counts = l:stop()
            assert.equal(0, counts.failed, counts.text .. w.m:dump())
            w.m:wait_until(waiting, 'its answer')
            w:settle()
            assert.equal(w.asked + counts.total, #w:served())
            return w
        end

        it('leaves to a worker what is in its channel: ' .. kind, function()
            local w = in_its_channel(function(_, other)
                uv.kill(other, 'sigcont')
            end)
            assert.same({ rescued = 0, taken = 1, closed = 0 }, w:outcomes())
            w:finish()
        end)

        it('goes on where its keeper dies, or another program follows: ' .. kind, function()
            for _, go in ipairs { function(w)
                w.keeper = kept.pid(w.m)
                uv.kill(w.m.pid, 'sigkill')
                w.m:await 'The former master has become the keeper, this one has taken over'
            end, function(w)
                assert.equal(0, cli.run(w.m, { 'upgrade', w.m.script }).code, w.m:dump())
            end } do
                local w = in_its_channel(function(_, other)
                    uv.kill(other, 'sigcont')
                end, go)
                assert.same({ rescued = 0, taken = 1, closed = 0 }, w:outcomes())
                w:finish()
            end
        end)

        it('gives others what was in the channel of a worker that died: ' .. kind, function()
            local w = in_its_channel(function(_, other)
                uv.kill(other, 'sigkill')
            end)
            assert.same({ rescued = 1, taken = 0, closed = 0 }, w:outcomes())
            w:finish()
        end)

        it('or does not die, leaves no descriptor behind: ' .. kind, function()
            local w = start(kind)
            local total
            w.m:wait_until(function()
                local _, held = w:hold()
                local l = load.start { port = w.port, clients = 40, timeout = 20000, expect = '^%d+$' }
                l:await(400)
                w:let_go()
                local counts = l:stop()
                w.asked = w.asked + counts.total
                assert.equal(0, counts.failed, counts.text .. w.m:dump())
                w.m:wait_until(held, 'the held one')
                total = cjson.decode(cli.run(w.m, { 'status', '--json' }).out).sockets.rescued
                return total >= 300
            end, 'three hundred rescues', { timeout = 60000 })
            assert.equal(w.asked, #w:served())
            w:nothing_left()
            kept.kill(w.m) -- nobody has anything in hand
            w:settle()
            assert.equal(0, #w.m:records(SETTLED))
            w:finish()
        end)
    end

    it('has accepted nothing where workers have no channel', function()
        local w = start 'exec'
        local _, held = w:hold()
        w.faults.set(0, 0, 1)
        local l = load.start { port = w.port, clients = 4, rate = 200, timeout = 20000, expect = '^%d+$' }
        l:await(50)
        kept.kill(w.m)
        l:await(l.counts.total + 50)
        w:let_go()
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text .. w.m:dump())
        w.m:wait_until(held, 'the held one')
        assert.equal(w.asked + counts.total, #w:served())
        assert.equal(1, (select(2, w.faults.get())))
        w:finish()
    end)
end)
