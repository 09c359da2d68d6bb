--- dutch-master check: evaluates the script without effect; its errors, or the plan it makes.

local addresses = require 'dutch-master.addresses'
local advice = require 'dutch-master.script.advice'
local preload = require 'dutch-master.launch.node_preload'
local client = require 'dutch-master.cli.client'
local wire = require 'dutch-master.control.wire'
local format = require 'dutch-master.cli.format'
local hints = require 'dutch-master.script.hints'
local options = require 'dutch-master.script.options'
local once = require 'dutch-master.script.once'
local values = require 'dutch-master.cli.values'
local equal = require('dutch-master.script.values').equal

local words = values.words

local M = {
    name = 'check',
    summary = 'evaluate the script without effect: its errors, or the plan',
    description = 'Evaluates the script as a start would, in a process of its own, but binds and forks nothing, and\n'
        .. 'calls no hook but numWorkers. Prints every error with its place, or warnings and the effective\n'
        .. 'plan: each option and its value. Of the environment, the names only. What the script does by\n'
        .. 'itself when it is evaluated, it does here too.',
    options = {
        { long = 'json', short = 'j', doc = 'one line of JSON; names and units of the inside (snake_case, ms)' },
        { long = 'quiet', short = 'q', doc = 'errors and warnings only' },
    },
    examples = { 'dutch-master check', 'dutch-master check /srv/app/master.lua --json', 'dutch-master -t master.lua' },
    codes = '0 the script is valid, 78 it is not, 71 the system refused something',
}

local GOOD, SYSTEM, BAD = 0, 71, 78

local function report_errors(ctx, err)
    if ctx.options.json then
        ctx.out(wire.encode { ok = false, script = ctx.script, errors = err.messages,
            warnings = wire.EMPTY_LIST } .. '\n')
    end
    for _, message in ipairs(err.messages) do
        ctx.err(format.block(hints.add(message)) .. '\n')
    end
    return err.kind == 'system' and SYSTEM or BAD
end

--- A copy that JSON can hold, with empty lists as such.
local function plain(value)
    if type(value) ~= 'table' then
        return type(value) == 'function' and 'function' or value
    end
    local copy = {}
    for key, inner in pairs(value) do
        copy[key] = plain(inner)
    end
    return next(copy) == nil and wire.EMPTY_LIST or copy
end

local function value_of(plan, option, num_workers)
    local hooked = plan.hooks[option.name]
    if option.name == 'numWorkers' then
        return words(num_workers) .. (hooked and ' (function)' or '')
    elseif hooked then
        return 'function'
    elseif option.name == 'workerEnvironment' then
        return values.name_list(plan.environment)
    elseif option.name == 'worker' then
        return words(plan.worker or plan.argv)
    end
    local value = plan[option.inside]
    if value == nil then
        return nil
    end
    return words(value, option.inside)
end

local function show(ctx, plan, num_workers, warnings)
    ctx.out(('%s is valid%s. The plan:\n'):format(format.visible(ctx.script_name),
        warnings > 0 and ', ' .. format.plural(warnings, 'warning') or ''))
    for _, option in ipairs(options.list) do
        local text = value_of(plan, option, num_workers)
        local is_default = not option.required and not plan.hooks[option.name]
            and equal(plan[option.inside], option.default)
        if not text then
            text, is_default = option.default_text:gsub('`', ''), true
        end
        local line = ('  %-20s %s'):format(option.name, text)
        ctx.out((is_default and ctx.paint('dim', line .. '  (default)') or line) .. '\n')
    end
    if plan.kind == 'exec' and #plan.listen > 0 then
        ctx.out(('  %-20s %s\n'):format('kernel migration', ctx.platform.migrates()
            and 'yes: what waits in a queue whose workers are gone goes to others'
            or 'no: what waits there waits for the next worker (sysctl net.ipv4.tcp_migrate_req = 1)'))
    end
    local can_be_seen = plan.balance ~= 'shared' and addresses.has_tcp(plan.listen) -- to accept
    if plan.kind == 'exec' and plan.ready.type == 'auto' and not can_be_seen then
        ctx.out('Readiness: without a TCP address in `listen` that a worker accepts from, no more can be known than'
            .. ' that it\nhas lived for one second, or says READY=1 (sd_notify).\n')
    end
end

-- What the plan will not do, though it is no error.
local function warnings_of(ctx, plan)
    local platform = ctx.platform
    local found = advice.of(plan, {
        cwd = platform.cwd(), environ = platform.environ(), stat = platform.stat, access = platform.access,
        read = function(path)
            return platform.read_file(path, 65536)
        end,
        status = platform.read_file('/proc/self/status', 65536),
        no_preload = not platform.preload() and preload.MISSING or nil,
    })
    local texts = {}
    for i, warning in ipairs(found) do
        texts[i] = warning.option and ('%s: %s'):format(warning.option, warning.text) or warning.text
    end
    return texts
end

local function report(ctx, plan, num_workers)
    local warnings = warnings_of(ctx, plan)
    for _, text in ipairs(ctx.options.json and {} or warnings) do
        ctx.err(('%s: warning: %s\n'):format(format.visible(ctx.script_name), format.visible(text)))
    end
    if ctx.options.json then
        local copy = plain(plan)
        copy.num_workers, copy.environment = num_workers, wire.list(values.names(plan.environment))
        ctx.out(wire.encode { ok = true, script = ctx.script, plan = copy, warnings = wire.list(warnings) } .. '\n')
    elseif not ctx.options.quiet then
        show(ctx, plan, num_workers, #warnings)
    end
    return GOOD
end

function M.run(ctx)
    once.evaluate({ platform = ctx.platform, path = ctx.script, name = ctx.script_name }, function(plan, more)
        client.finish(ctx, plan and report(ctx, plan, more) or report_errors(ctx, more))
    end)
end

return M
