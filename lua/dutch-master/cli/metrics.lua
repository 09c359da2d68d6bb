--- dutch-master metrics: numbers for a monitoring system, of one master or of all.

local client = require 'dutch-master.cli.client'
local masters = require 'dutch-master.cli.masters'
local openmetrics = require 'dutch-master.cli.openmetrics'

local M = {
    name = 'metrics',
    talks = true,
    looks = true,
    summary = 'numbers for a monitoring system, as OpenMetrics text',
    description = 'Workers by state, their ends by reason, restarts by verdict and how long they took, waiting\n'
        .. 'connections, memory and CPU time, how long the loop of the master was held, hooks. With metrics = true\n'
        .. 'in the script also requests, their latency and the event loop of each worker. All names begin with\n'
        .. 'dutch_master_. For the textfile collector of node_exporter write --format prometheus to a file;\n'
        .. '`dutch-master web` serves the same at /metrics.',
    options = {
        { long = 'all', short = 'a', doc = 'of every master of this user (for root: of all users)' },
        { long = 'format', value = 'NAME', doc = 'openmetrics (default), or prometheus: its older text format' },
    },
    examples = {
        'dutch-master metrics', 'dutch-master metrics --all --format prometheus | promtool check metrics',
    },
    codes = '0, 3 not running, 124 the master does not answer',
}

local FORMATS = { openmetrics = true, prometheus = true }

function M.run(ctx)
    local dialect = ctx.options.format or 'openmetrics'
    if not FORMATS[dialect] then
        return ctx.usage(('--format: expected openmetrics or prometheus, found "%s"'):format(dialect))
    end
    if ctx.options.all then
        masters.ask(ctx.platform, { verb = 'status' }, function(found)
            ctx.out(openmetrics.render(found, ctx.platform.wall(), dialect))
            client.finish(ctx, 0)
        end)
        return nil
    end
    return (client.ask(ctx, { verb = 'status' }, {
        done = function(answer)
            ctx.out(openmetrics.render({ answer }, ctx.platform.wall(), dialect))
            return 0
        end,
    }))
end

return M
