--- dutch-master events: the log records the master remembers, and with --follow those to come.

local client = require 'dutch-master.cli.client'
local wire = require 'dutch-master.control.wire'
local format = require 'dutch-master.cli.format'

local M = {
    name = 'events',
    talks = true,
    looks = true,
    summary = 'the last log records; --follow for those to come',
    description = 'Prints the last log records. The master keeps 1000 of them, wherever its log goes.',
    options = {
        { long = 'follow', short = 'f', doc = 'go on with what happens, until ^C' },
        { long = 'last', short = 'n', value = 'N', integer = true, doc = 'how many of the past (default 20)' },
        { long = 'json', short = 'j', doc = "the records as they are in the log, bunyan's format" },
    },
    examples = { 'dutch-master events --follow', 'dutch-master events -n 1000 --json | bunyan' },
    codes = '0, 1 the master went away, 3 not running',
}

--- As many as a master remembers.
local MOST = 1000
local LEVELS = { [10] = 'trace', [20] = 'debug', [30] = 'info', [40] = 'warn', [50] = 'error', [60] = 'fatal' }
local COLORS = { warn = 'yellow', error = 'red', fatal = 'red', info = 'cyan' }
local USUAL = { name = true, hostname = true, pid = true, level = true, msg = true, time = true, v = true }

local function fact(value)
    if type(value) == 'table' then
        return wire.encode(value)
    end
    return format.visible(value)
end

--- "10:01:02.123 info  Worker listening  workerId=3 workerPid=4711"
function M.line(ctx, record)
    local level = LEVELS[record.level] or tostring(record.level)
    local names, facts = {}, {}
    for name in pairs(record) do
        if not USUAL[name] then
            names[#names + 1] = name
        end
    end
    table.sort(names)
    for i, name in ipairs(names) do
        facts[i] = format.visible(name) .. '=' .. fact(record[name])
    end
    local time = tostring(record.time or ''):match 'T([%d:%.]+)' or tostring(record.time)
    local text = facts[1] and '  ' .. ctx.paint('dim', table.concat(facts, ' ')) or ''
    return ('%s %s %s%s'):format(ctx.paint('dim', time), ctx.paint(COLORS[level], ('%-5s'):format(level)),
        format.visible(record.msg), text)
end

function M.run(ctx)
    local request = { verb = 'events', last = ctx.options.last, follow = ctx.options.follow }
    return (client.ask(ctx, request, {
        event = function(answer)
            if answer.event ~= 'record' then
                request.last = request.follow and MOST or request.last -- another master remembers its own alone
            elseif ctx.options.json then
                ctx.out(wire.encode(answer.record) .. '\n')
            else
                ctx.out(M.line(ctx, answer.record) .. '\n')
            end
        end,
        done = function()
            return 0
        end,
    }))
end

return M
