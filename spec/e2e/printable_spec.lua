-- What a worker wrote is made printable before it reaches a terminal, in every verb that shows it.

local cli = require 'spec.support.cli'
local master = require 'spec.support.master'

-- A title, an erased line, a C1 control sequence, a mark that turns the direction of writing; as bytes of a Lua string.
local EVIL = [[\27]0;title\7 \27[2K\8 \194\155 2J \226\128\174gnp \155]]

describe('what a worker wrote', function()
    after_each(master.cleanup)

    it('cannot act on the terminal of whoever looks', function()
        local m = master.start {
            script = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 1, restartAttempts = 1,
                keepOutput = '64K', restartSoak = 0.1 }]],
            files = { ['app.lua'] = [[require('dutch-master.worker').ready()
                io.stdout:write(']] .. EVIL .. [[\n') io.stdout:flush() io.stderr:write(']] .. EVIL .. [[\n')]] },
        }
        m:await 'Cluster ready'
        m:rewrite('app.lua', [[io.stderr:write(']] .. EVIL .. [[\n') os.exit(3)]])
        local said = 0
        for _, words in ipairs {
            { 'restart', '--wait' }, { 'why' }, { 'why', '--all' }, { 'events' }, { 'logs' }, { 'status' },
        } do
            local c = cli.run(m, words)
            local text = c.out .. c.err
            local line = table.concat(words, ' ') .. '\n' .. text
            assert.is_nil(text:gsub('\n', ''):find '%c', line)
            for _, raw in ipairs { '\194\155', '\226\128\174', '\155 ' } do
                assert.is_nil(text:find(raw, 1, true), line)
            end
            said = said + (text:find('gnp', 1, true) and 1 or 0)
        end
        assert.is_true(said >= 4, tostring(said)) -- and it is shown, spelled out
        m:finish()
    end)
end)
