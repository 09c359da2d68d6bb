local cjson = require 'cjson'
local format = require 'dutch-master.log.format'
local text_of = require 'dutch-master.log.text'

describe('the format of a record', function()
    local lines, how

    -- A logger as far as its format goes.
    local function new()
        local core = { name_json = '"my-app"', hostname_json = '"h\\"ost"', pid = 4711 }
        return setmetatable({}, { __index = function(_, level)
            return function(_, fields, msg)
                lines[#lines + 1] = format[how](core, { level = level, fields = fields, msg = msg, at = 1700000000.0419 })
            end
        end })
    end

    local function record()
        local line = lines[#lines]
        assert.equal('\n', line:sub(-1))
        assert.is_nil(line:sub(1, -2):find('%c'))
        return cjson.decode(line), line
    end

    local function text()
        return lines[#lines]
    end

    describe('in bunyan\'s way', function()
        before_each(function()
            lines, how = {}, 'json'
        end)

        it('does not let a caller overwrite its own fields', function()
            new():info({ pid = 1, level = 60, msg = 'forged', v = 9, name = 'x' }, 'true')
            local r = record()
            assert.same({ 4711, 30, 'true', 0, 'my-app' }, { r.pid, r.level, r.msg, r.v, r.name })
            assert.same({ 1, 60, 'forged', 9, 'x' }, { r.pid_, r.level_, r.msg_, r.v_, r.name_ })
        end)

        it('stays one line of JSON whatever the text holds', function()
            local all = {}
            for i = 0, 255 do
                all[#all + 1] = string.char(i)
            end
            new():info({ ['k\n"'] = table.concat(all) }, 'a\nb\r\27[31m\0\127/"\\')
            local r, line = record()
            assert.equal('a\nb\r\27[31m\0\127/"\\', r.msg)
            assert.is_string(r['k\n"'])
            assert.truthy(line:find('/', 1, true))
            assert.is_nil(line:find('\\/"', 1, true))
            assert.equal(line, text_of.utf8(line))
        end)

        it('writes what JSON does not have as text', function()
            local cycle = {}
            cycle.me = cycle
            new():info({
                nan = 0 / 0, inf = math.huge, fn = print, null = cjson.null, cycle = cycle, list = { 1, 'two', false },
                sparse = { [1] = 1, [100] = 2 }, empty = {}, big = 1700000000041, small = 0.25,
            }, 'odd')
            local r, line = record()
            assert.equal('nan', (r.nan:gsub('-', '')))
            assert.equal('inf', r.inf)
            assert.truthy(r.fn:find('^function'))
            assert.equal(cjson.null, r.null)
            assert.same({ 1, 'two', false }, r.list)
            assert.same({ ['1'] = 1, ['100'] = 2 }, r.sparse)
            assert.truthy(line:find('"big":1700000000041,', 1, true))
            assert.equal(0.25, r.small)
            assert.truthy(line:find('too deep', 1, true))
        end)

        it('bounds a record to 64 KiB, with a mark, and keeps what matters', function()
            local fields = { workerId = 3, stderr = ('ä'):rep(100000), list = {} }
            for i = 1, 5000 do
                fields['key' .. i] = ('\27'):rep(100)
                fields.list[i] = i
            end
            new():info(fields, ('m'):rep(200000))
            local r, line = record()
            assert.is_true(#line <= 65536)
            assert.is_true(#line > 30000)
            assert.is_true(r.truncated)
            assert.equal(3, r.workerId)
            assert.truthy(r.msg:find('%.%.%.%[truncated%]$'))
        end)

        it('shortens a long field without cutting a character in two', function()
            new():info({ stderr = ('a' .. ('€'):rep(30000)) }, 'm')
            local r = record()
            assert.is_nil(r.stderr:find('\239\191\189', 1, true))
            assert.truthy(r.stderr:find('€...[truncated]', 1, true))
        end)
    end)

    describe('for a person', function()
        before_each(function()
            lines, how = {}, 'readable'
        end)

        it('writes lines for a person', function()
            new():info({ workerId = 3, workerPid = 4711, generation = 1, why = 'two words', path = '/a/b' },
                'Worker listening')
            assert.truthy(text():find('^%d%d:%d3:20%.041 INFO  Worker listening  '
                .. 'worker=3 pid=4711 generation=1 path=/a/b why="two words"\n$'))
        end)

        it('lets no control byte of anybody through', function()
            local evil = '\27]0;title\7\r\nfake 14:03:07.123 INFO  all is well\8\127\194\155 31m\226\128\174'
            new():info({ ['k\27[2J'] = evil, v = '\27[31m' }, evil)
            local line = text()
            assert.is_nil(line:sub(1, -2):gsub('\n    [|%w]', ''):find('%c'))
            assert.is_nil(line:find('\194\155', 1, true))
            assert.is_nil(line:find('\226\128\174', 1, true))
            for part in line:gmatch('\n([^\n]+)') do
                assert.equal('    ', part:sub(1, 4))
            end
            assert.truthy(line:find('\\u202e', 1, true))
        end)

        it('shows values of several lines below, indented', function()
            new():error({ stderr = 'one\ntwo\n' }, 'Worker exited')
            assert.truthy(text():find('Worker exited\n    stderr:\n    | one\n    | two\n$'))
        end)

        it('bounds a line too', function()
            new():info({ a = ('x'):rep(1e6), b = ('y\n'):rep(1e5), c = ('\27'):rep(1e5) }, ('m'):rep(1e6))
            assert.is_true(#text() <= 65536)
            assert.equal('\n', text():sub(-1))
        end)
    end)

    it('gives each line of the journal its priority, and no time', function()
        lines, how = {}, 'journal'
        new():error({ code = 1, stderr = 'one\n<6>two\n' }, 'Worker exited')
        assert.equal('<3>Worker exited  code=1\n<3>    stderr:\n<3>    | one\n<3>    | <6>two\n', text())
    end)
end)
