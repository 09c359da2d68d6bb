-- presets.lua: what is known of servers that can take a listening socket: how they take it, what makes them ready,
-- and which signal lets them finish their work. `worker = dutch.gunicorn { app = 'app:application' }`.
--
-- A preset is a plain table. In argv and environment, { each = ... } is repeated for each address of `listen`, with
-- {fd}, {index}, {name} and {address} filled in. sockets: how the server learns of them (kinds.lua); at_most: how many
-- it takes. Without `ready` it is that of every program: has lived a second, or says READY=1 before.
-- Loaded in the script's state; uses nothing but Lua.

local M = {}

local function option(given, name, field, kind, default)
    local value = given[field]
    if value == nil then
        if default == nil then
            error(('dutch.%s: %s: expected a %s, found nothing'):format(name, field, kind), 3)
        end
        return default
    elseif type(value) ~= kind and not (kind == 'string' and type(value) == 'number') then
        error(('dutch.%s: %s: expected a %s, found a %s'):format(name, field, kind, type(value)), 3)
    end
    return kind == 'string' and tostring(value) or value
end

local function append(list, items)
    for _, item in ipairs(items) do
        list[#list + 1] = item
    end
    return list
end

-- The program, which may have words of its own in front of ours: { 'bundle', 'exec', 'puma' }.
local function command(given, name, default)
    local words = type(given.command) == 'table' and given.command or { given.command or default }
    for i = 1, math.max(#words, 1) do
        if type(words[i]) ~= 'string' then
            error(('dutch.%s: command: expected a string or a list of strings'):format(name), 3)
        end
    end
    return append({}, words)
end

-- allowed: the keys a preset knows, so that a misspelt one is reported.
local function check_keys(given, name, allowed)
    if type(given) ~= 'table' then
        error(('dutch.%s: expected a table, found a %s'):format(name, type(given)), 3)
    end
    for key in pairs(given) do
        if not (' ' .. allowed .. ' args command '):find(' ' .. tostring(key) .. ' ', 1, true) then
            error(('dutch.%s: unknown option %s (there are: %s args command)'):format(name, tostring(key),
                allowed), 3)
        end
    end
end

local function workers(argv, flag, count)
    if count then
        append(argv, { flag, tostring(count) })
    end
    return argv
end

--- gunicorn { app, workers = 1 }. `-b fd://N` would unlink a unix path at exit, LISTEN_FDS does not. Its READY=1
-- comes before its own workers boot, so it is no sign of readiness.
function M.gunicorn(given)
    check_keys(given, 'gunicorn', 'app workers')
    local argv = workers(command(given, 'gunicorn', 'gunicorn'), '--workers', given.workers)
    append(argv, option(given, 'gunicorn', 'args', 'table', {}))
    append(argv, { option(given, 'gunicorn', 'app', 'string') })
    return { preset = 'gunicorn', argv = argv, sockets = 'listen_fds', stopSignal = 'SIGTERM' }
end

--- uvicorn { app, workers }: takes one socket.
function M.uvicorn(given)
    check_keys(given, 'uvicorn', 'app workers')
    local argv = append(command(given, 'uvicorn', 'uvicorn'), { { each = { '--fd', '{fd}' } } })
    workers(argv, '--workers', given.workers)
    append(argv, option(given, 'uvicorn', 'args', 'table', {}))
    append(argv, { option(given, 'uvicorn', 'app', 'string') })
    return { preset = 'uvicorn', argv = argv, sockets = 'argv', at_most = 1,
        stopSignal = 'SIGTERM' }
end

--- hypercorn { app, workers }
function M.hypercorn(given)
    check_keys(given, 'hypercorn', 'app workers')
    local argv = append(command(given, 'hypercorn', 'hypercorn'), { { each = { '-b', 'fd://{fd}' } } })
    workers(argv, '--workers', given.workers)
    append(argv, option(given, 'hypercorn', 'args', 'table', {}))
    append(argv, { option(given, 'hypercorn', 'app', 'string') })
    return { preset = 'hypercorn', argv = argv, sockets = 'argv', stopSignal = 'SIGTERM' }
end

--- puma { app = 'config.ru', workers }: leaves by the very SIGTERM it was sent. Says READY=1 only where the gem
-- sd_notify is installed.
function M.puma(given)
    check_keys(given, 'puma', 'app workers')
    local argv = append(command(given, 'puma', 'puma'), { '--bind-to-activated-sockets', 'only' })
    workers(argv, '--workers', given.workers)
    append(argv, option(given, 'puma', 'args', 'table', {}))
    append(argv, { option(given, 'puma', 'app', 'string', 'config.ru') })
    return { preset = 'puma', argv = argv, sockets = 'listen_fds', stopSignal = 'SIGTERM' }
end

--- unicorn { app = 'config.ru' }: SIGTERM is its fast stop, SIGQUIT the graceful one.
function M.unicorn(given)
    check_keys(given, 'unicorn', 'app')
    local argv = command(given, 'unicorn', 'unicorn')
    append(argv, option(given, 'unicorn', 'args', 'table', {}))
    append(argv, { option(given, 'unicorn', 'app', 'string', 'config.ru') })
    return { preset = 'unicorn', argv = argv, sockets = 'unicorn',
        stopSignal = 'SIGQUIT' }
end

--- nginx { config }: sockets are matched to the `listen` lines of its configuration by address.
function M.nginx(given)
    check_keys(given, 'nginx', 'config')
    local argv = append(command(given, 'nginx', 'nginx'), { '-c',
        option(given, 'nginx', 'config', 'string'), '-g', 'daemon off;' })
    append(argv, option(given, 'nginx', 'args', 'table', {}))
    return { preset = 'nginx', argv = argv, sockets = 'nginx',
        stopSignal = 'SIGQUIT' }
end

--- haproxy { config }: `bind fd@${DUTCH_FD_1}` in its configuration.
function M.haproxy(given)
    check_keys(given, 'haproxy', 'config')
    local argv = append(command(given, 'haproxy', 'haproxy'), { '-Ws', '-f',
        option(given, 'haproxy', 'config', 'string') })
    append(argv, option(given, 'haproxy', 'args', 'table', {}))
    return { preset = 'haproxy', argv = argv, sockets = 'argv',
        environment = { ['DUTCH_FD_{index}'] = { each = '{fd}' } },
        ready = 'notify', stopSignal = 'SIGUSR1' }
end

--- uwsgi { app | file, workers = 1 }: by default SIGTERM makes it reload, so it gets a hook that lets it finish.
function M.uwsgi(given)
    check_keys(given, 'uwsgi', 'app file workers')
    local argv = append(command(given, 'uwsgi', 'uwsgi'), { '--master', '--need-app',
        '--hook-master-start', 'unix_signal:15 gracefully_kill_them_all', { each = { '--http-socket',
            'fd://{fd}' } } })
    workers(argv, '--processes', given.workers)
    append(argv, option(given, 'uwsgi', 'args', 'table', {})) -- may name the plugin that knows the words after them
    if given.file then
        append(argv, { '--wsgi-file', option(given, 'uwsgi', 'file', 'string') })
    else
        append(argv, { '--module', option(given, 'uwsgi', 'app', 'string') })
    end
    return { preset = 'uwsgi', argv = argv, sockets = 'argv', ready = 'notify', stopSignal = 'SIGTERM' }
end

--- phpfpm { config, slash = true }: needs process_control_timeout > 0 to finish requests; the `listen` of its pool
-- must be the address here, with a slash behind a path: `listen = /run/app.sock/`. When it ends, it removes the path of
-- a unix socket, even of an inherited one, and one with a slash cannot be removed. With slash = false the pool has the
-- path as it is, the master puts it back each time, and some requests are refused meanwhile.
function M.phpfpm(given)
    check_keys(given, 'phpfpm', 'config slash')
    local argv = append(command(given, 'phpfpm', 'php-fpm'), { '--nodaemonize', '--fpm-config',
        option(given, 'phpfpm', 'config', 'string') })
    append(argv, option(given, 'phpfpm', 'args', 'table', {}))
    local slash = option(given, 'phpfpm', 'slash', 'boolean', true)
    return { preset = 'phpfpm', argv = argv, sockets = slash and 'fpm_slash' or 'fpm', stopSignal = 'SIGQUIT' }
end

return M
