local cjson = require 'cjson'
local cqueues = require 'cqueues'
local socket = require 'cqueues.socket'
local uv = require 'luv'
local Watcher = require 'dutch-master.web.watcher'

describe('watcher', function()
    local dir, path

    before_each(function()
        dir = assert(uv.fs_mkdtemp '/tmp/dm-spec-XXXXXX')
        path = dir .. '/master.sock'
    end)

    after_each(function()
        os.remove(path)
        os.remove(dir)
    end)

    it('tells nothing twice when a connection was lost and made anew', function()
        local loop, asked, told = cqueues.new(), { events = 0, logs = 0 }, {}
        local server = socket.listen { path = path }
        -- A master that says what there is, and one thing more each time, and hangs up. It says nothing of its status.
        local function serve(conn)
            local request = cjson.decode(conn:read '*l')
            local count = asked[request.verb]
            if not count then
                return
            end
            asked[request.verb] = count + 1
            for number = 1, count + 2 do
                local event = request.verb == 'logs'
                    and { event = 'line', line = { number = number, time = 5, worker = 1, text = 'a line' } }
                    or { event = 'record', record = { time = 'now', workerId = number, msg = 'a record', v = 0 } }
                event.id = request.id
                conn:write(cjson.encode(event), '\n')
            end
            conn:close()
        end
        loop:wrap(function()
            for conn in server:clients() do
                conn:setmode('bl', 'bl')
                loop:wrap(serve, conn)
            end
        end)
        local watcher = Watcher.new { path = path, owner = uv.getuid(), tell = function(kind, data)
            told[kind] = told[kind] or {}
            table.insert(told[kind], kind == 'line' and data.line.number or kind == 'record' and data.record.workerId)
        end }
        watcher:start(loop)
        local until_when = cqueues.monotime() + 10
        while math.min(asked.logs, asked.events) < 2 or #told.line < 3 or #told.record < 3 do
            assert(loop:step(0.1))
            assert(cqueues.monotime() < until_when)
        end
        watcher:close()
        server:close()
        assert.same({ line = { 1, 2, 3 }, record = { 1, 2, 3 } }, told)
        local whole = watcher:whole()
        assert.same({ 3, 3 }, { #whole.lines, #whole.records })
    end)
end)
