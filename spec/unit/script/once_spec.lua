local once = require 'dutch-master.script.once'
local Platform = require 'spec.support.fake_platform'
local values = require 'dutch-master.script.values'

-- One evaluation, with a process that gives these answers, the first to the evaluation.
local function evaluate(answers, options)
    local platform, lines, killed, result = Platform.new(), {}, 0, nil
    function platform.environ() return {} end
    function platform.read_file() return 'source' end
    platform.spawn = function(fields)
        if options and options.refuse then
            return nil, 'cannot fork', 'EAGAIN'
        end
        local child = {}
        function child.send(_, line)
            table.insert(lines, line)
            local answer = line:match '^[EC]' and table.remove(answers, 1)
            if answer then
                platform:after(1, function() fields.on_line(child, answer, false) end)
            end
            return true
        end
        function child.signal() end
        function child.signal_group()
            killed = killed + 1
            platform:after(1, function() fields.on_exit(child, { signal = 'SIGKILL' }) end)
        end
        return child
    end
    once.evaluate({ platform = platform, path = '/srv/master.lua' }, function(...)
        assert(not result, 'answered twice')
        result = { ... }
    end)
    platform:advance(10000)
    assert.equal(0, platform:armed())
    return result, killed, lines
end

local function started(options)
    return values.encode { ok = true, results = values.pack(true, options, 'master.lua', 1) }
end

describe('once', function()
    it('evaluates a script and asks for the number of workers, then ends its process', function()
        local result, killed = evaluate { started { worker = 'app.js', numWorkers = print }, '{"ok":true,"results":["l",3]}' }
        assert.same({ 'node', 3, 1 }, { result[1].kind, result[2], killed })
    end)

    it('says what is wrong', function()
        local result, killed = evaluate { '{"ok":false,"kind":"runtime","message":"master.lua:3: boom"}' }
        assert.same({ nil, 'master.lua:3: boom', 1 }, { result[1], result[2].message, killed })
        result = evaluate { started { worker = 'app.js', numWorkers = print }, '{"ok":true,"results":["l",0]}' }
        assert.matches('numWorkers: expected an integer', result[2].message)
        result = evaluate({}, { refuse = true })
        assert.matches('cannot fork', result[2].message)
        assert.equal('system', result[2].kind)
        result = evaluate { false } -- no answer
        assert.matches('took longer than its budget of 5 s', result[2].message)
    end)

    it('answers what the script asks, as there is no cluster', function()
        local _, _, lines = evaluate { '{"ask":"store_set","arguments":["l","a",1]}' }
        assert.equal('R{"results":["l"]}', lines[2])
        _, _, lines = evaluate { '{"ask":"restart","arguments":["l"]}' }
        assert.equal('R{"results":["l",null,"the cluster has not started"]}', lines[2])
    end)
end)
