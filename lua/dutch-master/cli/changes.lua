--- What `plan` and `reload` say: the difference between two plans, as the master found it. Pure.

local cjson = require 'cjson'
local wire = require 'dutch-master.control.wire'
local format = require 'dutch-master.cli.format'
local options = require 'dutch-master.script.options'
local values = require 'dutch-master.cli.values'

local M = {}

local COLUMNS = { { title = 'OPTION' }, { title = 'FROM' }, { title = 'TO' }, { title = 'TAKES EFFECT' } }

local APPLIES = {
    ['now'] = { 'green', 'now' },
    ['next fork'] = { 'cyan', 'by a restart, or at the next fork' },
    ['start'] = { 'yellow', 'when the master is started' },
}

local function value(key, given)
    if given == nil or given == cjson.null then
        return '(none)'
    elseif key == 'workerEnvironment' and type(given) == 'table' then
        return values.name_list(given)
    end
    local option = options.by_name[key]
    return values.words(given, option and option.inside or key)
end

--- Of an environment only names are shown; where these are the same, that it is the values that differ.
local function values_of(change)
    local from, to = value(change.key, change.from), value(change.key, change.to)
    if from == to then
        to = to .. ' (with other values)'
    end
    return from, to
end

--- `was_applied`: the changes that need no restart have been made, and are not only announced.
function M.render(ctx, changes, was_applied)
    if #changes == 0 then
        return 'No changes\n'
    end
    local rows = {}
    for i, change in ipairs(changes) do
        local words = APPLIES[change.applies] or { 'dim', tostring(change.applies) }
        local text = words[2]
        if change.applies == 'now' then
            text = was_applied and 'applied' or 'by a reload, at once'
        end
        local from, to = values_of(change)
        rows[i] = { format.visible(change.key), from, to, ctx.paint(words[1], text) }
    end
    local lines = format.table(COLUMNS, rows)
    lines[1] = ctx.paint('dim', lines[1])
    return table.concat(lines, '\n') .. '\n'
end

--- A script may take as long as its budget.
local EVALUATION_MS = 30000

--- A run function for a verb that asks for changes.
function M.run(ctx, verb, was_applied)
    local client = require 'dutch-master.cli.client'
    return (client.ask(ctx, { verb = verb, key = client.key(ctx) }, {
        timeout_ms = EVALUATION_MS,
        timed_out = function()
            return client.fail(ctx, ('%s: %s: the script is being evaluated still, after %d s'):format(ctx.script_name,
                verb, EVALUATION_MS / 1000), 124)
        end,
        done = function(answer)
            return client.tell(ctx, answer, M.render(ctx, answer.changes, was_applied))
        end,
        failed = function(error)
            if ctx.options.json then
                ctx.out(wire.encode { ok = false, error = error } .. '\n')
            end
            ctx.err(('%s\n'):format(format.block(error.message)))
            return error.code == 'ESCRIPT' and 78 or 1
        end,
    }))
end

return M
