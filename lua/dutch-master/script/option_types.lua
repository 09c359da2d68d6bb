-- option_types.lua: the types of the options that are more than a number or a word (see schema.lua for what a type is).
-- What the table in options.lua names, is here.
-- Longer than 400 lines: one type after the other, each by itself.

local addresses = require 'dutch-master.addresses'
local schema = require 'dutch-master.script.schema'
local sorted_keys = require 'dutch-master.sorted_keys'

local M = {}

M.MAX_WORKERS = 4096 -- a number of workers above this is a mistake on any machine known

-- Types of single options -----------------------------------------------------------------------------------------

M.worker_count = schema.integer(1, M.MAX_WORKERS)
M.arguments = schema.list_of(schema.argument, 'a list of strings')

local either = schema.by_type

-- A function that stays in the script's state; the plan only knows that it is there.
M.hook = schema.simple('a function', function(value)
    return type(value) == 'function', true
end)

-- worker: 'app.js', { 'gunicorn', '-b', ... }, or what a preset returned (see presets.lua).
local preset = schema.record('a preset', {
    preset = { type = schema.text, required = true },
    argv = { type = schema.any 'a list', required = true },
    environment = { type = schema.any 'a table' },
    sockets = { type = schema.one_of { 'listen_fds', 'argv', 'nginx', 'fpm', 'fpm_slash', 'unicorn' },
        default = 'listen_fds' },
    ready = { type = schema.any 'a table' },
    stopSignal = { inside = 'stop_signal', type = schema.text },
    at_most = { type = schema.integer(1, 64) },
})

local WORKER = 'a path, a list of strings (the command and its arguments), or a preset'
M.worker = either(WORKER, {
    string = schema.text,
    table = function(value, at)
        if value.preset ~= nil then
            return preset.check(value, at)
        end
        local argv = schema.list_of(schema.argument, WORKER, 1).check(value, at)
        if argv and argv[1] == '' then
            at:key(1):fail('the name of a program', '')
        end
        return argv
    end,
})

-- A name goes before '=' in the environment's block, a value after it: neither may end the other.
local ENVIRONMENT = 'a table of strings'
M.environment = {
    expects = ENVIRONMENT,
    check = function(value, at)
        if type(value) ~= 'table' then
            return at:fail(ENVIRONMENT .. ', or a function that returns one', value)
        end
        local inside = {}
        for name, text in pairs(value) do
            local place = at:key(name)
            if type(name) ~= 'string' or name == '' or name:find('[=%z]') then
                place:say(('expected a name without "=" and NUL, found %s'):format(schema.describe(name)))
            elseif text == false then
                inside[name] = false -- takes the variable away
            elseif type(text) == 'number' and schema.is_finite(text) then
                inside[name] = ('%.14g'):format(text)
            elseif type(text) ~= 'string' then
                place:fail('a string, a number or false', text)
            elseif text:find('\0', 1, true) then
                place:fail('a string without NUL', text)
            elseif #name + #text > 128 * 1024 - 2 then
                place:say('expected at most 131070 bytes of name and value, found ' .. #name + #text)
            else
                inside[name] = text
            end
        end
        return inside
    end,
}

local RESTART_REFUSED = {
    KILL = 'no process can handle it',
    STOP = 'no process can handle it',
    CHLD = 'it tells the master that a worker has exited',
    TERM = 'it stops the cluster',
    INT = 'it stops the cluster',
    QUIT = 'it stops the cluster',
    USR1 = 'it reopens the log',
    TTIN = 'it adds a worker',
    TTOU = 'it takes a worker away',
    PIPE = 'it is ignored',
    CONT = 'it is the answer to a stop',
    TSTP = 'it is the terminal\'s',
}
local STOP_REFUSED = {
    KILL = 'it is what follows when stopTimeout is over',
    STOP = 'a stopped process cannot leave',
    TSTP = 'a stopped process cannot leave',
    TTIN = 'a stopped process cannot leave',
    TTOU = 'a stopped process cannot leave',
    CHLD = 'it is ignored by default',
    CONT = 'it is ignored by default',
    URG = 'it is ignored by default',
}
for _, name in ipairs { 'SEGV', 'BUS', 'FPE', 'ILL', 'TRAP', 'SYS', 'ABRT', 'STKFLT', 'XCPU', 'XFSZ' } do
    RESTART_REFUSED[name] = 'it reports a fault'
    STOP_REFUSED[name] = STOP_REFUSED[name] or 'it reports a fault'
end

-- listen = 'a', { 'a', 'b' }, { http = 'a', admin = { address = 'b', mode = '0660' } }
local function octal(value)
    if type(value) == 'number' then
        value = ('%.14g'):format(value) -- 027 is 27 for Lua; the digits are what the user means
    end
    if type(value) ~= 'string' or not value:match('^0?o?[0-7]?[0-7]?[0-7]?[0-7]$') then
        return nil
    end
    return tonumber((value:gsub('o', '')), 8)
end

local function mode(expects)
    return schema.simple(expects, function(value)
        local n = octal(value)
        return n and n <= tonumber('777', 8), n
    end)
end

local ADDRESS, UNIX_PATH_MAX = addresses.EXPECTED, addresses.UNIX_PATH_MAX
local address = {
    expects = ADDRESS,
    check = function(value, at)
        if addresses.is_one(value) then
            return value
        end
        local hint = addresses.hint(value)
        return at:say(('expected %s, found %s%s'):format(ADDRESS, schema.describe(value), hint and '; ' .. hint or ''))
    end,
}

local function account(expects)
    return either(expects, {
        string = schema.text,
        number = schema.integer(0, 4294967294),
    })
end

local address_record = schema.record(ADDRESS, {
    address = { inside = 'text', type = address, required = true },
    name = { type = schema.text },
    mode = { type = mode 'an octal mode such as "0660"' },
    user = { type = account 'the name or number of a user' },
    group = { type = account 'the name or number of a group' },
})

local function listen_entry(value, at, name)
    local entry
    if type(value) == 'table' then
        entry = address_record.check(value, at)
    else
        entry = { text = address.check(value, at) }
    end
    entry.name = entry.name or name
    if type(entry.name) == 'string' and (entry.name:find('[:%c\128-\255]') or #entry.name > 255) then
        at:key('name'):fail('a name of ASCII letters without ":"', entry.name)
    end
    local path = entry.text and entry.text:match('^unix:(.*)$')
    if path and #path > UNIX_PATH_MAX then
        at:say(('expected a path of at most %d bytes, found %d'):format(UNIX_PATH_MAX, #path))
    end
    for _, key in ipairs { 'mode', 'user', 'group' } do
        if entry[key] and not (path and path:sub(1, 1) == '/') then
            at:key(key):say(('only a unix socket with a path has a %s'):format(key))
        end
    end
    return entry
end

M.listen = either(ADDRESS .. ', or a table of these', {
    string = function(value, at)
        return { listen_entry(value, at, 'listen-1') }
    end,
    table = function(value, at)
        if value.address ~= nil then
            return { listen_entry(value, at, 'listen-1') }
        end
        local entries, keys = {}, sorted_keys(value)
        if #keys == 0 then
            at:fail(ADDRESS, value)
        end
        local seen = {}
        for i, key in ipairs(keys) do
            local place = at:key(key)
            local entry = listen_entry(value[key], place, type(key) == 'string' and key or 'listen-' .. i)
            if entry.text and seen[entry.text] and not addresses.is_any_port(entry.text) then
                place:say(('the address %s is there twice: leave one out, a worker gets one socket for it')
                    :format(entry.text))
            end
            seen[entry.text or {}] = true
            entries[i] = entry
        end
        return entries
    end,
})

local READY = 'one of "listening", "message", "notify", { alive = seconds }, { port = n }, { path = "/socket" }, '
    .. '{ http = "/path" }, { tls = true }, or { message = "text" }'
local IS_READY_WORD = schema.set { 'listening', 'message', 'notify' }
local READY_FIELDS = {
    alive = { inside = 'alive_ms', type = schema.seconds(0) },
    port = { inside = 'port', type = schema.integer(1, 65535) },
    path = { inside = 'path', type = schema.absolute_path },
    message = { inside = 'message', type = schema.text },
}
local READY_NAMES = { 'alive', 'http', 'message', 'path', 'port', 'tls' }

-- What goes into a request line, or a header: nothing that would end either.
local function one_word(expects, first)
    return schema.simple(expects, function(value)
        return type(value) == 'string' and #value <= 2048 and value:find('^' .. first .. '[\33-\126]*$') ~= nil
    end)
end
local READY_HTTP = 'a table with http, port, host, interval, timeout'
local ready_http = schema.record(READY_HTTP, {
    http = { inside = 'path', type = one_word('a path such as "/health"', '/'), required = true },
    port = { type = schema.integer(1, 65535) },
    host = { type = one_word('the name of a host', '[\33-\126]') },
    interval = { inside = 'interval_ms', type = schema.seconds(0.01), default = 500 },
    timeout = { inside = 'timeout_ms', type = schema.seconds(0.01), default = 1000 },
})

local ready_tls = schema.record('a table with tls, port, interval, timeout', {
    tls = { type = schema.simple('true', function(value)
        return value == true
    end), required = true },
    port = { type = schema.integer(1, 65535) },
    interval = { inside = 'interval_ms', type = schema.seconds(0.01), default = 500 },
    timeout = { inside = 'timeout_ms', type = schema.seconds(0.01), default = 1000 },
})

M.ready = either(READY, {
    string = function(value, at)
        if IS_READY_WORD[value] then
            return { type = value }
        end
        at:fail(READY, value)
    end,
    table = function(value, at)
        if value.http ~= nil then
            local inside = ready_http.check(value, at)
            inside.type = 'http'
            return inside
        end
        if value.tls ~= nil then
            local inside = ready_tls.check(value, at)
            inside.type, inside.path = 'http', '/'
            return inside
        end
        local name, given = next(value)
        if name == nil or next(value, name) ~= nil then
            return at:fail(READY, value)
        elseif not READY_FIELDS[name] then
            return at:key(name):unknown(READY_NAMES, 'kind of readiness')
        end
        local field = READY_FIELDS[name]
        return { type = name, [field.inside] = field.type.check(given, at:key(name)) }
    end,
})

local function concurrency_of(expects)
    return schema.simple(expects, function(value)
        if not schema.is_finite(value) or value <= 0 then
            return false
        end
        return value < 1 or value == math.floor(value) and value <= M.MAX_WORKERS
    end)
end
local CONCURRENCY = 'a number of workers (1 or more), a fraction of them (more than 0, less than 1)'
local share = schema.simple('a fraction, more than 0 and at most 1', function(value)
    return schema.is_finite(value) and value > 0 and value <= 1
end)
M.hook_timeout = schema.seconds(0.05)

local SECONDS_OR_FALSE = 'a number of seconds, or false'
M.leftover_timeout = either(SECONDS_OR_FALSE, {
    number = schema.seconds(0),
    boolean = function(value, at)
        if value then
            at:fail(SECONDS_OR_FALSE, value)
        end
        return false
    end,
})
local canary_record = schema.record('true, or a table with weight, soak, judge, timeout', {
    weight = { type = share },
    soak = { inside = 'soak_ms', type = schema.seconds(0), default = 10000 },
    judge = { type = M.hook, default = false },
    timeout = { inside = 'timeout_ms', type = M.hook_timeout },
})
local canary = either(canary_record.expects, {
    boolean = function(value, at)
        return value and canary_record.check({}, at) or nil
    end,
    table = canary_record,
})
M.concurrency = either(CONCURRENCY .. ', "canary", or { canary = ... }', {
    number = concurrency_of(CONCURRENCY),
    string = function(value, at)
        if value ~= 'canary' then
            return at:fail(CONCURRENCY .. ' or "canary"', value)
        end
        return { canary = canary_record.check({}, at) }
    end,
    table = schema.record(CONCURRENCY .. ', or { canary = ... }', {
        canary = { type = canary, required = true },
        after = { type = concurrency_of(CONCURRENCY) },
    }),
})

local backoff_record = schema.record('a table with first, max, reset', {
    first = { inside = 'first_ms', type = schema.seconds(0.001), default = 100 },
    max = { inside = 'max_ms', type = schema.seconds(0.001), default = 30000 },
    reset = { inside = 'reset_ms', type = schema.seconds(0), default = 10000 },
})
M.backoff = {
    expects = backoff_record.expects,
    check = function(value, at)
        local inside = backoff_record.check(value, at)
        if inside and inside.first_ms and inside.max_ms and inside.first_ms > inside.max_ms then
            at:say(('expected first to be at most max, found %g s and %g s'):format(inside.first_ms / 1000,
                inside.max_ms / 1000))
        end
        return inside
    end,
}

local LIMITS = { 'as', 'core', 'cpu', 'data', 'fsize', 'memlock', 'msgqueue', 'nice', 'nofile', 'nproc', 'rss',
    'rtprio', 'rttime', 'sigpending', 'stack' }
local IS_LIMIT = schema.set(LIMITS)
local LIMIT = 'a number, a size such as "512M", or "unlimited"'
local limit_value = schema.simple(LIMIT, function(value)
    if value == 'unlimited' or value == math.huge then
        return true, 'unlimited'
    end
    local n = schema.bytes(value)
    return n ~= nil, n
end)
local limit_pair = schema.record('a table with soft and hard', {
    soft = { type = limit_value },
    hard = { type = limit_value },
})
M.limits = {
    expects = 'a table such as { nofile = 65536, core = 0 }',
    check = function(value, at)
        if type(value) ~= 'table' then
            return at:fail('a table such as { nofile = 65536, core = 0 }', value)
        end
        local inside = {}
        for _, name in ipairs(LIMITS) do
            local given = value[name]
            if type(given) == 'table' then
                local pair = limit_pair.check(given, at:key(name))
                if pair and not pair.soft and not pair.hard then
                    at:key(name):fail('soft, hard or both', given)
                elseif pair then
                    local order = { pair.soft or pair.hard, pair.hard or pair.soft }
                    if type(order[2]) == 'number' and (order[1] == 'unlimited' or order[1] > order[2]) then
                        at:key(name):say('expected soft to be at most hard')
                    end
                    inside[#inside + 1] = { name = name, soft = order[1], hard = pair.hard or pair.soft }
                end
            elseif given ~= nil then
                local both = limit_value.check(given, at:key(name))
                inside[#inside + 1] = { name = name, soft = both, hard = both }
            end
        end
        for key in pairs(value) do
            if not IS_LIMIT[key] then
                at:key(key):unknown(LIMITS, 'limit')
            end
        end
        return inside
    end,
}

local CPUS = 'a list of CPU numbers, or a string such as "0-3,8"'
local MAX_CPU = 1023 -- what the kernel's cpu_set_t holds
M.cpus = either(CPUS, {
    table = function(value, at)
        return schema.list_of(schema.integer(0, MAX_CPU), CPUS, 1).check(value, at)
    end,
    string = function(value, at)
        local inside = {}
        for part in (value .. ','):gmatch('([^,]*),') do
            local first, last = part:match('^%s*(%d+)%s*%-?%s*(%d*)%s*$')
            first, last = tonumber(first), tonumber(last) or tonumber(first)
            if not first or last < first or last > MAX_CPU then
                return at:fail(CPUS, value)
            end
            for cpu = first, last do
                inside[#inside + 1] = cpu
            end
        end
        return inside
    end,
})

-- every = { 5, fn } or { { 5, fn }, { 60, other, timeout = 20 } }
local EVERY = 'a table { seconds, function, timeout = seconds }, or a list of these'
local interval = schema.seconds(0.01)
local function every_entry(value, at)
    local pair, timeout = {}, nil
    for key, inner in pairs(type(value) == 'table' and value or {}) do
        if key == 'timeout' then
            timeout = inner
        else
            pair[key] = inner
        end
    end
    if schema.list_length(pair) ~= 2 then
        return at:say 'expected a table { seconds, function, timeout = seconds }: two values, no name but timeout'
    end
    M.hook.check(pair[2], at:key(2))
    return { interval_ms = interval.check(pair[1], at:key(1)),
        timeout_ms = timeout ~= nil and M.hook_timeout.check(timeout, at:key 'timeout') or nil }
end
M.every = either(EVERY, {
    table = function(value, at)
        if value[1] ~= nil and type(value[1]) ~= 'table' then
            return { every_entry(value, at) }
        end
        local count = schema.list_length(value)
        if not count or count == 0 then
            return at:fail(EVERY, value)
        end
        local inside = {}
        for i = 1, count do
            inside[i] = every_entry(value[i], at:key(i))
        end
        return inside
    end,
})

M.LEVELS = { 'trace', 'debug', 'info', 'warn', 'error', 'fatal' }
local LOGGER = 'dutch.logger { ... }, or a table with the functions info, warn, error, debug'
local logger_fields = schema.simple('a table of plain values', function(value)
    return type(value) == 'table'
end)
local logger_record = schema.record(LOGGER, {
    name = { type = schema.text, default = 'dutch-master' },
    level = { type = schema.one_of(M.LEVELS), default = 'info' },
    path = { type = schema.absolute_path },
    fields = { type = logger_fields },
    format = { type = schema.one_of { 'json', 'readable', 'journal' } },
})
local logger = either(LOGGER, {
    table = function(value, at)
        local methods = {}
        for _, level in ipairs(M.LEVELS) do
            methods[level] = type(value[level]) == 'function' or nil
        end
        if next(methods) == nil then
            return logger_record.check(value, at)
        elseif not methods.info then
            at:key('info'):fail('a function', value.info)
        end
        return { custom = true, methods = methods, name = 'dutch-master', level = 'trace' }
    end,
})

M.output = schema.simple('"inherit", "null" or an absolute path', function(value)
    return value == 'inherit' or value == 'null'
        or type(value) == 'string' and value:sub(1, 1) == '/' and not value:find('\0', 1, true)
end)

M.socket_path = schema.simple('an absolute path of at most 107 bytes', function(value)
    return type(value) == 'string' and value:sub(1, 1) == '/' and #value <= UNIX_PATH_MAX
        and not value:find('\0', 1, true)
end)

M.interpreter = either('a string, or a list of strings', {
    string = function(value, at)
        return { schema.text.check(value, at) }
    end,
    table = schema.list_of(schema.text, 'a list of strings', 1),
})

M.logger, M.LOGGER_DEFAULT = logger, logger_record.check({}, schema.place())
M.user = account 'the name or number of a user'
M.group = account 'the name or number of a group'
M.umask = mode 'an octal number such as "027"'
M.restart_signal = schema.signal(RESTART_REFUSED)
M.stop_signal = schema.signal(STOP_REFUSED)

return M
