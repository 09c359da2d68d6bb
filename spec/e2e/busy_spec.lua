-- Workers that are busy for a moment: nobody waits for them while another is idle, and long-lived connections are spread
-- evenly over all.
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'
local uv = require 'luv'

-- Answers with its pid. /hold keeps the event loop from working for 400 ms.
local LUA = [[
local uv = require 'luv'
local worker = require 'dutch-master.worker'
local server = assert(worker.listen(os.getenv 'LISTEN'))
server:accept(function(connection)
    local seen = ''
    connection:read_start(function(_, data)
        if not data then return connection:is_closing() or connection:close() end
        seen = seen .. data
        local path = seen:match '^%u+ (%S+).*\r\n\r\n'
        if not path then return end
        seen = ''
        if path == '/hold' then require("luv").sleep(400) end
        local body = tostring(uv.os_getpid())
        connection:write(('HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s'):format(#body, body))
    end)
end)
]]

-- How the second, third and fourth of four workers answer that they take a connection. The first does as Node does.
local ODD = [[
const mode = ['as Node does', 'twice', 'late', 'never'][(require('cluster').worker.id - 1) % 4]
const send = process.send
process.send = function (message, ...rest) {
  if (!message || !('accepted' in message)) return send.call(this, message, ...rest)
  if (!process[mode]) console.log('answers ' + mode)
  process[mode] = true
  if (mode === 'late') setTimeout(() => send.call(this, message, ...rest), 700)
  if (mode === 'late' || mode === 'never') return true
  if (mode === 'twice') send.call(this, message, ...rest)
  return send.call(this, message, ...rest)
}
]]

local NODE = [[
require('http').createServer((request, response) => {
  if (request.url === '/hold') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 400)
  response.end(String(process.pid))
}).listen({ port: +process.env.PORT, host: '127.0.0.1' })
]]

-- The first of them says that it holds a million connections, or none, all the time.
local LIARS = { lua = LUA .. [[
if worker.id == 1 then
    local timer, much = uv.new_timer(), false
    timer:start(0, 5, function()
        much = not much
        worker.send { cmd = 'NODE_DUTCH_LOAD', held = much and 1000000 or 0, busy = much and 0 or 1000 }
    end)
    timer:unref()
end
]], node = NODE .. [[
let much = false
if (require('cluster').worker.id === 1) setInterval(() => {
  much = !much
  if (process.connected) {
    process.send({ cmd: 'NODE_DUTCH_LOAD', held: much ? 1000000 : 0, busy: much ? 0 : 1000 }, () => {})
  }
}, 5).unref()
]] }

-- Of 300 requests, 50 would wait for more than half of the time that a worker is held, if nobody helped.
local MANY = 30

local function sockets_of(pid)
    local dir, count = ('/proc/%d/fd'):format(pid), 0
    local scan = assert(uv.fs_scandir(dir))
    for name in function() return (uv.fs_scandir_next(scan)) end do
        count = count + ((uv.fs_readlink(dir .. '/' .. name) or ''):find '^socket:' and 1 or 0)
    end
    return count
end

describe('workers that are busy for a moment', function()
    after_each(master.cleanup)

    local function start(kind, count, options, app)
        local port = http.free_port()
        local interpreter = kind == 'node' and ("interpreter = { '%s' },"):format(versions.newest()) or ''
        local m = master.start {
            script = ([[require('dutch-master').start { worker = 'app.%s', numWorkers = %d, %s
                workerEnvironment = { LISTEN = '127.0.0.1:%d', PORT = '%d' }, %s }]]):format(
                kind == 'node' and 'js' or 'lua', count, interpreter, port, port, options or ''),
            files = { ['app.lua'] = kind == 'lua' and app or LUA, ['app.js'] = app or NODE },
        }
        m:await('Cluster ready', { timeout = 20000 })
        return m, port
    end

    local function totals(m)
        return cjson.decode(cli.run(m, { 'status', '--json' }).out).sockets
    end

    for _, kind in ipairs { 'lua', 'node' } do
        it('keep nobody waiting: ' .. kind, function()
            local m, port = start(kind, 3)
            local before = totals(m)
            -- A third of all workers is held all the time, so lanes are the only ones that do not know.
            local held = load.start { port = port, clients = 1, path = '/hold', timeout = 20000 }
            local l = load.start { port = port, clients = 4, rate = 150, timeout = 20000, slow_ms = 200 * wait.scale, expect = '^%d+$' }
            l:await(300)
            local quick, slow = l:stop(), #l.slow
            local heavy = held:stop()
            assert.equal(0, quick.failed + heavy.failed, quick.text .. heavy.text .. m:dump())
            local after = totals(m)
            assert.is_true(after.rescued > before.rescued, m:dump())
            assert.is_true(after.busy > before.busy)
            assert.is_true(slow <= MANY, ('%d of %d waited'):format(slow, quick.total))
            assert.is_true(#m:records 'Worker stalled' <= 1) -- a busy machine holds a process up for a second
            assert.equal(0, #m:records 'Waiting connections handed to other workers')
            m:finish()
        end)
    end

    it('and answer a rescue twice, late or never, cost nobody anything', function()
        local m, port = start('node', 4, 'stopTimeout = 3, killTimeout = 1,', ODD .. NODE)
        local before = sockets_of(m:process_pid())
        local held = load.start { port = port, clients = 2, path = '/hold', timeout = 20000 }
        local l = load.start { port = port, clients = 8, rate = 300, timeout = 20000, expect = '^%d+$' }
        for _, mode in ipairs { 'twice', 'late', 'never' } do
            m:await_output('answers ' .. mode, { timeout = 20000 })
        end
        l:await(l.counts.total + 300)
        local quick, heavy = l:stop(), held:stop()
        assert.equal(0, quick.failed + heavy.failed, quick.text .. heavy.text .. m:dump())
        assert.is_true(totals(m).rescued > 0)
        assert.equal(0, #m:records 'Worker exited', m:dump())
        -- The master's copies of what was never answered go after stopTimeout.
        wait.wait_until(function() return sockets_of(m:process_pid()) <= before end, { what = 'the copies to be closed' })
        m:finish()
    end)

    for _, kind in ipairs { 'lua', 'node' } do
        it('all of them, one alone, and one that lies about what it holds, lose nobody: ' .. kind, function()
            local m, port = start(kind, 2, nil, LIARS[kind])
            local held = load.start { port = port, clients = 4, path = '/hold', timeout = 20000, expect = '^%d+$' }
            local l = load.start { port = port, clients = 4, rate = 100, timeout = 20000, expect = '^%d+$' }
            held:await(10)
            assert.equal(0, cli.run(m, { 'scale', '1' }).code)
            m:await('Worker exited', { timeout = 20000 })
            held:await(held.counts.total + 4)
            local quick, heavy = l:stop(), held:stop()
            assert.equal(0, quick.failed + heavy.failed, quick.text .. heavy.text .. m:dump())
            assert.equal(2, #m:records 'Worker listening')
            m:finish()
        end)
    end

    it('are not made worse by the shortest stallTimeout', function()
        local m, port = start('lua', 3, 'stallTimeout = 0.05')
        local held = load.start { port = port, clients = 1, path = '/hold', timeout = 20000 }
        local l = load.start { port = port, clients = 4, rate = 150, timeout = 20000, slow_ms = 200 * wait.scale, expect = '^%d+$' }
        l:await(300)
        local quick, slow = l:stop(), #l.slow
        held:stop()
        assert.equal(0, quick.failed, quick.text)
        assert.is_true(slow <= MANY, ('%d of %d waited'):format(slow, quick.total))
        m:finish()
    end)
end)

describe('long-lived connections', function()
    after_each(master.cleanup)

    -- So many connections, one after the other with a gap, each kept: how many each worker has, most first.
    local function spread(port, count, gap_ms)
        local held, handles, opened, answered = {}, {}, 0, 0
        local timer = uv.new_timer()
        timer:start(0, gap_ms, function()
            opened = opened + 1
            if opened == count then
                timer:close()
            end
            local parser = http.parser()
            handles[#handles + 1] = http.connect({ port = port }, function(err, handle)
                assert(not err, err)
                handle:write(http.request_text({ port = port }, true))
                handle:read_start(function(_, data)
                    if data and not parser.done and parser:feed(data) == 'done' then
                        parser.done, answered = true, answered + 1
                        held[parser.body] = (held[parser.body] or 0) + 1
                    end
                end)
            end)
        end)
        wait.wait_until(function()
            return answered == count
        end, { what = 'answers', timeout = 30000 })
        local list = {}
        for _, number in pairs(held) do
            list[#list + 1] = number
        end
        table.sort(list, function(a, b)
            return a > b
        end)
        return list, function()
            for _, handle in ipairs(handles) do
                handle:close()
            end
            wait.turn()
        end
    end

    -- Promised are 32 of 160, which chance alone keeps as well; 22 it seldom does.
    for _, case in ipairs { { 'node', 4, 12, 4 }, { 'lua', 4, 12, 4 }, { 'lua', 8, 160, 22 }, { 'node', 8, 160, 22 } } do
        local kind, workers, count, most = unpack(case)
        it(('are spread evenly: %d over %d workers of kind %s'):format(count, workers, kind), function()
            local port = http.free_port()
            local interpreter = kind == 'node' and ("interpreter = { '%s' },"):format(versions.newest()) or ''
            local m = master.start {
                script = ([[require('dutch-master').start { worker = 'app.%s', numWorkers = %d, %s
                    workerEnvironment = { LISTEN = '127.0.0.1:%d', PORT = '%d' } }]]):format(
                    kind == 'node' and 'js' or 'lua', workers, interpreter, port, port),
                files = { ['app.lua'] = LUA, ['app.js'] = NODE },
            }
            m:await('Cluster ready', { timeout = 20000 })
            -- On a machine that is busy with other things a worker's word may come late: it may be tried again.
            local held, close
            for _ = 1, 3 do
                -- (Longer where all is slow, as far as that does not make 20 s of 160.)
                held, close = spread(port, count, 20 * math.min(wait.scale, 480 / count))
                close()
                if held[1] <= most then
                    break
                end
            end
            io.stdout:write('[' .. table.concat(held, ' ') .. '] ')
            assert.is_true(held[1] <= most, table.concat(held, ' '))
            m:finish()
        end)
    end
end)
