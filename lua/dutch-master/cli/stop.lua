--- dutch-master stop: a graceful stop of the whole cluster.

local client = require 'dutch-master.cli.client'
local wire = require 'dutch-master.control.wire'

local M = {
    name = 'stop',
    talks = true,
    summary = 'stop gracefully; --wait until all is gone',
    description = 'Asks every worker to finish what it has and leave, then ends the master.',
    options = {
        { long = 'wait', short = 'w', doc = 'until the master is gone' },
        { long = 'timeout', short = 't', value = 'SECONDS', number = true, doc = 'with --wait: how long' },
        { long = 'json', short = 'j', doc = 'JSON lines' },
    },
    examples = { 'dutch-master stop --wait' },
    codes = '0 stopped (without --wait: asked), 1 with --wait: a worker had to be killed,\n'
        .. '3 not running, 124 timed out',
}

function M.run(ctx)
    local waiting = ctx.options.wait or ctx.options.timeout
    local accepted, exit_code = false, nil
    local function verdict()
        if ctx.options.json then
            ctx.out(wire.encode { ok = true, exit_code = exit_code } .. '\n')
        elseif exit_code == 0 or exit_code == nil then
            ctx.out 'Stopped\n'
        else
            ctx.err 'dutch-master: stopped, but not every worker left by itself (dutch-master exited with 1)\n'
        end
        return exit_code == nil and 0 or exit_code
    end
    return (client.ask(ctx, { verb = 'stop', wait = waiting and true or nil }, {
        timeout_ms = ctx.options.timeout and ctx.options.timeout * 1000,
        timed_out = ctx.options.timeout and function()
            return client.fail(ctx, ('not stopped within %gs; it goes on stopping'):format(ctx.options.timeout), 124)
        end,
        event = function()
            accepted = true
        end,
        done = function(answer)
            if waiting then
                -- Gone is when the connection ends: then the lock is free, and a new master may start.
                exit_code = answer.exit_code
                return nil
            end
            return client.tell(ctx, { ok = true }, 'Stop requested\n')
        end,
        lost = function()
            return exit_code and verdict()
        end,
        gone = function(reason)
            return accepted and verdict() or client.say_gone(ctx, 'stop', reason)
        end,
    }))
end

return M
