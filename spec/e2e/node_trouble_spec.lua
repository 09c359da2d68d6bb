-- Node workers that crash, hang, or write junk on their channel: the others serve on, the master lives.
local uv = require 'luv'
local files = require 'spec.support.files'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local versions = require 'spec.support.node_versions'

-- An app that does what /eval?code says, in the middle of a request that is then never answered.
local OBEDIENT = app.http:gsub('const ms =', [[
    const url = new URL(request.url, 'http://x')
    if (url.pathname === '/eval') return eval(url.searchParams.get('code'))
    const ms =]])

local function encode(code)
    return (code:gsub('[^%w]', function(char)
        return ('%%%02X'):format(char:byte())
    end))
end

-- Sends code to whichever worker gets the connection, and does not wait for an answer.
local function send_code(port, code)
    local done, handle = false, nil
    handle = http.connect({ port = port }, function(err)
        assert(not err, err)
        handle:write(('GET /eval?code=%s HTTP/1.1\r\nHost: x\r\n\r\n'):format(encode(code)), function()
            done = true
        end)
        handle:read_start(function() end)
    end)
    master.wait_until(function() return done end)
    return handle
end

-- The master's other descriptors come and go with what it waits for.
local function open_sockets(pid)
    local dir, count = ('/proc/%d/fd'):format(pid), 0
    local scan = assert(uv.fs_scandir(dir))
    for name in function() return (uv.fs_scandir_next(scan)) end do
        if (uv.fs_readlink(dir .. '/' .. name) or ''):find '^socket:' then
            count = count + 1
        end
    end
    return count
end

-- Where the version of Node matters little, and time does.
local SOME = { '18', '22', '26' }

describe('a Node worker', function()
    after_each(master.cleanup)

    local ENDS = {
        { code = 'process.exit(7)', exit = 7 },
        { code = 'setImmediate(() => { throw new Error("x") })', exit = 1 },
        { code = 'process.kill(process.pid, "SIGKILL")', signal = 'SIGKILL' },
    }
    versions.it('exits, throws or is killed in the middle of a request, and the others serve on', function(_, binary)
        local m, port = app.start { binary = binary, app = OBEDIENT, workers = 3 }
        for i, case in ipairs(ENDS) do
            local clients = load.start { port = port, mode = 'close', clients = 8 }
            clients:await(50)
            local handle = send_code(port, case.code)
            local exited = m:await('Worker exited', { count = i })
            assert.same({ case.exit, case.signal }, { exited.code, exited.signal })
            assert.is_true(m:await('Worker listening', { count = 3 + i }).index > exited.index)
            clients:await(clients.counts.total + 50)
            local counts = clients:stop()
            -- Only what the dead worker had in hand may be lost: 8 clients over 3 workers.
            assert.is_true(counts.failed <= 8, counts.text)
            assert.equal(0, counts.refused + counts.timeout, counts.text)
            handle:close()
        end
        m:finish { code = 0 }
    end)

    versions.it('that closes its server is replaced at once, and has its time for what it is doing', function(_, binary)
        local m, port = app.start {
            binary = binary, app = OBEDIENT, plan = "onMessage = function() dutch.log:info 'it closed' end,",
        }
        local handle = send_code(port, 'server.close(() => {}); process.send(1)')
        m:await 'it closed'
        local clients = load.start { port = port, mode = 'close', clients = 4 }
        m:await('Worker listening', { count = 3 })
        clients:await(clients.counts.total + 100)
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.equal(0, #m:records 'Worker stalled') -- nobody waited for that to be noticed
        -- The request in which it closed its server has no answer yet.
        assert.same({ 3, 0 }, { #m:workers(), #m:records 'Worker exited' })
        handle:close()
        m:await 'Worker exited'
        assert.equal(2, #m:workers())
        m:finish { code = 0 }
    end)

    versions.it('that spins for ever is steered around, and ended at the deadline', function(_, binary)
        local m, port = app.start {
            binary = binary, app = OBEDIENT, plan = [[
                stopTimeout = 3, killTimeout = 3,
                onMessage = function() dutch.log:info 'it spins' end,
            ]],
        }
        -- What it had accepted before is lost with it, so the others come after.
        local handle = send_code(port, 'process.send(1); while (true);')
        m:await 'it spins'
        local clients = load.start { port = port, mode = 'close', clients = 8, timeout = 8000 }
        clients:await(200)
        local before = clients.counts.max_ms
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.is_true(before < 6000, counts.text)
        handle:close()
        m:signal 'SIGTERM'
        m:await('Worker exited', { count = 2, timeout = 6000 })
        m:finish { code = 0 } -- SIGTERM ends it, with no handler in the app it needs no loop
    end, { versions = SOME }) -- a core each
end)

describe('on the channel of a Node worker', function()
    after_each(master.cleanup)

    local JUNK = {
        { 'garbage', [[fs.writeSync(3, 'this is not the protocol\n')]] },
        { 'an empty line', [[fs.writeSync(3, '\n')]] },
        { 'random bytes', [[fs.writeSync(3, require('crypto').randomBytes(1000)); fs.writeSync(3, '\n')]] },
        { 'half a line and the end', [[fs.writeSync(3, '{"half":'); process.exit(0)]] },
        { 'half a line, then a whole one', [[fs.writeSync(3, '{"half":'); process.send({ whole: true })]] },
        { '64 MiB without a newline', [[
            // Without a turn of its loop, in which the preload would end the line by a report.
            const chunk = Buffer.alloc(65536, 120)
            for (let left = 1024; left > 0;) {
                try { fs.writeSync(3, chunk); left-- } catch (e) { if (e.code !== 'EAGAIN') throw e }
            }]] },
        { 'a value nested too deeply', [[fs.writeSync(3, '['.repeat(5000) + ']'.repeat(5000) + '\n')]] },
        { 'a query without its number', [[fs.writeSync(3, '{"cmd":"NODE_CLUSTER","act":"queryServer"}\n')]] },
    }
    versions.it('junk of any sort costs that worker its channel and nobody else anything', function(_, binary)
        local m, port = app.start {
            binary = binary, app = 'const fs = require("fs")\n' .. OBEDIENT, workers = 3,
            plan = 'backoff = { first = 0.05, max = 0.05 },',
        }
        for i, junk in ipairs(JUNK) do
            local clients = load.start { port = port, mode = 'close', clients = 4 }
            local handle = send_code(port, junk[2])
            m:await('Worker exited', { count = i, timeout = 40000 })
            m:await('Worker listening', { count = 3 + i })
            clients:await(clients.counts.total + 20)
            local counts = clients:stop()
            assert.is_true(counts.failed <= 4, junk[1] .. ': ' .. counts.text)
            assert.same({ 3, i }, { #m:workers(), #m:records 'Worker exited' }, junk[1])
            handle:close()
        end
        local limit = os.getenv 'DM_SANITIZE' and 400000 or 40000
        assert.is_true(files.rss_kb(m:process_pid()) < limit, 'the master grew to ' .. files.rss_kb(m:process_pid()) .. ' KiB')
        m:finish { code = 0 }
    end, { versions = SOME })

    versions.it('500 descriptors are thrown away', function(_, binary)
        local m, port = app.start {
            binary = binary, app = OBEDIENT,
            plan = "onMessage = function(_, what) if what == 'all sent' then dutch.log:info(what) end end,",
        }
        local clients = load.start { port = port, mode = 'close', clients = 4 }
        clients:await(20)
        local before = open_sockets(m:process_pid())
        local handle = send_code(port, [[
            const net = require('net')
            const own = net.createServer(() => {}).listen({ port: 0, exclusive: true, host: '127.0.0.1' }, () => {
                let left = 500
                const next = () => {
                    if (left-- === 0) return process.send('all sent')
                    const s = net.connect(own.address().port, '127.0.0.1', () => process.send({ n: left }, s, next))
                }
                next()
            })
        ]])
        m:await('all sent', { timeout = 40000 })
        -- The message has called the script: its processes have sockets too, a few.
        m:wait_until(function()
            return open_sockets(m:process_pid()) <= before + 8
        end, 'the descriptors to be closed', { timeout = 15000 })
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.equal(0, #m:records 'Worker exited')
        handle:close()
        m:finish { code = 0 }
    end)

    versions.it('what is never read is bounded, and the others serve on', function(_, binary)
        local m, port = app.start {
            binary = binary, app = OBEDIENT, plan = [[
                stopTimeout = 3, killTimeout = 3, hookTimeout = 30,
                onMessage = function(worker)
                    local text, refused = ('x'):rep(20000), 0
                    for i = 1, 1000 do
                        refused = refused + (worker:send { i = i, text = text } and 0 or 1)
                    end
                    dutch.log:info({ refused = refused }, 'sent')
                end,
            ]],
        }
        local handle = send_code(port, 'process.send(1); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)')
        assert.is_true(m:await('sent').refused > 500)
        local kb = files.rss_kb(m:process_pid())
        assert.is_true(kb < (os.getenv 'DM_SANITIZE' and 400000 or 40000), kb .. ' KiB')
        local clients = load.start { port = port, mode = 'close', clients = 8, timeout = 8000 }
        clients:await(200)
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.equal(0, #m:records 'Worker exited')
        handle:close()
        m:signal 'SIGTERM'
        m:await('Worker exited', { count = 2, timeout = 6000 })
        m:finish { code = 0 }
    end, { versions = SOME })
end)
