-- The channel between the master and a worker: messages both ways, and what a broken or hostile worker can send.

local uv = require 'luv'
local files = require 'spec.support.files'
local master = require 'spec.support.master'

-- A worker without our library, in LuaJIT alone: it says that it is ready and then sends what attack.lua in its
-- directory returns, if it is in slot 1.
local RAW = [[
local uv = require 'luv'
local channel = uv.new_pipe(false)
channel:open(tonumber(os.getenv 'NODE_CHANNEL_FD'))
local attack = os.getenv 'DUTCH_MASTER_SLOT' == '1' and loadfile 'attack.lua'
channel:write '{"cmd":"NODE_DUTCH_READY"}\n'
if attack then attack()(channel) end
channel:read_start(function(_, data)
    if not data or data:find('disconnect', 1, true) then os.exit(0) end
end)
uv.run()
]]

local function start(more)
    more = more or {}
    more.script = more.script or [[local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', interpreter = 'luajit', restartSoak = 0,
            backoff = { first = 0.02, max = 0.02 }, stopTimeout = 3, killTimeout = 2,
            onMessage = function(worker, message) dutch.log:info({ id = worker.id, message = message }, 'hook: message') end }]]
    more.files = more.files or { ['app.lua'] = RAW }
    return master.start(more)
end

local function is_internal_error(record)
    return record.msg:find('Internal error', 1, true) ~= nil
end

-- Both slots are served, and nobody is on the way out.
local function is_quiet(m)
    local gone, serving = {}, 0
    for _, record in ipairs(m:records 'Worker exited') do
        gone[record.workerId] = true
    end
    for _, record in ipairs(m:records 'Worker listening') do -- who was killed before that never does
        serving = serving + (gone[record.workerId] and 0 or 1)
    end
    return serving == 2 and #m:records 'Creating new worker' - #m:records 'Worker exited' == 2
end

-- Puts the attack in place and has slot 1 forked anew. The record of the attacker's readiness.
local function attack(m, source)
    local ended
    repeat -- one that was ending already may have its successor, which knows nothing of it
        m:wait_until(function() return is_quiet(m) end, 'two workers')
        m:rewrite('attack.lua', 'return function(channel) ' .. source .. ' end')
        for _, pid in ipairs(m:workers()) do
            if pid ~= m.bystander and uv.kill(pid, 'sigkill') == 0 then
                ended = m:await { msg = 'Worker exited', workerPid = pid }
            end
        end
    until ended and ended.signal == 'SIGKILL'
    return m:await('Worker listening', { after = ended })
end

local function calm(m)
    os.remove(m:path 'attack.lua')
end

-- Closes its channel, with a reason in the log; the worker is replaced and nobody else touched.
local CLOSING = {
    { 'empty lines', [[channel:write(('\n'):rep(10000))]] },
    { 'not JSON', [[channel:write 'hello\n']] },
    { 'half a value', [[channel:write '{"a":\n']] },
    { 'a NUL', [[channel:write '\0\n']] },
    { 'no UTF-8 to speak of', [[channel:write '\255\254{}\n']] },
    { 'two values in a line', [[channel:write '{} {}\n']] },
    { 'deeply nested', [[channel:write(('['):rep(100000) .. (']'):rep(100000) .. '\n')]] },
    { 'deeply nested objects', [[channel:write(('{"a":'):rep(5000) .. '1' .. ('}'):rep(5000) .. '\n')]] },
    { 'without an end', [[channel:write(('x'):rep(33 * 1024 * 1024))]] },
    { 'without an end, in pieces', [[for _ = 1, 520 do channel:write(('"'):rep(65536)) end]] },
    { 'closed', [[channel:close()]] },
}

-- Says nothing, or nothing that could be understood: ignored.
local HARMLESS = {
    { 'other values', [==[channel:write '5\n"text"\n[]\n{}\ntrue\n[1,[2,[3]]]\n']==] },
    { 'unknown commands', [[channel:write '{"cmd":"NODE_WHATEVER"}\n{"cmd":"NODE_CLUSTER","act":"dance"}\n']] },
    { 'commands of other types', [[channel:write '{"cmd":5}\n{"cmd":"NODE_CLUSTER","act":5}\n{"cmd":"NODE_CLUSTER"}\n']] },
    { 'answers to nothing', [[channel:write '{"cmd":"NODE_CLUSTER","ack":99999}\n{"cmd":"NODE_HANDLE_ACK"}\n']] },
    { 'ready again and again', [[for _ = 1, 1000 do channel:write '{"cmd":"NODE_DUTCH_READY"}\n' end]] },
    { 'giant', [[channel:write(('x'):rep(9 * 1024 * 1024)) channel:write '\n']] },
    { 'giant in pieces', [[for _ = 1, 200 do channel:write(('"'):rep(65536)) end channel:write '\n']] },
    { 'absurd loads', [[channel:write '{"cmd":"NODE_DUTCH_LOAD","held":9007199254740991}\n']] },
    { 'a connection given back without one', [[channel:write '{"cmd":"NODE_HANDLE","msg":{"cmd":"NODE_DUTCH_RETURN","key":"1.1"}}\n']] },
    { 'foreign keys', [[channel:write '{"cmd":"NODE_CLUSTER","act":"close","key":"not mine"}\n']] },
}

describe('the channel', function()
    after_each(master.cleanup)

    it('carries messages of the app both ways', function()
        local m = start {
            script = [[local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', numWorkers = 1,
                    onWorkerReady = function(worker) worker:send { hello = worker.id, list = { 1, 2, { x = 'ü' } } } end,
                    onMessage = function(worker, message)
                        dutch.log:info({ id = worker.id, slot = worker.slot, message = message }, 'hook: message')
                        if message.stop then return end
                        worker:send { again = message, stop = true }
                    end }]],
            files = { ['app.lua'] = [[
                local worker = require 'dutch-master.worker'
                worker.on_message(function(message)
                    message.stop = message.stop or nil
                    worker.send(message)
                end)
                worker.ready()]] },
        }
        local first = m:await 'hook: message'
        assert.same({ 1, 1, { hello = 1, list = { 1, 2, { x = 'ü' } } } }, { first.id, first.slot, first.message })
        local second = m:await('hook: message', { count = 2 })
        assert.same({ again = { hello = 1, list = { 1, 2, { x = 'ü' } } }, stop = true }, second.message)
        m:finish()
    end)

    it('is closed to a worker that sends rubbish, and nobody else is touched', function()
        local m = start()
        m:await 'Cluster ready'
        m.bystander = m:records({ msg = 'Worker listening', workerId = 2 })[1].workerPid
        for _, case in ipairs(CLOSING) do
            local listening = attack(m, case[2])
            calm(m)
            local told = m:await(function(record)
                return record.workerId == listening.workerId and record.level >= 40
            end, { after = listening.index - 1 })
            if case[1] ~= 'closed' then
                assert.is_string(told.reason, case[1] .. m:dump())
            end
            m:await({ msg = 'Worker exited', workerId = listening.workerId }, { after = listening.index - 1 })
            m:await('Worker listening', { after = told })
            assert.equal(0, #m:records(is_internal_error), case[1] .. m:dump())
            assert.equal(0, #m:records { msg = 'Worker exited', workerPid = m.bystander }, case[1])
        end
        assert.is_true(files.rss_kb(m:process_pid()) < 64 * 1024 or os.getenv 'DM_SANITIZE' ~= nil, files.rss_kb(m:process_pid()) .. ' KiB')
        m:finish()
    end)

    it('ignores what says nothing', function()
        local m = start()
        m:await 'Cluster ready'
        m.bystander = m:records({ msg = 'Worker listening', workerId = 2 })[1].workerPid
        for _, case in ipairs(HARMLESS) do
            -- After it, an ordinary message still comes through.
            local listening = attack(m, case[2] .. [[ channel:write '{"still":"here"}\n']])
            m:await(function(record)
                return record.msg == 'hook: message' and record.id == listening.workerId
                    and type(record.message) == 'table' and record.message.still == 'here'
            end, { after = listening.index - 1 })
            calm(m)
            assert.equal(0, #m:records(is_internal_error), case[1] .. m:dump())
            assert.equal(0, #m:records { msg = 'Worker exited', workerId = listening.workerId }, case[1])
        end
        m:finish()
    end)

    it('answers impossible wishes for sockets with an error, not with a crash', function()
        local m = start()
        m:await 'Cluster ready'
        m.bystander = m:records({ msg = 'Worker listening', workerId = 2 })[1].workerPid
        for _, query in ipairs {
            '"address":"999.1.1.1","port":80,"addressType":4', '"address":null,"port":-5,"addressType":4',
            '"address":null,"port":1000000,"addressType":4', '"address":null,"port":"x","addressType":4',
            '"address":5,"port":80,"addressType":4', '"address":"/no/such/dir/sock","port":-1,"addressType":-1',
            '"port":8000', '"address":null,"port":null,"addressType":null', '"address":{},"port":[1],"addressType":{}',
            '"address":"::1","port":1.5,"addressType":6', '"address":"203.0.113.1","port":8000,"addressType":4',
            '"address":null,"port":0,"addressType":"udp9","index":"x"',
        } do
            local listening = attack(m, ([[channel:write '{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,%s}\n'
                channel:write '{"cmd":"NODE_CLUSTER","act":"listening","seq":2,%s}\n'
                channel:write '{"still":"here"}\n']]):format(query, query))
            local told = m:await(function(record)
                return record.msg == 'hook: message' and record.id == listening.workerId
                    or record.workerId == listening.workerId and record.reason ~= nil and not record.address
            end, { after = listening.index - 1 })
            if told.reason then
                m:await({ msg = 'Worker exited', workerId = listening.workerId }, { after = told })
            end
            calm(m)
            assert.equal(0, #m:records(is_internal_error), query .. m:dump())
        end
        assert.equal(0, #m:records { msg = 'Worker exited', workerPid = m.bystander })
        m:finish()
    end)

    it('to a worker that never reads is bounded', function()
        local m = start {
            script = [[local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', interpreter = 'luajit', stopTimeout = 1, killTimeout = 0.5,
                    hookTimeout = 60, -- it sends some megabytes
                    onMessage = function(worker)
                        local text, sent, refused, err = ('x'):rep(20000), 0, 0, nil
                        while sent < 1000 and refused < 50 do
                            local ok, message = worker:send { i = sent, text = text }
                            if ok then sent = sent + 1 else refused, err = refused + 1, message end
                        end
                        dutch.log:info({ sent = sent, err = err }, 'hook: sent')
                    end }]],
            files = { ['app.lua'] = [[
                local uv = require 'luv'
                local channel = uv.new_pipe(false)
                channel:open(tonumber(os.getenv 'NODE_CHANNEL_FD'))
                channel:write '{"cmd":"NODE_DUTCH_READY"}\n{"start":true}\n'
                local timer = uv.new_timer()
                timer:start(1e6, 0, function() end)
                uv.run()]] },
        }
        local told = m:await('hook: sent', { count = 2 })
        assert.is_true(told.sent < 1000, told.sent)
        assert.is_string(told.err)
        assert.is_true(files.rss_kb(m:process_pid()) < 48 * 1024 or os.getenv 'DM_SANITIZE' ~= nil, files.rss_kb(m:process_pid()) .. ' KiB')
        -- The request to leave cannot reach it either; SIGTERM does.
        m:signal 'SIGTERM'
        m:exit()
        assert.equal(2, #m:records { msg = 'Worker exited', signal = 'SIGTERM' })
        m:finish()
    end)

    it('flooded by one worker still serves the others', function()
        local m = start { files = { ['app.lua'] = [[
            local uv = require 'luv'
            local worker = require 'dutch-master.worker'
            worker.ready()
            if worker.slot == 1 then
                local line = ('x'):rep(200)
                local idle = uv.new_idle()
                idle:start(function() for i = 1, 100 do worker.send { i = i, line = line } end end)
            else
                worker.send 'from the other'
            end]] },
            script = [[local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', logger = dutch.logger { level = 'info' }, onMessage = function(worker, message)
                    if message == 'from the other' then dutch.log:info 'hook: heard' end
                end, stopTimeout = 2, killTimeout = 1 }]] }
        m:await 'hook: heard'
        m:signal 'SIGTTIN'
        m:await('Worker listening', { count = 3 })
        m:signal 'SIGTERM'
        m:exit()
        m:finish { code = m.ended.code }
        assert.is_truthy(m.ended.code == 0 or m.ended.code == 1)
    end)
end)
