-- Ten rolls of every preset with its real server, at a TCP address and, of php-fpm, at a unix path, while clients keep
-- their connections and others make a new one for each request; half of them with the readiness of the preset, half with
-- a page. Prints a table. No request fails, and nothing is left.
local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local servers = require 'spec.support.servers'
local wait = require 'spec.support.wait'

local ROLLS = 10

local function names_in(dir)
    local names, scan = {}, assert(uv.fs_scandir(dir))
    for name in uv.fs_scandir_next, scan do
        names[#names + 1] = name
    end
    table.sort(names)
    return names
end

local function row_of(server)
    local port, temporary = http.free_port(), master.temp_dir()
    local address = server.unix and 'unix:' .. temporary .. '/sock' or '127.0.0.1:' .. port
    local files = servers.files(server, 'good', address)
    local function script(ready)
        return ([[local dutch = require 'dutch-master'
            dutch.start { worker = %s, numWorkers = 2, listen = '%s', restartSoak = 0.1, restartAttempts = 1, %s }]])
            :format(server.worker, address, ready)
    end
    local m = master.start {
        script = script '', files = files,
        env = { TMPDIR = temporary, PYTHONDONTWRITEBYTECODE = '1' },
    }
    m:await('Cluster ready', { timeout = 60000 })
    local function clients(mode)
        return load.start { port = port, socket = server.unix and temporary .. '/sock' or nil, clients = 2, rate = 40,
            mode = mode, expect = '^works$', timeout = 30000, protocol = server.protocol,
            path = server.protocol and m.app .. '/index.php' }
    end
    local kept, fresh = clients 'keepalive', clients 'close'
    kept:await(2)
    fresh:await(2)
    for roll = 1, ROLLS do
        if roll > ROLLS / 2 and not server.protocol then
            m:rewrite('master.lua', script "ready = { http = '/' }")
        end
        local mark = m:mark()
        m:signal 'SIGUSR2'
        local verdict = m:await(function(record)
            return record.msg:find '^Restart complete' or record.msg:find '^Restart aborted'
        end, { after = mark, timeout = 60000 })
        assert.equal(server[1] .. ': Restart complete', server[1] .. ': ' .. verdict.msg, verdict.reason)
        m:await('Worker exited', { count = 2 * roll, timeout = 60000 })
    end
    kept:await(kept.counts.total + 4)
    fresh:await(fresh.counts.total + 4)
    local a, b = kept:stop(), fresh:stop()
    m:signal 'SIGTERM'
    m:exit()
    local expected = { 'master.lua', unpack(server.leaves or {}) }
    for file in pairs(files) do
        expected[#expected + 1] = file
    end
    table.sort(expected)
    assert.same(expected, names_in(m.app), server[1])
    assert.same({}, names_in(temporary), server[1])
    m:finish { code = 0 }
    return { server[1], a, b }
end

describe('presets', function()
    after_each(master.cleanup)

    it('are rolled again and again under load, and fail no request', function()
        local rows, list = {}, {}
        local found, missing = servers.installed()
        for i, server in ipairs(found) do
            list[i] = { server[1], function()
                local row = row_of(server)
                rows[#rows + 1] = row
            end }
        end
        wait.together(list, 3)
        print(('\n%-14s %5s %10s %6s %8s %10s %6s %8s'):format('server', 'rolls', 'keep-alive', 'failed', 'slowest',
            'per request', 'failed', 'slowest'))
        for _, row in ipairs(rows) do
            local a, b = row[2], row[3]
            print(('%-14s %5d %10d %6d %5d ms %11d %6d %5d ms'):format(row[1], ROLLS, a.total, a.failed, a.max_ms, b.total,
                b.failed, b.max_ms))
        end
        for _, row in ipairs(rows) do
            assert.same({ row[1], 0, 0 }, { row[1], row[2].failed - row[2].late, row[3].failed - row[3].late },
                row[2].text .. '; ' .. row[3].text)
        end
        assert.equal(#found, #rows)
        if #missing > 0 then
            pending('not installed: ' .. table.concat(missing, ', '))
        end
    end)
end)
