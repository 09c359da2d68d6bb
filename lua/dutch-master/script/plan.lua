-- plan.lua: from the options of the user's script to the plan that the rest of the program follows.
--
-- Everything wrong with the options is found in one go and reported with file and line. A plan is complete:
-- every default is filled in, times are milliseconds, names are those of the inside. Pure: what must be asked of the
-- system (users, groups) is asked through the functions of `where`.

local addresses = require 'dutch-master.addresses'
local key_lines = require 'dutch-master.script.key_lines'
local options = require 'dutch-master.script.options'
local schema = require 'dutch-master.script.schema'
local types = require 'dutch-master.script.option_types'
local equal = require('dutch-master.script.values').equal

local M = {}

local NODE_SUFFIXES = { js = true, mjs = true, cjs = true, ts = true, mts = true, cts = true }

-- What can be seen of a worker differs by kind: an exec worker has no channel.
local READY_OF_CHANNEL = { listening = true, message = true, path = true }

local STOP_SIGNAL = 'SIGTERM'

local function kind_of(worker)
    if type(worker) == 'table' then
        return 'exec'
    end
    local suffix = worker:match('[^/]%.(%w+)$')
    if suffix and NODE_SUFFIXES[suffix] then
        return 'node'
    end
    return suffix == 'lua' and 'lua' or 'exec'
end

-- Puts the numbers and addresses of the listening sockets into a preset's pattern. The first socket is fd 3.
local FIRST_FD = 3

local function fill(pattern, index, entry)
    local address = entry.text:gsub('^unix:', '')
    return (pattern:gsub('{(%w+)}', {
        fd = tostring(FIRST_FD + index - 1), index = tostring(index), address = address, name = entry.name,
    }))
end

local function preset_argv(preset, listen)
    local argv = {}
    for _, item in ipairs(preset.argv) do
        if type(item) == 'table' then
            for index, entry in ipairs(listen) do
                for _, pattern in ipairs(item.each) do
                    argv[#argv + 1] = fill(pattern, index, entry)
                end
            end
        else
            argv[#argv + 1] = item
        end
    end
    return argv
end

local function preset_environment(preset, listen)
    local environment = {}
    for name, value in pairs(preset.environment or {}) do
        for index, entry in ipairs(listen) do
            environment[fill(name, index, entry)] = fill(value.each, index, entry)
        end
    end
    return environment
end

-- user and group: names become numbers here, so that a wrong one is known before anything is forked.
local function resolve_account(plan, where, at)
    if plan.user ~= nil and where.getuser then
        local account, message = where.getuser(plan.user)
        if account then
            plan.uid, plan.gid, plan.groups = account.uid, account.gid, account.groups
            plan.account = { name = account.name, dir = account.dir, shell = account.shell }
        else
            at:key('user'):say(message or ('no such user: ' .. tostring(plan.user)))
        end
    end
    if plan.group ~= nil and where.getgroup then
        local gid, message = where.getgroup(plan.group)
        if gid then
            plan.gid = gid
        else
            at:key('group'):say(message or ('no such group: ' .. tostring(plan.group)))
        end
    end
end

-- The same of a unix socket's path in `listen`.
local function resolve_owners(plan, where, at)
    for i, entry in ipairs(plan.listen) do
        local owner = { user = entry.user, group = entry.group }
        resolve_account(owner, where, at:key('listen'):key(i))
        entry.owner = (owner.uid or owner.gid) and { uid = owner.uid, gid = owner.gid } or nil
    end
end

-- They accept from several processes that all wake, and take the sockets as their own former process left them.
local EXPECTS_NON_BLOCKING = { nginx = true, haproxy = true }

-- The name of a runtime among an interpreter's words that runs Node's apps and is not Node.
local function foreign_runtime(interpreter)
    for _, word in ipairs(interpreter or {}) do
        local name = word:match '[^/]*$'
        if name == 'bun' or name == 'deno' then
            return name
        end
    end
end

-- What one option alone cannot know: kind, preset, and what goes together.
local function complete(plan, raw, at)
    local worker = plan.worker
    if worker == nil then
        return
    end
    local kind = kind_of(worker)
    if plan.kind and kind == 'exec' and type(worker) == 'table' and plan.kind ~= 'exec' then
        at:key('kind'):say(('a worker given as a list is of kind "exec", not "%s"'):format(plan.kind))
    end
    plan.kind = plan.kind or kind
    local exec = plan.kind == 'exec'

    if type(worker) == 'table' and worker.preset then
        plan.preset = worker.preset
        plan.argv = preset_argv(worker, plan.listen)
        plan.socket_style = worker.sockets
        local environment = preset_environment(worker, plan.listen)
        for name, value in pairs(plan.environment) do
            environment[name] = value
        end
        plan.environment = types.environment.check(environment, at:key('worker'):key('environment'))
        if raw.ready == nil and worker.ready ~= nil then
            plan.ready = options.by_name.ready.type.check(worker.ready, at:key('worker')) or plan.ready
        end
        plan.stop_signal = plan.stop_signal or worker.stop_signal
        plan.worker = nil
        if worker.at_most and #plan.listen > worker.at_most then
            at:key('listen'):say(('%s takes %d of them at most, found %d'):format(worker.preset, worker.at_most,
                #plan.listen))
        end
    elseif type(worker) == 'table' then
        plan.argv = worker
        plan.worker = nil
    end
    plan.socket_style = plan.socket_style or 'listen_fds'
    plan.balance = plan.balance or exec and 'queue' or 'steered'
    if plan.non_blocking == nil then
        plan.non_blocking = EXPECTS_NON_BLOCKING[plan.preset] or false
    end
    plan.stop_signal = plan.stop_signal or STOP_SIGNAL
    if plan.argv and plan.interpreter then
        at:key('interpreter'):say('a worker given as a list names its program itself')
    end

    if plan.stamp_output and plan.worker_output:sub(1, 1) ~= '/' then
        at:key('stampOutput'):say('there is no file to write to: expected workerOutput = "/path/of/a/file" beside it')
    end
    local foreign = plan.kind == 'node' and foreign_runtime(plan.interpreter)
    if foreign then
        at:key('interpreter'):say(('%s does not speak the channel of a Node worker: use node, or run it as a server of'
            .. ' its own with worker = { "%s", ... } and listen'):format(foreign, foreign))
    end
    if exec and READY_OF_CHANNEL[plan.ready.type] then
        at:key('ready'):say(('a worker of kind "exec" has no channel: expected "notify", { alive = '
            .. 'seconds }, { port = n } or { http = "/path" }, found %s'):format(schema.describe(plan.ready.type)))
    elseif exec and plan.ready.type == 'port' and not addresses.has_tcp(plan.listen, plan.ready.port) then
        at:key('ready'):say(('no TCP address in listen has the port %d'):format(plan.ready.port))
    elseif not exec and #plan.listen > 0 then
        at:key('listen'):say(('a worker of kind "%s" names its addresses itself, when it listens'):format(plan.kind))
    end
end

-- A worker is asked by way of the lane that it alone has. Where a kernel without steering leaves it none, that is seen
-- when it is forked.
local function check_probe(plan, at)
    local port = plan.ready.port
    if plan.balance == 'shared' then
        at:key('ready'):say('with balance = "shared" a worker cannot be asked alone: expected "steered" or "sticky"')
    elseif plan.kind == 'exec' and not addresses.has_tcp(plan.listen, port) then
        at:key('ready'):say(port and ('no TCP address in listen has the port %d'):format(port)
            or 'a worker of kind "exec" is asked at a TCP address of listen: there is none')
    end
end

-- Which hooks the script has, and what can be said of one besides.
local function hooks_of(plan, raw)
    local hooks = {}
    for _, option in ipairs(options.list) do
        if option.hook and type(raw[option.name]) == 'function' then
            hooks[option.name] = true
        end
    end
    local concurrency = plan.restart_concurrency
    hooks.every, plan.every = plan.every, nil
    hooks.judge = type(concurrency) == 'table' and concurrency.canary and concurrency.canary.judge or nil
    return hooks
end

local function sorted_messages(errors, where)
    local lines = where.source and where.line and key_lines.scan(where.source, where.line) or {}
    local seen, found = {}, {}
    for _, err in ipairs(errors) do
        local path, line = err.path, nil
        while path ~= '' and not line do
            line = lines[path]
            path = path:match('^(.*)[.%[]') or ''
        end
        line = line or where.line or 0
        local text = ('%s:%d: %s%s'):format(where.file or 'master.lua', line, err.path == '' and 'start' or err.path,
            ': ' .. err.text)
        if not seen[text] then
            seen[text] = true
            found[#found + 1] = { line = line, text = text }
        end
    end
    table.sort(found, function(a, b)
        if a.line ~= b.line then
            return a.line < b.line
        end
        return a.text < b.text
    end)
    local messages = {}
    for i, err in ipairs(found) do
        messages[i] = err.text
    end
    return messages
end

--- Checks what a function of the script returned, which is the option `name`.
-- Returns the inside value, or nil and a list of messages.
function M.check(name, value, where)
    local at = schema.place(name)
    local inside = options.by_name[name].answer.check(value, at)
    if #at.errors > 0 then
        return nil, sorted_messages(at.errors, where)
    end
    return inside
end

--- Whether a good plan is so still. Only who its users and groups are is for others to change.
function M.stands(plan, where)
    local before = { plan }
    for _, entry in ipairs(plan.listen) do
        local owner = entry.owner or {}
        before[#before + 1] = { user = entry.user, group = entry.group, uid = owner.uid, gid = owner.gid }
    end
    for i, owner in ipairs(before) do
        if owner.user ~= nil or owner.group ~= nil then
            local now, at = { user = owner.user, group = owner.group }, schema.place('')
            resolve_account(now, where, at)
            if #at.errors > 0 or now.uid ~= owner.uid or now.gid ~= owner.gid
                or i == 1 and not (equal(now.groups, owner.groups) and equal(now.account, owner.account)) then
                return false
            end
        end
    end
    return true
end

--- Builds the plan. where = { file =, line = of the start call, source = text of the script, getuser =, getgroup =,
-- rights = what rights.new gives }.
-- Returns the plan, or nil and the list of all messages, in the order of their lines.
function M.build(raw, where)
    where = where or {}
    local at = schema.place('')
    if type(raw) ~= 'table' then
        at:fail('a table of options', raw)
        return nil, sorted_messages(at.errors, where)
    end
    local plan = schema.fields(raw, options.by_name, options.names, at, options.other_names)
    plan.hooks = hooks_of(plan, raw)
    -- A table for the environment when a function makes it: presets may still have something to add.
    if plan.hooks.workerEnvironment then
        plan.environment = {}
    end
    if #at.errors == 0 then
        complete(plan, raw, at)
        if plan.ready.type == 'http' then
            check_probe(plan, at)
        elseif plan.watchdog_ms and plan.kind ~= 'exec' then
            at:key('watchdog'):say(('a worker of kind "%s" shows that it lives by its answers: '
                .. 'expected ready = { http = "/path" }'):format(plan.kind))
        end
        resolve_account(plan, where, at)
        resolve_owners(plan, where, at)
        if where.rights and #at.errors == 0 then
            where.rights(plan, at)
        end
    end
    if #at.errors > 0 then
        return nil, sorted_messages(at.errors, where)
    end
    return plan
end

return M
