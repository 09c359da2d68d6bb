local cjson = require 'cjson'
local log = require 'dutch-master.log.logger'

-- A sink in memory that can be told to refuse.
local function fake_sink(tty)
    local sink = { lines = {}, lost_count = 0, refuse = false, tty = tty }
    function sink.write(self, line)
        if self.refuse then
            self.lost_count = self.lost_count + 1
            return nil, 'no buffer space available', 'ENOBUFS'
        end
        self.lines[#self.lines + 1] = line
        return true
    end
    function sink.lost(self)
        local lost = self.lost_count
        self.lost_count = 0
        return lost
    end
    function sink.on_drain(self, fn)
        self.drain = fn
        return true
    end
    function sink.is_tty(self)
        return self.tty
    end
    function sink.reopen(self)
        self.reopened = true
        return true
    end
    function sink.flush(self)
        self.flushed = true
        return true
    end
    function sink.close(self)
        self.closed = true
    end
    return sink
end

describe('log', function()
    local sink, opened, environ, now

    local platform = {
        sink = function(target)
            if target == '/nowhere/log' then return nil, '/nowhere/log: no such file', 'ENOENT' end
            opened[#opened + 1] = target
            return sink
        end,
        wall = function()
            return now
        end,
        pid = function()
            return 4711
        end,
        hostname = function()
            return 'h"ost'
        end,
        environ = function()
            return environ
        end,
    }

    before_each(function()
        sink, opened, environ, now = fake_sink(false), {}, {}, 1700000000.0419
    end)

    local function new(options)
        options = options or {}
        options.platform = platform
        options.name = options.name or 'my-app'
        return assert(log.new(options))
    end

    local function record(i)
        local line = sink.lines[i or #sink.lines]
        assert.equal('\n', line:sub(-1))
        assert.is_nil(line:sub(1, -2):find('%c'))
        return cjson.decode(line), line
    end

    describe('in bunyan format', function()
        it('is made for the journal where JOURNAL_STREAM names what it writes to', function()
        platform.stat = function(path)
            return path == '/proc/self/fd/1' and { dev = 8, ino = 4711 } or nil
        end
        environ = { JOURNAL_STREAM = '8:4711' }
        new():warn 'x'
        assert.equal('<4>x\n', sink.lines[1])
        -- Inherited by a program whose output goes elsewhere.
        environ = { JOURNAL_STREAM = '8:4712' }
        new():warn 'x'
        assert.equal('x', record(2).msg)
        new({ format = 'journal' }):warn 'y'
        assert.equal('<4>y\n', sink.lines[3])
    end)

    it('has its fields, in a stable order, v last', function()
            new():info({ zebra = 1, workerPid = 7, alpha = true, workerId = 3 }, 'Worker listening')
            local _, line = record()
            assert.equal('{"name":"my-app","hostname":"h\\"ost","pid":4711,"level":30,"workerId":3,"workerPid":7,'
                .. '"alpha":true,"zebra":1,"msg":"Worker listening","time":"2023-11-14T22:13:20.041Z","v":0}\n', line)
            assert.same({ 1 }, opened)
        end)

        it('knows the levels by number and drops what is below the chosen one', function()
            local logger = new { level = 'debug' }
            for _, level in ipairs { 'trace', 'debug', 'info', 'warn', 'error', 'fatal' } do
                logger[level](logger, level)
            end
            assert.equal(5, #sink.lines)
            for i = 1, 5 do
                assert.equal(10 + 10 * i, record(i).level)
            end
            logger:log('error', { a = 1 }, 'kept')
            assert.equal('kept', record().msg)
        end)

        it('takes a message alone, fields alone, and things that are neither', function()
            local logger = new()
            logger:info 'only text'
            assert.equal('only text', record().msg)
            logger:info { a = 1 }
            assert.equal('', record().msg)
            assert.equal(1, record().a)
            logger:info(nil, 'text')
            assert.equal('text', record().msg)
            logger:info(12, 'text')
            assert.equal(12, record().value)
            logger:info()
            assert.equal('', record().msg)
        end)

        it('has fields of its own in each record, and takes others with its options', function()
            local logger = new { fields = { app = 'shop', release = 1 } }
            local child = logger:child { workerId = 3 }
            child:info 'before'
            assert.same({ 'shop', 1, 3 }, { record().app, record().release, record().workerId })
            assert(logger:reconfigure { platform = platform, name = 'other', fields = { release = 2 } })
            child:info 'after'
            local r = record()
            assert.same({ 'other', 2, 3 }, { r.name, r.release, r.workerId })
            assert.is_nil(r.app)
        end)

        it('gives children the fields of their parents', function()
            local child = new():child { workerId = 3, generation = 1 }:child { generation = 2 }
            child:info({ code = 0 }, 'Worker exited')
            local r = record()
            assert.same({ 3, 2, 0 }, { r.workerId, r.generation, r.code })
        end)
    end)

    describe('on a terminal', function()
        local function text(i)
            return sink.lines[i or #sink.lines]
        end

        before_each(function()
            sink = fake_sink(true)
            environ.NO_COLOR = '1'
        end)

        it('is colored, unless NO_COLOR or a dumb terminal says no', function()
            new():warn 'x'
            assert.is_nil(text():find('\27', 1, true))
            environ = { TERM = 'dumb' }
            new():warn 'x'
            assert.is_nil(text():find('\27', 1, true))
            environ = { TERM = 'xterm', NO_COLOR = '' }
            new():warn 'x'
            assert.truthy(text():find('\27[33mWARN \27[0m', 1, true))
        end)

        it('can be told to write JSON there, and text elsewhere', function()
            new { format = 'json' }:info 'x'
            assert.equal('{', text():sub(1, 1))
            sink = fake_sink(false)
            new { format = 'readable' }:info 'x'
            assert.truthy(text():find('INFO  x\n$'))
        end)
    end)

    describe('when output is lost', function()
        it('says how many records, once output is possible again', function()
            local logger = new()
            sink.refuse = true
            logger:info 'a'
            logger:info 'b'
            assert.equal(0, #sink.lines)
            sink.refuse = false
            sink.drain()
            assert.equal(1, #sink.lines)
            local r = record()
            assert.equal('Log records lost', r.msg)
            assert.equal(40, r.level)
            assert.equal(2, r.lost)
        end)

        it('says so also when the output never drains, once a second', function()
            local logger = new()
            sink.refuse = true
            logger:info 'a'
            logger:info 'b'
            sink.refuse = false
            now = now + 0.5
            logger:info 'c'
            assert.equal('c', record().msg)
            now = now + 0.5
            logger:info 'd'
            assert.equal(3, #sink.lines)
            assert.equal(2, record(2).lost)
            assert.equal('d', record(3).msg)
        end)

        it('keeps the count if that record is lost as well', function()
            local logger = new()
            sink.refuse = true
            logger:info 'a'
            logger:info 'b'
            sink.drain()
            sink.drain()
            logger:info 'c'
            sink.refuse = false
            sink.drain()
            assert.equal(3, record().lost)
            sink.drain()
            assert.equal(1, #sink.lines)
        end)
    end)

    describe('with the logger of the script', function()
        it('hands records over', function()
            local seen = {}
            local logger = new { target = function(level, fields, msg)
                seen[#seen + 1] = { level, fields, msg }
            end }
            logger:child { workerId = 1 }:warn({ code = 1 }, 'Worker exited')
            logger:debug 'not this'
            assert.same({ { 'warn', { workerId = 1, code = 1 }, 'Worker exited' } }, seen)
            assert.same({}, opened)
            logger:close()
        end)

        it('falls back to the default target if it reports a failure, then or later, and says so once', function()
            local failures = {}
            local logger = new { target = function(_, _, _, failed)
                failures[#failures + 1] = failed
                if #failures == 1 then
                    failed 'boom'
                end
            end }
            logger:info 'one'
            logger:info 'two'
            assert.equal(2, #sink.lines)
            failures[2] 'budget exceeded'
            assert.equal(3, #sink.lines)
            assert.equal('boom', record(1).error)
            assert.same({ 'one', 'two' }, { record(2).msg, record(3).msg })
            assert.same({ 1 }, opened)
            logger:close()
            failures[2] 'too late'
            assert.equal(3, #sink.lines)
        end)

        it('does not give it what it says itself', function()
            local seen = {}
            local logger = new { target = function(_, _, msg)
                seen[#seen + 1] = msg
            end }
            logger:log_beside('warn', { a = 1 }, 'mine')
            assert.same({}, seen)
            assert.same({ 'mine', 40, 1 }, { record().msg, record().level, record().a })
        end)
    end)

    describe('memory', function()
        it('keeps the last records, and errors beyond a flood, whatever their target', function()
            local logger = new { target = function() end }
            logger:error 'before the flood'
            for i = 1, 1005 do
                logger:child({ workerId = i }):info('record ' .. i)
            end
            logger:debug 'below the level'
            local last = logger:recent(3)
            assert.same({ 'record 1003', 'record 1004', 'record 1005' }, { last[1].msg, last[2].msg, last[3].msg })
            assert.same({ 1005, 30, 'my-app' }, { last[3].workerId, last[3].level, last[3].name })
            local all = logger:recent(5000)
            assert.same({ 901, 'before the flood', 'record 106' }, { #all, all[1].msg, all[2].msg })
            assert.same({}, logger:recent(0))
        end)

        it('cuts long records short', function()
            local logger = new()
            logger:info({ stderr = ('x'):rep(60000), other = 'kept' }, ('m'):rep(9000))
            local last = logger:recent(1)[1]
            assert.is_true(#last.stderr < 2000 and #last.msg < 2000)
            assert.equal('kept', last.other)
            assert.is_true(last.truncated)
        end)

        it('tells subscribers, until they have heard enough or when one of them fails', function()
            local logger, heard = new(), {}
            logger:subscribe(function()
                error 'deaf'
            end)
            local stop = logger:subscribe(function(heard_record)
                heard[#heard + 1] = heard_record.msg
            end)
            logger:info 'one'
            stop()
            logger:info 'two'
            assert.same({ 'one' }, heard)
        end)
    end)

    it('reopens and closes its sink', function()
        local logger = new { target = '/var/log/app.log' }
        assert.same({ '/var/log/app.log' }, opened)
        assert.is_true(logger:reopen())
        assert.is_true(sink.reopened)
        logger:child { a = 1 }:close()
        assert.is_true(sink.flushed and sink.closed)
        logger:info 'after'
        assert.equal(0, #sink.lines)
        logger:close()
    end)

    describe('beside a keeper', function()
        local Commit = require 'dutch-master.keeper.commit'
        local said, commit

        before_each(function()
            said = 0
            commit = Commit.new { touch = function() end }
            platform.said = function() return said end
            platform.say = function(number) said = number end
        end)

        it('writes a record when its state is kept, with the time at which it was made', function()
            local logger, heard = new { commit = commit }, {}
            logger:subscribe(function(told) heard[#heard + 1] = told.msg end)
            logger:child({ workerId = 1 }):warn('one')
            now = now + 10
            assert.same({ {}, {}, {} }, { sink.lines, heard, logger:recent(9) })
            commit:written()
            assert.same({ 'one', 1, '2023-11-14T22:13:20.041Z' }, { record().msg, record().workerId, record().time })
            assert.same({ { 'one' }, 'one', 1 }, { heard, logger:recent(9)[1].msg, said })
        end)

        it('hands what it has not written to the next one, whatever its records look like there', function()
            for _, layout in ipairs { 'json', 'readable', 'journal' } do
                said, sink.lines = 0, {}
                local logger = new { commit = commit }
                logger:error({ code = 3 }, 'one')
                local kept = logger:keep()
                local fresh = Commit.new { touch = function() end }
                local next_one = new { commit = fresh, format = layout }
                next_one:resume(kept)
                next_one:info 'two'
                now = now + 3600
                fresh:written()
                assert.equal(2, #sink.lines)
                assert.truthy(sink.lines[1]:find(layout == 'json' and '"code":3,"msg":"one","time":"%d+-%d+-%d+T%d+:13:20%.041Z"'
                    or layout == 'readable' and '%d+:13:20%.041 ERROR one  code=3\n' or '^<3>one  code=3\n'), sink.lines[1])
                now = now - 3600
            end
        end)

        it('writes what waits before it takes another target, and before it closes', function()
            local logger = new { commit = commit }
            logger:info 'one'
            local first = sink
            sink = fake_sink(false)
            assert.is_true(logger:reconfigure { platform = platform, target = '/other' })
            assert.same({ 1, 0 }, { #first.lines, #sink.lines })
            logger:info 'two'
            logger:close()
            assert.same({ 1, true, 2 }, { #sink.lines, sink.closed, said })
        end)
    end)

    it('reports a target that cannot be opened', function()
        local logger, message, code = log.new { platform = platform, path = '/nowhere/log' }
        assert.is_nil(logger)
        assert.equal('/nowhere/log: no such file', message)
        assert.equal('ENOENT', code)
        assert.has_error(function()
            new { level = 'loud' }
        end)
    end)
end)
