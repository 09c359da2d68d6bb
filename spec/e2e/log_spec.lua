-- Where the log goes, in what form, and that nothing that happens to it holds up the master.

local uv = require 'luv'
local cjson = require 'cjson'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local read = require('spec.support.files').or_empty

-- Every line is a record, whole.
local function records(text)
    local list = {}
    for line in text:gmatch '[^\n]+' do
        list[#list + 1] = cjson.decode(line)
    end
    return list
end

local function with_message(list, message)
    local found = {}
    for _, record in ipairs(list) do
        if record.msg == message then
            found[#found + 1] = record
        end
    end
    return found
end

local function start(options, more)
    more = more or {}
    more.script = ([[local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', restartSoak = 0, %s }]]):format(options or '')
    more.files = more.files or { ['app.lua'] = apps.idle }
    return master.start(more)
end

-- A server whose master has its stdout where the spec wants it.
local function start_with_stdout(target, options)
    local port = http.free_port()
    local m = start(([[workerOutput = 'null', workerEnvironment = { LISTEN = '127.0.0.1:%d' }, %s]]):format(port,
        options or ''), {
        files = { ['app.lua'] = apps.http },
        wrap = { 'sh', '-c', 'exec "$0" "$@" >' .. target },
    })
    m.wrapped = false -- sh becomes the master
    m.port = port
    return m
end

local function answers(m)
    return http.get { port = m.port } == 200
end

describe('the log', function()
    after_each(master.cleanup)

    it('has the level that was asked for', function()
        local quiet = start "logger = dutch.logger { level = 'warn' },"
        local chatty = start "logger = dutch.logger { level = 'debug', name = 'chatty' },"
        chatty:await 'Cluster ready'
        quiet:wait_until(function() return #quiet:family() == 3 end, 'two workers')
        for _, pid in ipairs(quiet:family()) do
            if pid ~= quiet.pid then uv.kill(pid, 'sigkill') end
        end
        quiet:await(function(record) -- or, if it had only begun: disconnected unexpectedly while starting
            return record.msg:find '^Worker disconnect' ~= nil
        end, { count = 2 })
        quiet:finish()
        for _, record in ipairs(quiet.log) do
            assert.is_true(record.level >= 40, record.msg)
        end
        assert.equal('chatty', chatty.log[1].name)
        chatty:finish()
    end)

    it('goes to a file, which SIGUSR1 opens anew without losing a record', function()
        local dir = master.temp_dir()
        local m = start(([[logger = dutch.logger { path = '%s/log' }, every = { 0.01, function()
            dutch.store.n = (dutch.store.n or 0) + 1
            dutch.log:info({ n = dutch.store.n }, 'tick')
        end },]]):format(dir))
        for i = 1, 3 do
            m:wait_until(function() return read(dir .. '/log'):find '"tick"' end, 'records')
            assert(uv.fs_rename(dir .. '/log', dir .. '/log.' .. i))
            m:signal 'SIGUSR1'
            m:wait_until(function() return read(dir .. '/log'):find '"Log reopened"' end, 'the new file')
        end
        m:finish()
        assert.same({}, m.log)
        local all = records(read(dir .. '/log.1') .. read(dir .. '/log.2') .. read(dir .. '/log.3') .. read(dir .. '/log'))
        local ticks = with_message(all, 'tick')
        for i, record in ipairs(ticks) do
            assert.equal(i, record.n)
        end
        assert.is_true(#ticks >= 3)
        assert.equal(3, #with_message(all, 'Log reopened'))
        assert.equal(1, #with_message(all, 'Cluster shutdown cleanly'))
    end)

    it('stays where it is if it cannot be opened anew', function()
        local dir = master.temp_dir()
        assert(uv.fs_mkdir(dir .. '/sub', 511))
        local m = start(([[logger = dutch.logger { path = '%s/sub/log' },]]):format(dir))
        m:wait_until(function() return read(dir .. '/sub/log'):find '"Cluster ready"' end, 'the cluster')
        assert(uv.fs_rename(dir .. '/sub', dir .. '/moved'))
        m:signal 'SIGUSR1'
        m:wait_until(function() return read(dir .. '/moved/log'):find 'could not be reopened' end, 'the complaint')
        m:finish()
        assert.matches('"Cluster shutdown cleanly"', read(dir .. '/moved/log'))
    end)

    it('that a restart cannot open is tried again by the next', function()
        local dir = master.temp_dir()
        local m = start()
        m:await 'Cluster ready'
        m:rewrite('master.lua', ([[local dutch = require 'dutch-master'
            dutch.start { worker = 'app.lua', restartSoak = 0, logger = dutch.logger { path = '%s/sub/log' } }
        ]]):format(dir))
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        assert.equal(1, #with_message(m.log, m:await { level = 50 }.msg))
        assert(uv.fs_mkdir(dir .. '/sub', 511))
        m:signal 'SIGUSR2'
        m:wait_until(function() return read(dir .. '/sub/log'):find '"Restart complete"' end, 'the new file')
        m:finish()
    end)

    it('that cannot be opened at all ends the start', function()
        local m = start [[logger = dutch.logger { path = '/no/such/directory/log' },]]
        assert.same({ code = 71 }, m:exit())
        m:wait_until(function() return m.err_ended end)
        assert.matches('^dutch%-master: logger: .*/no/such/directory/log', m.stderr)
        assert.equal(0, #m.log)
        m:finish { code = 71 }
    end)

    it('may be a table of the script, with methods or plain functions', function()
        local dir = master.temp_dir()
        local m = master.start {
            script = ([[
                local function write(level, fields, message)
                    local file = io.open('%s/mine', 'a')
                    file:write(level, ' ', message or '', ' ', tostring(fields.workerId), '\n')
                    file:close()
                end
                local mine = {}
                for _, level in ipairs { 'trace', 'debug', 'info', 'warn', 'error', 'fatal' } do
                    mine[level] = function(self, fields, message) write(level, fields, message) end
                end
                require('dutch-master').start { worker = 'app.lua', logger = mine }]]):format(dir),
            files = { ['app.lua'] = apps.idle },
        }
        m:wait_until(function() return read(dir .. '/mine'):find 'info Cluster ready nil\n' end, 'the cluster')
        m:finish()
        local text = read(dir .. '/mine')
        assert.matches('info Starting cluster nil\n', text)
        assert.matches('info Worker listening 2\n', text)
        assert.matches('info Cluster shutdown cleanly nil\n$', text)
        assert.same({}, m.log)
    end)

    it('falls back to stdout when such a table throws or loops', function()
        for _, body in ipairs { 'error "full"', 'while true do end' } do
            local m = start(([[numWorkers = 1, logger = { info = function() %s end, warn = print, error = print,
                debug = print },]]):format(body))
            local failed = m:await('The logger of the script failed, writing here instead', { timeout = 15000 })
            assert.equal(50, failed.level)
            m:await('Cluster ready', { timeout = 30000 })
            m:signal 'SIGTERM'
            m:exit { timeout = 60000 }
            m:finish { code = 0 }
        end
    end)

    it('whose reader is gone costs nothing but the log', function()
        local fifo = master.temp_dir() .. '/fifo'
        os.execute('mkfifo ' .. fifo)
        local reader = assert(uv.fs_open(fifo, uv.constants.O_RDONLY + uv.constants.O_NONBLOCK, 0))
        local m = start_with_stdout(fifo)
        m:wait_until(function() return answers(m) end, 'the server')
        uv.fs_close(reader)
        m:signal 'SIGUSR2'
        local before = select(2, http.get { port = m.port })
        m:wait_until(function()
            local _, body = http.get { port = m.port }
            return body and tonumber(body:match '^%S+ (%d+)') >= 3
        end, 'the next generation after ' .. before)
        m:signal 'SIGUSR1'
        m:finish { code = 0 }
        assert.equal('', m.stderr)
    end)

    it('on a full disk costs nothing but the log', function()
        local m = start_with_stdout '/dev/full'
        m:wait_until(function() return answers(m) end, 'the server')
        m:signal 'SIGUSR2'
        m:wait_until(function()
            local _, body = http.get { port = m.port }
            return body and tonumber(body:match '^%S+ (%d+)') >= 3
        end, 'the next generation')
        m:finish { code = 0 }
    end)

    it('whose reader is slow holds nobody up, and says what was lost', function()
        local fifo = master.temp_dir() .. '/fifo'
        os.execute('mkfifo ' .. fifo)
        local reader = assert(uv.fs_open(fifo, uv.constants.O_RDONLY + uv.constants.O_NONBLOCK, 0))
        local m = start_with_stdout(fifo, [[every = { 0.01, function()
            for i = 1, 100 do dutch.log:info({ text = ('x'):rep(2000) }, 'chatter') end end },]])
        m:wait_until(function() return answers(m) end, 'the server')
        -- More than the pipe and the buffer of 1 MiB hold: 200 KB every 10 ms.
        local slowest = 0
        for _ = 1, 100 do
            local before = uv.hrtime()
            assert.equal(200, (http.get { port = m.port }))
            slowest = math.max(slowest, (uv.hrtime() - before) / 1e6)
            master.wait_until(function() return uv.hrtime() - before >= 10e6 end)
        end
        assert.is_true(slowest < 500, slowest)
        -- Now it reads: what comes is whole records, the loss among them.
        local text, lost = {}, nil
        m:wait_until(function()
            local data = uv.fs_read(reader, 1048576, -1)
            if data then
                text[#text + 1] = data
                lost = lost or data:find '"Log records lost"'
            end
            return lost
        end, 'the count of lost records')
        m:signal 'SIGTERM'
        m:wait_until(function()
            text[#text + 1] = uv.fs_read(reader, 1048576, -1)
            return m.ended
        end)
        uv.fs_close(reader)
        local list = records(table.concat(text):match '^.*\n')
        local counts = with_message(list, 'Log records lost')
        assert.is_true(counts[1].lost > 0)
        assert.is_true(#with_message(list, 'chatter') > 100)
        m:finish { code = 0 }
    end)

    it('cannot be forged by what a worker says', function()
        local m = start([[numWorkers = 1, onMessage = function(_, message)
                dutch.log:info({ text = message.text, [message.text] = 1 }, message.text)
            end,]], { files = { ['app.lua'] = apps.idle .. [==[
                require('dutch-master.worker').send { text = 'x\n{"msg":"forged","level":30}\27[31m\0\r\n' }]==] } })
        local record = m:await(function(r) return r.msg:find('forged', 1, true) ~= nil end)
        assert.equal('x\n{"msg":"forged","level":30}\27[31m\0\r\n', record.msg)
        assert.equal(record.msg, record.text)
        assert.equal(0, #m:records 'forged')
        m:finish()
    end)

    it('is for people on a terminal', function()
        local m = master.start {
            script = [[require('dutch-master').start { worker = 'app.lua',
                onReady = function() require('dutch-master').log:info({ text = 'a\27[2Jb' }, 'look') end }]],
            files = { ['app.lua'] = apps.idle },
            wrap = { 'sh', '-c', [[exec script -qefc "exec $0 $1" /dev/null]] },
        }
        local line = m:await_output '.*Cluster ready.*'
        assert.matches('^.?[%[%d;m]*%d%d:%d%d:%d%d%.%d%d%d.*Cluster ready.*workers=2', line)
        assert.is_nil(line:find('{', 1, true))
        assert.is_nil(m:await_output('.*look.*'):find('\27[2J', 1, true))
        assert.same({}, m.log)
        for _, pid in ipairs(m:family()) do
            if read(('/proc/%d/comm'):format(pid)):find '^dutch%-master' then
                uv.kill(pid, 'sigterm')
                break
            end
        end
        m:exit()
        m:finish { code = 0 }
    end)

    it('on a terminal stops by its key, once for all', function()
        -- Control-C goes to the whole foreground group; the workers are in groups of their own.
        local m = master.start {
            script = [[require('dutch-master').start { worker = 'app.lua' }]],
            files = { ['app.lua'] = apps.idle },
            wrap = { 'sh', '-c', [[(until test -e go; do sleep 0.02; done; printf '\003'; sleep 5) |
                script -qefc "exec $0 $1" /dev/null]] },
        }
        m:await_output '.*Cluster ready.*'
        m:rewrite('go', '')
        m:await_output '.*Shutdown requested.*SIGINT.*'
        m:await_output '.*Cluster shutdown cleanly.*'
        m:exit()
        m:finish { code = 0 }
    end)
end)
