-- advice.lua: what `check` says of a plan that is no error in itself, but will not do what its author wants, such as a
-- program that is not there, a preset without an address, a time that cuts another short. Pure but for the questions to
-- `world`.

local addresses = require 'dutch-master.addresses'

local M = {}

local DEFAULT_PATH = '/usr/local/bin:/usr/bin:/bin'

local function seconds(ms)
    return ('%g s'):format(ms / 1000)
end

local function directory_of(path)
    local dir = path:match '^(.*)/[^/]*$'
    return dir == '' and '/' or dir
end

--- Where a program is found: a path as it is, a name in PATH. -> path | nil, why not
local function find_program(world, name)
    if name:find('/', 1, true) then
        local path = name:sub(1, 1) == '/' and name or world.cwd .. '/' .. name
        return world.access(path, 'x') and path or nil, ('%s: no such program'):format(path)
    end
    local search = world.environ.PATH or DEFAULT_PATH
    for dir in (search .. ':'):gmatch '([^:]*):' do
        if world.access((dir == '' and world.cwd or dir) .. '/' .. name, 'x') then
            return dir .. '/' .. name
        end
    end
    return nil, ('%s: not found in PATH (%s)'):format(name, search)
end

--- "sleep 1000" -> "{ 'sleep', '1000' }"
function M.as_list(command)
    local words = {}
    for word in command:gmatch '%S+' do
        words[#words + 1] = ("'%s'"):format(word)
    end
    return '{ ' .. table.concat(words, ', ') .. ' }'
end

local checks = {}

function checks.program(plan, world, say)
    local file = plan.worker
    local elsewhere = plan.hooks.beforeFork and ' (beforeFork, which was not run, may choose another directory)' or ''
    if file and plan.kind ~= 'exec' then
        local path = file:sub(1, 1) == '/' and file or world.cwd .. '/' .. file
        if not world.stat(path) then
            say('worker', ('%s: no such file%s'):format(path, file:sub(1, 1) ~= '/' and elsewhere or ''))
        end
    end
    local program = plan.argv and plan.argv[1] or plan.kind == 'exec' and file or nil
    if plan.kind == 'node' or plan.interpreter then
        program = plan.interpreter and plan.interpreter[1] or 'node'
    end
    if not program then
        return
    end
    local found, why = find_program(world, program)
    if not found and program:find '%s' then
        say('worker', ('%s: no such program; a command with arguments is a list: %s'):format(program,
            M.as_list(program)))
    elseif not found and not program:find '/' and world.stat(world.cwd .. '/' .. program) then
        say('worker', ("%s; the file beside the script is './%s', and must be executable"):format(why, program))
    elseif not found then
        local is_relative = program:find('/', 1, true) and program:sub(1, 1) ~= '/'
        say(program ~= file and not plan.argv and 'interpreter' or 'worker', why .. (is_relative and elsewhere or ''))
    end
end

function checks.preset(plan, _, say)
    if plan.preset and #plan.listen == 0 then
        say('listen', ('%s binds its address itself: one worker gets it, the others and every replacement fail; '
            .. 'expected the address here, such as listen = ":8000"'):format(plan.preset))
    end
end

-- They run the app in a process of its own, to which they pass neither the sockets nor the channel.
local LAUNCHERS = {}
for name in ('npm npx yarn pnpm nodemon ts-node-dev tsx'):gmatch '%S+' do
    LAUNCHERS[name] = true
end

function checks.launcher(plan, _, say)
    local list = plan.argv or plan.interpreter
    local name = list and list[1] and list[1]:match '[^/]*$'
    if not LAUNCHERS[name] then
        return
    end
    local text = name .. ' runs the app in a process of its own, which gets neither the sockets nor the channel: write '
    if plan.kind == 'node' then
        say('interpreter', text .. (name == 'tsx' and "interpreter = { 'node', '--import', 'tsx' }" or 'node alone'))
    else
        say('worker', text .. "the file that it runs, such as worker = 'server.js'")
    end
end

local PHP_FPM_TIME = 'without process_control_timeout in [global] php-fpm cuts its requests off when it is asked to'
    .. ' leave: write process_control_timeout = 30s'

-- What a configuration file of php-fpm says: the values of `listen`, and whether it includes others.
local function read_fpm(text)
    local listens, includes, waits = {}, false, false
    for line in (text .. '\n'):gmatch '(.-)\r?\n' do
        local name, value = line:match '^%s*([%w_]+)%s*=%s*(.-)%s*$'
        value = value and value:gsub('^"(.*)"$', '%1')
        if name == 'listen' then
            listens[value] = true
        elseif name == 'process_control_timeout' then
            waits = not value:find '^0+%a*$'
        end
        includes = includes or name == 'include'
    end
    return listens, includes, waits
end

-- php-fpm takes a socket only if `listen` of its pool is written as it is told of it.
function checks.php_fpm(plan, world, say)
    local config = plan.preset == 'phpfpm' and plan.argv[4]
    local text = config and world.read(config:sub(1, 1) == '/' and config or world.cwd .. '/' .. config)
    if not text then
        return
    end
    local listens, includes, waits = read_fpm(text)
    if not waits then
        say('worker', config .. ': ' .. PHP_FPM_TIME)
    end
    for _, entry in ipairs(plan.listen) do
        local path = entry.text:match '^unix:([^@].*)$'
        local other = path and path .. '/'
        if plan.socket_style == 'fpm_slash' then
            path, other = other, path
        end
        if path and not listens[path] and (listens[other] or not includes) then
            say('worker', ('%s: no pool has listen = %s%s'):format(config, path, path:sub(-1) == '/'
                and ' (without the slash at its end php-fpm removes the path whenever a worker ends)'
                or ', as slash = false needs it'))
        end
    end
end

function checks.preload(plan, world, say)
    local lost = plan.drain ~= false and 'keep-alive draining is off' or plan.metrics and 'metrics are off'
    if plan.kind == 'node' and lost and world.no_preload then
        say('worker', world.no_preload .. lost)
    end
end

function checks.times(plan, _, say)
    if plan.stop_timeout_ms > 0 and plan.kill_timeout_ms >= plan.stop_timeout_ms then
        say('killTimeout', ('%s is not less than stopTimeout (%s): a worker gets SIGTERM as soon as it is asked to '
            .. 'leave'):format(seconds(plan.kill_timeout_ms), seconds(plan.stop_timeout_ms)))
    end
end

--- "0-1,4" -> { [0] = true, [1] = true, [4] = true }
local function cpu_set(list)
    local set = {}
    for first, last in list:gmatch '(%d+)%-?(%d*)' do
        for cpu = tonumber(first), tonumber(last) or tonumber(first) do
            set[cpu] = true
        end
    end
    return set
end

function checks.cpus(plan, world, say)
    local allowed = plan.cpus and world.status and world.status:match 'Cpus_allowed_list:%s*(%S+)'
    if not allowed then
        return
    end
    local set, missing = cpu_set(allowed), {}
    for _, cpu in ipairs(plan.cpus) do
        if not set[cpu] then
            missing[#missing + 1] = cpu
        end
    end
    if #missing == #plan.cpus then
        say('cpus', ('none of them is usable here: there are %s; no worker can start'):format(allowed))
    elseif missing[1] then
        local more = #missing > 1 and (' and %d more'):format(#missing - 1) or ''
        say('cpus', ('%d%s cannot be used here: there are %s'):format(missing[1], more, allowed))
    end
end

function checks.output(plan, world, say)
    local path = plan.worker_output
    if type(path) ~= 'string' or path:sub(1, 1) ~= '/' then
        return
    end
    local there = world.stat(path)
    local ok, why = world.access(there and path or directory_of(path), 'w')
    if not ok then
        say('workerOutput', ('%s; no worker can start'):format(why))
    end
end

function checks.readiness(plan, _, say)
    local kind = plan.ready.type
    if plan.kind == 'exec' and (kind == 'auto' or kind == 'alive') and not addresses.has_tcp(plan.listen) then
        say('ready', 'a worker is taken for ready when it has lived for some time: without a TCP address in listen '
            .. 'nothing shows that it serves; "notify" is better where the program can')
    end
end

function checks.watchdog(plan, _, say)
    if plan.watchdog_ms and plan.ready.type == 'http' and plan.balance == 'queue' then
        say('watchdog', 'with balance = "queue" any worker of a release answers for all of them: one that hangs alone '
            .. 'is not found; with "steered" each is asked')
    end
end

function checks.hooks(plan, _, say)
    local names = {}
    for name, hooked in pairs(plan.hooks) do
        if hooked and name ~= 'numWorkers' then -- whose number is in the plan
            names[#names + 1] = name
        end
    end
    table.sort(names)
    if names[1] then
        say(nil, ('the hooks were not run: %s'):format(table.concat(names, ', ')))
    end
end

local ORDER = { 'program', 'launcher', 'preset', 'php_fpm', 'preload', 'times', 'cpus', 'output', 'readiness',
    'watchdog', 'hooks' }

--- @param world { cwd, environ, stat(path), access(path, mode), read(path) -> text or nil, status = text of
--   /proc/self/status, no_preload = why Node workers go without, or nil }
-- @return a list of { option = name or nil, text = }
function M.of(plan, world)
    local found = {}
    for _, name in ipairs(ORDER) do
        checks[name](plan, world, function(option, text)
            found[#found + 1] = { option = option, text = text }
        end)
    end
    return found
end

return M
