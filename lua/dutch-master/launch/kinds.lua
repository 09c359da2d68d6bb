-- The kinds of worker, one row of data each: how argv and environment are made, whether there is a channel, what
-- counts as ready and how a worker is asked to stop. Pure: a row turns (plan, context) into what core.spawn takes
-- and touches nothing.
--
-- context, all of one fork:
--   id, slot, generation     numbers
--   master_pid               of this master
--   cwd                      directory of the fork, absolute, or nil to stay
--   environ                  the master's own environment, {NAME = value}
--   environment              workerEnvironment of this fork, {NAME = value}; false removes a name, one of ours too
--   account                  {name, dir, shell} of the user that the worker becomes, or nil to stay who we are
--   executable               this binary, for Lua workers
--   preload                  path of drain.cjs, or nil to go without
--   metrics_preload          path of metrics.cjs, likewise
--   notify_name              value for NOTIFY_SOCKET, or nil
--   passed                   names of the sockets that are passed on to a worker with a channel, or nil
--   listen                   { {name =, address = text}, ... } handed down from fd 3 on, in this order
local M = {}

local DEFAULT_PATH = '/usr/local/bin:/usr/bin:/bin'
local FIRST_FD = 3 -- where inherited descriptors begin, by the convention of LISTEN_FDS

-- Names that speak of the master alone: what its own supervisor, or an outer dutch-master or Node, told it.
local MASTERS_OWN = {
    'LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES', 'LISTEN_PIDFDID', 'NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID',
    'FDSTORE', 'MAINPID', 'MAINPIDFDID', 'SYSTEMD_EXEC_PID', 'INVOCATION_ID', 'JOURNAL_STREAM', 'EINHORN_FD_COUNT',
    'NODE_CHANNEL_FD', 'NODE_CHANNEL_SERIALIZATION_MODE', 'NODE_UNIQUE_ID', 'UNICORN_FD', 'NGINX', 'FPM_SOCKETS',
    'DUTCH_MASTER_PID', 'DUTCH_MASTER_WORKER', 'DUTCH_MASTER_SLOT', 'DUTCH_MASTER_GENERATION',
    'DUTCH_MASTER_PATIENCE',
}

local function basename(path)
    return path:match('[^/]*$')
end

local function append(list, more)
    for _, value in ipairs(more or {}) do
        list[#list + 1] = value
    end
    return list
end

--- The environment of a fork as {NAME = value}, without what the kind adds.
function M.environment(context)
    local env = {}
    for name, value in pairs(context.environ or {}) do
        env[name] = value
    end
    for _, name in ipairs(MASTERS_OWN) do
        env[name] = nil
    end
    local account = context.account
    if account then
        env.HOME, env.USER, env.LOGNAME, env.SHELL = account.dir, account.name, account.name, account.shell
    end
    for name, value in pairs(context.environment or {}) do
        env[name] = value or nil
    end
    if context.cwd then
        env.PWD = context.cwd
    end
    env.DUTCH_MASTER_PID = tostring(context.master_pid or '')
    env.DUTCH_MASTER_WORKER = tostring(context.id)
    env.DUTCH_MASTER_SLOT = tostring(context.slot)
    env.DUTCH_MASTER_GENERATION = tostring(context.generation)
    env.NOTIFY_SOCKET = context.notify_name
    return env
end

-- What the script does not want, whoever has set it.
local function take_away(env, environment)
    for name, value in pairs(environment) do
        if value == false then
            env[name] = nil
        end
    end
end

--- 'NAME=value' strings in a stable order.
function M.flatten(env)
    local list = {}
    for name, value in pairs(env) do
        list[#list + 1] = name .. '=' .. value
    end
    table.sort(list)
    return list
end

-- function(plan, context) -> what core.spawn takes, for a kind.
-- @param of_kind function(plan, context, env) -> what the kind says of it; adds to env
local function spawning(of_kind)
    return function(plan, context)
        local env, environment = M.environment(context), context.environment or {}
        local fields = of_kind(plan, context, env)
        take_away(env, environment)
        fields.listen_pid = fields.listen_pid and environment.LISTEN_PID ~= false
        fields.watchdog_pid = fields.watchdog_pid and environment.WATCHDOG_PID ~= false
        fields.search_path = env.PATH or DEFAULT_PATH
        fields.env = M.flatten(env)
        return fields
    end
end

-- The channel comes behind the sockets that are passed on, if any are.
local function with_channel(env, context)
    local passed = context.passed or {}
    if #passed > 0 then
        env.LISTEN_FDS, env.LISTEN_FDNAMES = tostring(#passed), table.concat(passed, ':')
    end
    env.NODE_CHANNEL_FD = tostring(FIRST_FD + #passed)
    env.NODE_CHANNEL_SERIALIZATION_MODE = 'json'
    env.NODE_UNIQUE_ID = tostring(context.id)
end

-- Where among the interpreter's words Node's own options may begin, or nil when none of them is Node
-- (bun, deno, a shell): those do not take --require.
local function takes_require(interpreter)
    for _, word in ipairs(interpreter) do
        local name = basename(word)
        if name:match('^node[%d.]*$') or name == 'nodejs' then
            return true
        end
    end
    return false
end

local FIRST_PORT, LAST_PORT = 1024, 65535

-- Node's cluster gives each worker an inspector's port of its own: that of the option plus the worker's number.
local function inspect_option(words, id)
    for _, word in ipairs(words) do
        local option, value = word:match '^(%-%-inspect[%-a-z]*)=?(.*)$'
        if option == '--inspect' or option == '--inspect-brk' or option == '--inspect-port' then
            local host, port = value:match '^(.*):(%d+)$'
            host, port = host or value:find '%D' and value or nil, tonumber(port or value) or 9229
            if port == 0 then
                return nil
            end
            port = (port + id - FIRST_PORT) % (LAST_PORT - FIRST_PORT + 1) + FIRST_PORT
            return '--inspect-port=' .. (host and host .. ':' or '') .. port
        end
    end
end

local function words_of(text)
    local words = {}
    for word in (text or ''):gmatch '%S+' do
        words[#words + 1] = word
    end
    return words
end

local function of_node(plan, context, env)
    with_channel(env, context)
    local interpreter = plan.interpreter or { 'node' }
    local argv = append({}, interpreter)
    if plan.drain ~= false and context.preload and takes_require(interpreter) then
        append(argv, { '--require', context.preload })
        -- For the preload alone, which takes it away: until SIGTERM would have come at the latest.
        env.DUTCH_MASTER_PATIENCE = ('%d'):format(math.max(plan.stop_timeout_ms - plan.kill_timeout_ms, 0))
    end
    if plan.metrics and context.metrics_preload and takes_require(interpreter) then
        append(argv, { '--require', context.metrics_preload })
    end
    if takes_require(interpreter) then
        local id = context.id
        append(argv, { inspect_option(interpreter, id) or inspect_option(words_of(env.NODE_OPTIONS), id) })
    end
    append(argv, { plan.worker })
    append(argv, plan.args)
    -- Node finds 'server' as server.js or server/index.js: only a name with an ending is certainly a file.
    local must_read = basename(plan.worker):find('%.[%w]+$') and plan.worker or nil
    local passes = context.passed ~= nil and #context.passed > 0
    return { file = argv[1], argv = argv, channel = true, must_read = must_read, listen_pid = passes }
end

local function of_lua(plan, context, env)
    with_channel(env, context)
    env.DUTCH_MASTER_METRICS = plan.metrics and '1' or nil
    local argv = append({ 'dutch-master', '--lua-worker', plan.worker }, plan.args)
    local file = context.executable
    if plan.interpreter then
        argv = append(append(append({}, plan.interpreter), { plan.worker }), plan.args)
        file = argv[1]
    end
    return { file = file, argv = argv, channel = true, must_read = plan.worker, listen_pid = false }
end

-- php-fpm compares with what it makes of its `listen`: a path without a prefix, an address of IPv6 without brackets,
-- and the wildcard as ::. When it ends, it unlinks the paths it was given; one with a slash behind it is not unlinked.
local function fpm_sockets(sockets, behind_path)
    local list = {}
    for i, socket in ipairs(sockets) do
        local text = socket.address
        if text:find('^unix:') then
            text = text:sub(#'unix:' + 1) .. behind_path
        else
            text = text:gsub('^%[(.*)%]:', '%1:'):gsub('^:(%d+)$', ':::%1')
        end
        list[i] = text .. '=' .. socket.fd
    end
    return table.concat(list, ',')
end

-- How servers are told which descriptors are theirs. Each takes (env, argv, sockets), sockets = {{fd, name, address}}.
M.socket_styles = {
    -- systemd's convention; the child itself adds LISTEN_PID.
    listen_fds = function(env, _, sockets)
        local names = {}
        for i, socket in ipairs(sockets) do
            names[i] = socket.name
        end
        env.LISTEN_FDS = tostring(#sockets)
        env.LISTEN_FDNAMES = table.concat(names, ':')
    end,
    -- {fd} is the first socket's number, {fd:NAME} that of the socket of this name.
    argv = function(_, argv, sockets)
        local by_name = {}
        for _, socket in ipairs(sockets) do
            by_name[socket.name] = by_name[socket.name] or tostring(socket.fd)
        end
        for i, word in ipairs(argv) do
            word = word:gsub('{fd}', tostring(sockets[1].fd))
            argv[i] = word:gsub('{fd:([^}]*)}', by_name)
        end
    end,
    -- nginx wants a separator after every number.
    nginx = function(env, _, sockets)
        local text = ''
        for _, socket in ipairs(sockets) do
            text = text .. socket.fd .. ';'
        end
        env.NGINX = text
    end,
    fpm = function(env, _, sockets)
        env.FPM_SOCKETS = fpm_sockets(sockets, '')
    end,
    fpm_slash = function(env, _, sockets)
        env.FPM_SOCKETS = fpm_sockets(sockets, '/')
    end,
    unicorn = function(env, _, sockets)
        local list = {}
        for i, socket in ipairs(sockets) do
            list[i] = tostring(socket.fd)
        end
        env.UNICORN_FD = table.concat(list, ',')
    end,
}

-- LISTEN_FDNAMES separates by colons and takes printable ASCII; names are at most 255 long.
local function socket_name(name, place)
    name = tostring(name or ''):gsub('[^\33-\126]', '_'):gsub(':', '_'):sub(1, 255)
    return name == '' and 'socket' .. place or name
end

local function of_exec(plan, context, env)
    local argv = append({}, plan.argv or { plan.worker })
    if plan.interpreter then
        argv = append(append({}, plan.interpreter), argv)
    end
    append(argv, plan.args)
    local sockets = {}
    for i, socket in ipairs(context.listen or {}) do
        sockets[i] = { fd = FIRST_FD + i - 1, name = socket_name(socket.name, i), address = tostring(socket.address) }
    end
    local style = plan.socket_style or 'listen_fds'
    if #sockets > 0 then
        M.socket_styles[style](env, argv, sockets)
    end
    local fields = { file = argv[1], argv = argv, channel = false }
    fields.listen_pid = #sockets > 0 and style == 'listen_fds'
    -- sd_watchdog_enabled(3); one that is asked need not say it. The child itself adds WATCHDOG_PID.
    fields.watchdog_pid = plan.watchdog_ms ~= nil and (plan.ready or {}).type ~= 'http'
    env.WATCHDOG_USEC = fields.watchdog_pid and ('%d'):format(plan.watchdog_ms * 1000) or nil
    return fields
end

-- legend: has_channel  a socketpair speaking the protocol of conversation.lua
--         asks         what a graceful stop begins with: the channel's disconnect act, or the stop signal itself
--         default_ready  used where the plan says nothing
M.rows = {
    node = {
        name = 'node',
        has_channel = true,
        asks = 'disconnect',
        default_ready = { type = 'listening' },
        spawn = spawning(of_node),
    },
    lua = {
        name = 'lua',
        has_channel = true,
        asks = 'disconnect',
        default_ready = { type = 'listening' },
        spawn = spawning(of_lua),
    },
    exec = {
        name = 'exec',
        has_channel = false,
        asks = 'signal',
        default_ready = { type = 'auto', alive_ms = 1000 },
        spawn = spawning(of_exec),
    },
}

--- The row of a plan.
function M.of(plan)
    return M.rows[plan.kind]
end

return M
