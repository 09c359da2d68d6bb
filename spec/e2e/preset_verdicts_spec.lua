-- Releases of all sorts in the servers that presets know: the verdict of each restart, what the clients saw meanwhile.
-- Prints a table. No verdict may be wrong; but for one that crashes with requests in hand, no request may fail.
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local servers = require 'spec.support.servers'
local wait = require 'spec.support.wait'

-- A good release may take long on a busy machine; those that come to nothing need not, but for one that must be seen to
-- answer.
local READY_S, SHORT_S, PAGE_S = 60, 3, 6

local function script_of(server, how, address, other)
    local page = how == 'fails at a request'
    local in_vain = how == 'other port' or how == 'never listens' or server[1] == 'unicorn' and how:find '^fails'
    return ([[local dutch = require 'dutch-master'
        dutch.start { worker = %s, numWorkers = 1, listen = '%s', restartAttempts = 1, readyTimeout = %g,
            restartSoak = 0.8, stopTimeout = 6, killTimeout = 2, workerOutput = dutch.directory .. '/output', %s }]])
        :format(servers.worker(server, how, other), address, page and PAGE_S or in_vain and SHORT_S or READY_S,
            page and "ready = { http = '/' }" or '')
end

local function is_verdict(record)
    return record.msg == 'Restart complete' or record.msg:find '^Restart aborted' ~= nil
end

local function rows_of(server, rows)
    local port, other = http.free_port(), '127.0.0.1:' .. http.free_port()
    local address = '127.0.0.1:' .. port
    local m = master.start { script = script_of(server, 'good', address, other),
        files = servers.files(server, 'good', address, other),
        env = { TMPDIR = master.temp_dir(), PYTHONDONTWRITEBYTECODE = '1' } }
    m:await('Cluster ready', { timeout = 60000 })
    for i, release in ipairs(servers.releases(server)) do
        local how = release[1]
        local clients = load.start { port = port, clients = 2, rate = 60, expect = 'works', timeout = 20000,
            protocol = server.protocol, path = server.protocol and m.app .. '/index.php' }
        clients:await(2)
        for name, text in pairs(servers.files(server, how, address, other)) do
            m:rewrite(name, text)
        end
        m:rewrite('master.lua', script_of(server, how, address, other))
        local mark = m:mark()
        m:signal 'SIGUSR2'
        local verdict = m:await(is_verdict, { after = mark, timeout = 90000 })
        clients:await(clients.counts.total + 4)
        local counts = clients:stop()
        rows[#rows + 1] = { number = i, server = server[1], release = how, wanted = release[2],
            verdict = verdict.msg == 'Restart complete' and 'done' or 'aborted', failed = counts.failed - counts.late,
            slowest_ms = counts.max_ms, text = counts.text, reason = verdict.reason or '', address = address }
        if release[2] == 'done' then
            m:await({ msg = 'Worker exited', generation = verdict.generation - 1 }, { timeout = 30000 })
        end
    end
    m:finish { code = 0 }
end

describe('releases in servers', function()
    after_each(master.cleanup)

    it('get the verdict that is true, and cost nobody a request', function()
        local rows, list = {}, {}
        local found, missing = servers.installed()
        for _, server in ipairs(found) do
            list[#list + 1] = not server.unix and { server[1], function()
                rows_of(server, rows)
            end } or nil
        end
        wait.together(list, 6) -- they wait most of their time
        table.sort(rows, function(a, b)
            return a.server < b.server or a.server == b.server and a.number < b.number
        end)
        print(('\n%-10s %-20s %-8s %6s %8s'):format('server', 'release', 'verdict', 'failed', 'slowest'))
        for _, row in ipairs(rows) do
            print(('%-10s %-20s %-8s %6d %5d ms'):format(row.server, row.release, row.verdict, row.failed, row.slowest_ms))
        end
        for _, row in ipairs(rows) do
            local what = row.server .. ', ' .. row.release .. ': '
            assert.equal(what .. row.wanted, what .. row.verdict, row.reason)
            -- Lost with a crash is what it has in hand, and what still comes to its queue until it is known: of each client.
            assert.is_true(row.failed <= (row.release == 'ready, then crashes' and 4 or 0), what .. row.text)
            if row.release == 'other port' and not row.reason:find 'exited with' then
                assert.matches('nobody accepted a connection at ' .. row.address, row.reason, 1, true)
                assert.matches('ready = { port = n }', row.reason, 1, true)
            elseif row.release == 'fails at a request' then
                assert.matches('GET /', row.reason, 1, true)
            end
        end
        if #missing > 0 then
            pending('not installed: ' .. table.concat(missing, ', '))
        end
    end)
end)
