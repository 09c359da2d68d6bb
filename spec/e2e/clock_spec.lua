-- The clock of the day jumps, by years, forwards and back, in the middle of everything. No deadline is read from it.
local cjson = require 'cjson'
local uv = require 'luv'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local LIBRARY = '/usr/lib/' .. jit.arch:gsub('x64', 'x86_64'):gsub('arm64', 'aarch64')
    .. '-linux-gnu/faketime/libfaketime.so.1'
local YEAR = 31536000

local SERVER = [[
import os, signal, socket
if os.path.exists('deaf'):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
s = socket.socket(fileno=3)
s.setblocking(True)
while True:
    c, _ = s.accept()
    if c.recv(65536):
        c.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok')
    c.close()
]]

describe('a clock that jumps', function()
    after_each(master.cleanup)

    it('moves no deadline: of a boot, a crash, a roll, a hook, a stop', function()
        if os.getenv 'DM_SANITIZE' then
            return pending 'no library can be put before a sanitizer'
        elseif not uv.fs_stat(LIBRARY) then
            return pending 'faketime is not installed'
        end
        local port, dir = http.free_port(), master.temp_dir()
        local function jump(years)
            local file = assert(io.open(dir .. '/next', 'w'))
            file:write(('%+d\n'):format(years * YEAR))
            file:close()
            assert(os.rename(dir .. '/next', dir .. '/clock'))
        end
        jump(0)
        local m = master.start {
            script = ([[local dutch = require 'dutch-master'
                dutch.start { worker = { 'python3', 'server.py' }, numWorkers = 2, listen = '127.0.0.1:%d',
                    restartSoak = 0.3, backoff = { first = 0.2, max = 0.2 }, readyTimeout = 30, stopTimeout = 2,
                    killTimeout = 1, every = { 0.2, function() dutch.log:info 'ticks' end } }]]):format(port),
            files = { ['server.py'] = SERVER },
            env = { LD_PRELOAD = LIBRARY, FAKETIME_TIMESTAMP_FILE = dir .. '/clock', FAKETIME_NO_CACHE = '1',
                FAKETIME_DONT_FAKE_MONOTONIC = '1' },
        }
        m:await 'Creating new worker'
        jump(1)
        m:await 'Cluster ready'
        local began = uv.hrtime()
        local l = load.start { port = port, clients = 2, rate = 50 }
        local year = tonumber(os.date '!%Y')
        -- The first record after a jump that has its year: the master has seen it.
        local function seen(years)
            return m:await(function(record)
                return record.msg == 'ticks' and tonumber(record.time:sub(1, 4)) == year + years
            end, { after = m:mark() })
        end
        seen(1)

        jump(-5)
        seen(-5)
        local mark = m:mark()
        m:signal 'SIGUSR2'
        m:await({ msg = 'Worker listening', generation = 2 }, { after = mark })
        jump(7)
        m:await('Restart complete', { after = mark })
        m:await('Worker exited', { count = 2 })
        seen(7)

        local victim = m:records { msg = 'Worker listening', generation = 2 }[1].workerPid
        mark = m:mark()
        uv.kill(victim, 'sigkill')
        jump(-3)
        m:await({ msg = 'Worker listening', generation = 2 }, { after = mark })
        local status = cjson.decode(cli.run(m, { 'status', '--json' }).out)
        local real_ms = (uv.hrtime() - began) / 1e6 + 60000
        assert.is_true(status.uptime_ms < real_ms, tostring(status.uptime_ms))
        for _, worker in ipairs(status.workers) do
            assert.is_true(worker.uptime_ms < real_ms, tostring(worker.uptime_ms))
        end
        local counts = l:stop()
        assert.is_true(counts.failed <= 2, counts.text) -- what the killed one had

        m:rewrite('deaf', '')
        mark = m:mark()
        m:signal 'SIGUSR2'
        m:await('Restart complete', { after = mark })
        m:await('Worker exited', { count = 5 })
        local asked = uv.hrtime()
        m:signal 'SIGTERM'
        jump(2)
        m:exit()
        local took_ms = (uv.hrtime() - asked) / 1e6
        assert.is_true(took_ms > 1900 and took_ms < 2000 + 8000 * wait.scale, tostring(took_ms))
        m:finish { code = 1 }
    end)
end)
