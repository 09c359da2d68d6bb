-- Readiness of a worker that was given sockets, by balance and by address: a release that accepts elsewhere is told from
-- one that accepts here wherever a lane shows it. Prints a table.
local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local SERVER = [[
import os, signal, socket
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
s = socket.socket(fileno=3)
if os.path.exists('elsewhere'):
    n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    n.sendto(b'READY=1', os.environ['NOTIFY_SOCKET']) # whatever it says
    s = socket.socket()
    s.bind(('127.0.0.1', 0))
    s.listen()
if s.type == socket.SOCK_DGRAM:
    signal.pause()
s.setblocking(True)
while True:
    c, _ = s.accept()
    if c.recv(65536):
        c.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok')
    c.close()
]]

local BALANCES = { 'queue', 'steered', 'sticky', 'shared' }
local PLACES = { '127.0.0.1', '0.0.0.0', '[::1]', 'both', 'unix', 'udp' }

-- No more can be known there than that it lives.
local function is_unseen(balance, place)
    return balance == 'shared' or place == 'unix' or place == 'udp'
end

local function address_of(place, port, dir)
    return place == 'unix' and 'unix:' .. dir .. '/sock' or place == 'udp' and 'udp:127.0.0.1:' .. port
        or (place == 'both' and '' or place) .. ':' .. port
end

local function try(balance, place)
    local port, dir = http.free_port(), master.temp_dir()
    local function script(ready_s)
        return ([[require('dutch-master').start { worker = { 'python3', 'server.py' }, numWorkers = 1,
            listen = '%s', balance = '%s', restartAttempts = 1, restartSoak = 0, readyTimeout = %d }]]):format(
            address_of(place, port, dir), balance, ready_s)
    end
    local m = master.start { script = script(60), files = { ['server.py'] = SERVER } }
    m:await('Cluster ready', { timeout = 60000 })
    local clients = not is_unseen(balance, place) and load.start { port = port, clients = 1, rate = 20, expect = '^ok$',
        host = place == '[::1]' and '::1' or nil }
    m:rewrite('elsewhere', '')
    m:rewrite('master.lua', script(3))
    local mark = m:mark()
    m:signal 'SIGUSR2'
    local verdict = m:await(function(record)
        return record.msg == 'Restart complete' or record.msg:find '^Restart aborted' ~= nil
    end, { after = mark, timeout = 20000 })
    local counts = clients and clients:stop() or { ok = 0, failed = 0, text = 'no clients' }
    m:finish { code = 0 }
    return { balance = balance, place = place, verdict = verdict.msg == 'Restart complete' and 'done' or 'aborted',
        reason = verdict.reason or '', counts = counts }
end

describe('a worker that accepts elsewhere', function()
    after_each(master.cleanup)

    it('is found out wherever a lane shows it: by balance and address', function()
        local list, rows = {}, {}
        local ipv6 = uv.fs_stat '/proc/net/if_inet6' ~= nil
        for i, balance in ipairs(BALANCES) do
            for _, place in ipairs(PLACES) do
                -- To our program the ways of a balance are the same at each address.
                local chosen = not os.getenv 'DM_SANITIZE' or i == 1
                if chosen and (ipv6 or place ~= '[::1]') then
                    list[#list + 1] = { balance .. ' ' .. place, function()
                        local row = try(balance, place)
                        rows[#rows + 1] = row
                    end }
                end
            end
        end
        wait.together(list, 8)
        table.sort(rows, function(a, b)
            return a.balance .. a.place < b.balance .. b.place
        end)
        print(('\n%-8s %-10s %-8s'):format('balance', 'address', 'verdict'))
        for _, row in ipairs(rows) do
            print(('%-8s %-10s %-8s'):format(row.balance, row.place, row.verdict))
        end
        for _, row in ipairs(rows) do
            local unseen = is_unseen(row.balance, row.place)
            local what = row.balance .. ' ' .. row.place .. ': '
            assert.equal(what .. (unseen and 'done' or 'aborted'), what .. row.verdict, row.reason)
            if not unseen then
                assert.matches('nobody accepted a connection at ', row.reason, 1, true)
                assert.matches('ready = { port = n }', row.reason, 1, true)
                assert.equal(0, row.counts.failed, what .. row.counts.text)
                assert.is_true(row.counts.ok > 0, what .. row.counts.text)
            end
        end
        assert.equal(#list, #rows)
    end)
end)
