-- presets.lua: what is known of servers that can take a listening socket: how they take it, what makes them ready,
-- and which signal lets them finish their work. `worker = dutch.gunicorn { app = 'app:application' }`.
--
-- A preset is a plain table. In argv and environment, { each = ... } is repeated for each address of `listen`, with
-- {fd}, {index}, {name} and {address} filled in. sockets: how the server learns of them (kinds.lua); at_most: how many
-- it takes. Without `ready` it is that of every program: has lived a second, or says READY=1 before.
-- Loaded in the script's state; uses nothing but Lua.

local M = {}

-- An error is said of the line of the script: `option` is called by an item of argv, that by the preset.
local function option(given, name, field, kind, default)
    local value = given[field]
    if value == nil then
        if default == nil then
            error(('dutch.%s: %s: expected a %s, found nothing'):format(name, field, kind), 4)
        end
        return default
    elseif type(value) ~= kind and not (kind == 'string' and type(value) == 'number') then
        error(('dutch.%s: %s: expected a %s, found a %s'):format(name, field, kind, type(value)), 4)
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

-- Items of argv that the script fills: each is function(given, the preset's name) -> words.

local function text(field, default)
    return function(given, name)
        return { option(given, name, field, 'string', default) }
    end
end

local function workers(flag)
    return function(given)
        return given.workers and { flag, tostring(given.workers) } or {}
    end
end

local function args(given, name)
    local words = option(given, name, 'args', 'table', {})
    return words
end

local function file_or_app(given, name)
    if given.file then
        return { '--wsgi-file', option(given, name, 'file', 'string') }
    end
    return { '--module', option(given, name, 'app', 'string') }
end

local function slash_or_not(given, name)
    return option(given, name, 'slash', 'boolean', true) and 'fpm_slash' or 'fpm'
end

-- options: what may be given beside args and command.
local PRESETS = {
    -- `-b fd://N` would unlink a unix path at exit, LISTEN_FDS does not. Its READY=1 comes before its own workers boot,
    -- so it is no sign of readiness.
    gunicorn = { options = 'app workers', argv = { workers '--workers', args, text 'app' }, sockets = 'listen_fds',
        stopSignal = 'SIGTERM' },
    uvicorn = { options = 'app workers', sockets = 'argv', at_most = 1, stopSignal = 'SIGTERM',
        argv = { { each = { '--fd', '{fd}' } }, workers '--workers', args, text 'app' } },
    hypercorn = { options = 'app workers', sockets = 'argv', stopSignal = 'SIGTERM',
        argv = { { each = { '-b', 'fd://{fd}' } }, workers '--workers', args, text 'app' } },
    -- Leaves by the very SIGTERM it was sent. Says READY=1 only where the gem sd_notify is installed.
    puma = { options = 'app workers', sockets = 'listen_fds', stopSignal = 'SIGTERM',
        argv = { '--bind-to-activated-sockets', 'only', workers '--workers', args, text('app', 'config.ru') } },
    -- SIGTERM is its fast stop, SIGQUIT the graceful one.
    unicorn = { options = 'app', argv = { args, text('app', 'config.ru') }, sockets = 'unicorn',
        stopSignal = 'SIGQUIT' },
    -- Sockets are matched to the `listen` lines of its configuration by address.
    nginx = { options = 'config', argv = { '-c', text 'config', '-g', 'daemon off;', args }, sockets = 'nginx',
        stopSignal = 'SIGQUIT' },
    -- `bind fd@${DUTCH_FD_1}` in its configuration.
    haproxy = { options = 'config', argv = { '-Ws', '-f', text 'config', args }, sockets = 'argv', ready = 'notify',
        environment = { ['DUTCH_FD_{index}'] = { each = '{fd}' } }, stopSignal = 'SIGUSR1' },
    -- By default SIGTERM makes it reload, so it gets a hook that lets it finish. args may name the plugin that knows
    -- the words after them.
    uwsgi = { options = 'app file workers', sockets = 'argv', ready = 'notify', stopSignal = 'SIGTERM',
        argv = { '--master', '--need-app', '--hook-master-start', 'unix_signal:15 gracefully_kill_them_all',
            { each = { '--http-socket', 'fd://{fd}' } }, workers '--processes', args, file_or_app } },
    -- Needs process_control_timeout > 0 to finish requests; the `listen` of its pool must be the address here, with a
    -- slash behind a path: `listen = /run/app.sock/`. When it ends, it removes the path of a unix socket, even of an
    -- inherited one, and one with a slash cannot be removed. With slash = false the pool has the path as it is, the
    -- master puts it back each time, and some requests are refused meanwhile.
    phpfpm = { program = 'php-fpm', options = 'config slash', sockets = slash_or_not, stopSignal = 'SIGQUIT',
        argv = { '--nodaemonize', '--fpm-config', text 'config', args } },
}

for name, row in pairs(PRESETS) do
    M[name] = function(given)
        check_keys(given, name, row.options)
        local argv, sockets = command(given, name, row.program or name), row.sockets
        for _, item in ipairs(row.argv) do
            append(argv, type(item) == 'function' and item(given, name) or { item })
        end
        if type(sockets) == 'function' then
            sockets = sockets(given, name)
        end
        return { preset = name, argv = argv, sockets = sockets, environment = row.environment, ready = row.ready,
            at_most = row.at_most, stopSignal = row.stopSignal }
    end
end

return M
