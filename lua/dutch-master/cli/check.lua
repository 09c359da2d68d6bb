--- dutch-master check: evaluates the script without effect; its errors, or the plan it makes.

local control = require 'dutch-master.control'
local format = require 'dutch-master.cli.format'

local M = {
    name = 'check',
    summary = 'evaluate the script without effect: its errors, or the plan',
    description = 'Evaluates the script as a start would, but binds and forks nothing. Prints every error with its\n'
        .. 'place, or the effective plan: each option, and whether it comes from the script or is the default.',
    options = {
        { long = 'json', short = 'j', doc = 'one line of JSON' },
        { long = 'quiet', short = 'q', doc = 'errors only' },
    },
    examples = { 'dutch-master check', 'dutch-master check /srv/app/master.lua --json', 'dutch-master -t master.lua' },
    codes = '0 the script is good, 78 it is not',
}

local GOOD, BAD = 0, 78

local function as_list(problem)
    if type(problem) ~= 'table' then
        return { tostring(problem) }
    elseif problem.errors then
        return problem.errors
    elseif problem.message then
        return { problem.message }
    end
    return problem
end

local function text_of(problem)
    return type(problem) == 'table' and tostring(problem.message) or tostring(problem)
end

local function value_text(value)
    if type(value) == 'table' then
        return (control.encode(value) or '?'):gsub('\\/', '/'), nil
    end
    return format.visible(value), nil
end

local function report_errors(ctx, problems)
    if ctx.options.json then
        local list = {}
        for i, problem in ipairs(problems) do
            list[i] = { message = text_of(problem) }
        end
        ctx.out(control.encode { ok = false, script = ctx.script, errors = list } .. '\n')
    end
    for _, problem in ipairs(problems) do
        ctx.err(format.block(text_of(problem)) .. '\n')
    end
    return BAD
end

local function plain(value, depth)
    if type(value) == 'function' then
        return 'function'
    elseif type(value) == 'table' and depth < 8 then
        local copy = {}
        for key, inner in pairs(value) do
            copy[key] = plain(inner, depth + 1)
        end
        return copy
    end
    return value
end

function M.run(ctx)
    local seen, message = ctx.platform.stat(ctx.script)
    if not seen then
        return report_errors(ctx, { ('%s: %s'):format(ctx.script_name, message) })
    end
    local script = require 'dutch-master.script'
    local session, problem = script.new { platform = ctx.platform, core = ctx.platform, path = ctx.script }:evaluate()
    if not session then
        return report_errors(ctx, as_list(problem))
    end
    local plan = plain(session.plan, 0)
    session:close()
    if ctx.options.json then
        ctx.out(control.encode { ok = true, script = ctx.script, plan = plan } .. '\n')
        return GOOD
    elseif ctx.options.quiet then
        return GOOD
    end
    local rows = {}
    for key, value in pairs(plan) do
        rows[#rows + 1] = { key, (value_text(value)) }
    end
    table.sort(rows, function(a, b)
        return a[1] < b[1]
    end)
    ctx.out(('%s is good. The plan:\n'):format(ctx.script_name))
    for _, row in ipairs(rows) do
        ctx.out(('  %-22s %s\n'):format(row[1], row[2]))
    end
    return GOOD
end

return M
