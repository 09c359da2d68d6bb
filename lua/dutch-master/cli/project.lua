--- project.lua: what a directory holds, as the facts a master.lua is made of. Looks at names and at the text of a few
-- small files; runs nothing but `node`, and that only to read a configuration that is a program (PM2's).
--
-- Facts: { worker = text of a Lua expression, listen = address or nil, workers = number or nil, environment = {},
--   options = { { name, text, why } }, notes = { text }, found = the files that showed it, name }
-- Longer than 400 lines: one reader after the other, each for one kind of project.

local cjson = require 'cjson.safe'
local shell = require 'dutch-master.shell'

local M = {}

local FILE_MAX = 256 * 1024

local function quote(text)
    return "'" .. tostring(text):gsub("[\\']", '\\%0'):gsub('\n', '\\n') .. "'"
end
M.quote = quote

local function read(world, name)
    return world.platform.read_file(world.dir .. '/' .. name, FILE_MAX)
end

local function exists(world, name)
    local there = world.platform.stat(world.dir .. '/' .. name)
    return there and there.type or false
end

local function is_executable(world, name)
    return exists(world, name) == 'file' and world.platform.access(world.dir .. '/' .. name, 'x')
end

--- "node server.js --port 1" -> { 'node', 'server.js', '--port', '1' }; quotes are understood, nothing else of a shell.
local function split(command)
    local words, word, quoted = {}, nil, nil
    for c in command:gmatch '.' do
        if quoted then
            if c == quoted then
                quoted = nil
            else
                word = word .. c
            end
        elseif c == '"' or c == "'" then
            quoted, word = c, word or ''
        elseif c:find '%s' then
            if word then
                words[#words + 1] = word
            end
            word = nil
        else
            word = (word or '') .. c
        end
    end
    words[#words + 1] = word
    return words
end
M.split = split

-- The arguments of PM2, which are a list or a command line.
local function list_of(given)
    return type(given) == 'table' and given or split(given or '')
end

local function list_text(words)
    local quoted = {}
    for i, word in ipairs(words) do
        quoted[i] = quote(word)
    end
    return '{ ' .. table.concat(quoted, ', ') .. ' }'
end

-- ---------------------------------------------------------------------------------------------------------------------
-- By command line

local LISTEN = '127.0.0.1:8000'

-- What a server of Python is told of its address is the master's business now.
local function python_server(name)
    return function(words, first)
        local app, args, i = nil, {}, first + 1
        while words[i] do
            local word = words[i]
            if word == '-b' or word == '--bind' or word == '--host' or word == '--port' or word == '--fd' then
                i = i + 1
            elseif word:find '^%-%-bind=' or word:find '^%-%-port=' or word:find '^%-%-host=' then
                args = args
            elseif word == '-w' or word == '--workers' then
                i = i + 1 -- one process each: the master counts them
            elseif word:find '^%-' then
                args[#args + 1] = word
                if words[i + 1] and not words[i + 1]:find '^%-' and not words[i + 1]:find '^[%w_.]+:' then
                    i = i + 1
                    args[#args + 1] = words[i]
                end
            else
                app = word
            end
            i = i + 1
        end
        if not app then
            return nil
        end
        local more = args[1] and ', args = ' .. list_text(args) or ''
        return { worker = ('dutch.%s { app = %s%s }'):format(name, quote(app), more), listen = LISTEN }
    end
end

local function ruby_server(name)
    return function()
        return { worker = ('dutch.%s { }'):format(name), listen = LISTEN, notes = {
            ('Its `bind`, `port` and `workers` are the master\'s now: take them out of the configuration of %s.')
                :format(name) } }
    end
end

local BY_PROGRAM = {
    gunicorn = python_server 'gunicorn', uvicorn = python_server 'uvicorn', hypercorn = python_server 'hypercorn',
    puma = ruby_server 'puma', unicorn = ruby_server 'unicorn',
}

-- What stands before a command, and changes nothing that counts here.
local SKIPPED = { exec = true, bundle = true, npx = true, ['cross-env'] = true }

-- What runs a file of the app: Node, and what is Node with something before that file.
local BEFORE_FILE = { node = { 'node' }, nodejs = { 'node' }, tsx = { 'node', '--import', 'tsx' } }

-- Node's options whose value is the next word (node --help); of others it follows a "=".
local TAKES_WORD = {}
for name in ('-r --require --import --loader --experimental-loader -C --conditions'):gmatch '%S+' do
    TAKES_WORD[name] = true
end

--- Facts of a command line.
function M.of_command(command)
    local words = split(command)
    local first, environment = 1, {}
    while words[first] do
        local name, value = words[first]:match '^([%a_][%w_]*)=(.*)$'
        if name then
            environment[name] = value
        elseif not SKIPPED[words[first]] then
            break
        end
        first = first + 1
    end
    local program = words[first] and words[first]:match '[^/]+$'
    if not program then
        return nil
    end
    local facts
    if BY_PROGRAM[program] then
        facts = BY_PROGRAM[program](words, first)
    elseif BEFORE_FILE[program] then
        local i, before = first + 1, { unpack(BEFORE_FILE[program]) }
        while words[i] and words[i]:find '^%-' do
            before[#before + 1] = words[i]
            if TAKES_WORD[words[i]] then
                i = i + 1
                before[#before + 1] = words[i]
            end
            i = i + 1
        end
        if words[i] then
            facts = { worker = quote(words[i]), options = {} }
            if not words[i]:find '%.[cm]?[jt]s$' then -- bin/www
                table.insert(facts.options, { 'kind', quote 'node' })
            end
            if before[2] then
                table.insert(facts.options, { 'interpreter', list_text(before) })
            end
            if words[i + 1] then
                table.insert(facts.options, { 'args', list_text { unpack(words, i + 1) } })
            end
        end
    end
    if not facts then
        facts = { worker = list_text { unpack(words, first) }, listen = LISTEN, notes = {
            'It must take the listening socket that it is given (LISTEN_FDS, fd 3, as systemd passes it).' } }
        if command:find '[|&;<>$`]' then
            facts.worker = list_text { 'sh', '-c', 'exec ' .. command:gsub('^exec ', '') }
        end
    end
    facts.environment = environment
    return facts
end

-- ---------------------------------------------------------------------------------------------------------------------
-- By what lies there, the most telling first

local function of_procfile(world)
    local text = read(world, 'Procfile')
    local command = text and ('\n' .. text):match '\nweb:%s*([^\n]+)'
    local facts = command and M.of_command(command)
    if facts then
        facts.found = 'the line `web:` of Procfile'
    end
    return facts
end

-- What starts the app in a process of its own, which keeps the channel to itself, or watches files.
local LAUNCHERS = {}
for name in ('npm yarn pnpm nodemon node-dev ts-node-dev tsx concurrently pm2 forever nest react-scripts vite turbo nx '
    .. 'dotenv env-cmd sh bash'):gmatch '%S+' do
    LAUNCHERS[name] = true
end

-- A start script that names a program of a package: `fastify start app.js`, `next start`. It is a script for Node.
local function of_package_program(command)
    local facts = not command:find '[|&;<>$`/]' and M.of_command(command) or nil
    local words = facts and split(command) or {}
    while words[1] and (SKIPPED[words[1]] or words[1]:find '^[%a_][%w_]*=') do
        table.remove(words, 1)
    end
    if not words[1] or LAUNCHERS[words[1]] or BY_PROGRAM[words[1]] then
        return nil
    end
    local options = { { 'kind', quote 'node' } }
    if words[2] then
        table.insert(options, { 'args', list_text { unpack(words, 2) } })
    end
    return { worker = quote('node_modules/.bin/' .. words[1]), options = options, environment = facts.environment }
end

local function of_start_script(command, world)
    local before = command:gsub('cross%-env%s+', ''):gsub('^%s*[%w_]+=%S*%s+', ''):gsub('^%s*npx%s+', '')
    if before:find '^%s*tsx %S*%.[cm]?[jt]sx?%f[%s%z]' or before:find '^%s*node %-' then -- not `tsx watch`
        return M.of_command(command)
    elseif not before:find '^%s*node ' then
        return of_package_program(command)
    end
    -- `node dist/main` is dist/main.js, which may not be built yet.
    local completed = command:gsub('(node%s+)([%w_./-]+)', function(node, path)
        if not path:find '%.[cm]?[jt]s$' and exists(world, path) ~= 'file' then
            path = exists(world, path .. '/index.js') and path .. '/index.js' or path .. '.js'
        end
        return node .. path
    end, 1)
    return M.of_command(completed)
end

local function of_node(world)
    local package = cjson.decode(read(world, 'package.json') or '')
    if type(package) ~= 'table' then
        return nil
    end
    local facts
    for _, name in ipairs { 'start:prod', 'start:production', 'start' } do
        local script = type(package.scripts) == 'table' and package.scripts[name]
        facts = facts or type(script) == 'string' and of_start_script(script, world) or nil
        if facts then
            facts.found = facts.found or ('the script `%s` of package.json'):format(name)
        end
    end
    if not facts then
        local names = { 'server.js', 'app.js', 'index.js', 'src/server.js', 'src/index.js', 'server.mjs', 'index.mjs' }
        if type(package.main) == 'string' then
            table.insert(names, 1, package.main)
        end
        for _, name in ipairs(names) do
            if exists(world, name) == 'file' then
                facts = { worker = quote(name), found = name == package.main and '`main` of package.json'
                    or 'package.json and ' .. name }
                break
            end
        end
    end
    if facts then
        facts.environment = facts.environment or {}
        facts.environment.NODE_ENV = facts.environment.NODE_ENV or 'production'
        facts.name = type(package.name) == 'string' and package.name or nil
        facts.node = true
    end
    return facts
end

local function of_ruby(world)
    local gems = read(world, 'Gemfile')
    if not exists(world, 'config.ru') then
        return nil
    end
    local server = gems and gems:find 'gem%s*%(?%s*[\'"]unicorn[\'"]' and 'unicorn' or 'puma'
    local facts = BY_PROGRAM[server]()
    facts.found = gems and 'Gemfile and config.ru' or 'config.ru'
    if gems then
        table.insert(facts.notes, ("With bundler: worker = dutch.%s { command = { 'bundle', 'exec', '%s' } }.")
            :format(server, server))
    end
    return facts
end

-- -> 'app:application' of a module's text, and whether it is asynchronous
local function python_app(name, text)
    local module = name:gsub('%.py$', ''):gsub('/', '.')
    for _, case in ipairs {
        { '\n([%a_][%w_]*)%s*=%s*FastAPI%(', true }, { '\n([%a_][%w_]*)%s*=%s*Starlette%(', true },
        { '\n([%a_][%w_]*)%s*=%s*Quart%(', true }, { '\n([%a_][%w_]*)%s*=%s*Flask%(', false },
        { '\n([%a_][%w_]*)%s*=%s*get_asgi_application%(', true },
        { '\n([%a_][%w_]*)%s*=%s*get_wsgi_application%(', false }, { '\nasync%s+def%s+([%a_][%w_]*)%(%s*scope', true },
        { '\ndef%s+([%a_][%w_]*)%(%s*environ', false },
    } do
        local app = ('\n' .. text):match(case[1])
        if app then
            return module .. ':' .. app, case[2]
        end
    end
end

local function of_python(world)
    local names = { 'asgi.py', 'wsgi.py', 'app.py', 'main.py', 'server.py' }
    if exists(world, 'manage.py') then -- Django: the project's directory is beside it
        for _, entry in ipairs(world.platform.list(world.dir) or {}) do
            table.insert(names, 1, entry .. '/wsgi.py')
        end
    end
    for _, name in ipairs(names) do
        local text = exists(world, name) == 'file' and read(world, name)
        local app, async = nil, nil
        if text then
            app, async = python_app(name, text)
        end
        if app then
            return { worker = ('dutch.%s { app = %s }'):format(async and 'uvicorn' or 'gunicorn', quote(app)),
                listen = LISTEN, found = name, notes = { 'In a virtual environment: command = \'.venv/bin/'
                    .. (async and 'uvicorn' or 'gunicorn') .. '\'.' } }
        end
    end
end

local function of_go(world)
    local module = (read(world, 'go.mod') or ''):match 'module%s+(%S+)'
    if not module then
        return nil
    end
    local name = module:match '([^/]+)$'
    for _, path in ipairs { name, 'bin/' .. name, 'server', 'bin/server', 'main' } do
        if is_executable(world, path) then
            name = path
            break
        end
    end
    return { worker = list_text { './' .. name }, listen = LISTEN, found = 'go.mod', notes = {
        'It takes its socket as fd 3: net.FileListener(os.NewFile(3, "")), or a package such as coreos/go-systemd.',
        not is_executable(world, name) and ('Build it first: go build -o %s .'):format(name) or nil,
    } }
end

local function of_lua(world)
    for _, name in ipairs { 'app.lua', 'server.lua', 'main.lua' } do
        if exists(world, name) == 'file' then
            return { worker = quote(name), found = name }
        end
    end
end

local function of_binary(world)
    for _, name in ipairs { 'server', 'app', 'bin/server', 'bin/app', 'run' } do
        if is_executable(world, name) then
            local facts = M.of_command('./' .. name)
            facts.found = 'the executable ' .. name
            return facts
        end
    end
end

--- @param world { platform, dir }
-- @return facts, or nil
function M.look(world)
    for _, fn in ipairs { of_procfile, of_node, of_ruby, of_python, of_go, of_lua, of_binary } do
        local facts = fn(world)
        if facts then
            return facts
        end
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- From the configuration of another supervisor

-- A configuration that is a program of Node's -> its value, or nil, message
local function evaluate(path)
    local program = 'const c = require(process.argv[1]); process.stdout.write(JSON.stringify(c))'
    local pipe = io.popen(('node -e %s %s 2>&1'):format(shell.quote(program), shell.quote(path)))
    local text = pipe:read '*a'
    pipe:close()
    local value = cjson.decode(text)
    if type(value) ~= 'table' then
        return nil, 'node could not read it: ' .. text:sub(1, 300)
    end
    return value
end

local function seconds(ms)
    return ('%g'):format(ms / 1000)
end

-- One app of PM2.
local function of_pm2_app(app)
    local script = type(app.script) == 'string' and app.script or 'app.js'
    local facts = { environment = {}, options = {}, notes = {}, name = app.name, found = 'PM2' }
    local function add(name, text, why)
        table.insert(facts.options, { name, text, why })
    end
    if script:find '%.[cm]?[jt]s$' and (not app.interpreter or app.interpreter == 'node') then
        facts.worker, facts.node = quote(script), true
        local before = app.node_args or app.interpreter_args
        if before then
            add('interpreter', list_text { 'node', unpack(list_of(before)) }, 'node_args')
        end
        if app.args then
            add('args', list_text(list_of(app.args)), 'args')
        end
    else
        local words = split(script)
        if app.interpreter and app.interpreter ~= 'none' then
            table.insert(words, 1, app.interpreter)
        end
        for _, word in ipairs(list_of(app.args)) do
            words[#words + 1] = word
        end
        facts.worker, facts.listen = list_text(words), LISTEN
        table.insert(facts.notes, 'It must take the listening socket that it is given (LISTEN_FDS, fd 3).')
    end
    local count = app.instances or app.exec_mode == 'cluster' and 'max' or 1
    facts.workers = (count == 'max' or tonumber(count) == 0) and 'max' or math.abs(tonumber(count) or 1)
    for _, env in ipairs { app.env or {}, app.env_production or {} } do
        for name, value in pairs(env) do
            facts.environment[name] = tostring(value)
        end
    end
    if app.max_memory_restart then
        local size = tostring(app.max_memory_restart):upper():gsub('B$', '')
        add('maxMemory', tonumber(size) and size or quote(size), 'max_memory_restart')
    end
    if tonumber(app.kill_timeout) then
        add('stopTimeout', seconds(app.kill_timeout), 'kill_timeout')
    end
    if tonumber(app.listen_timeout) then
        add('readyTimeout', seconds(app.listen_timeout), 'listen_timeout')
    end
    if app.wait_ready then
        add('ready', "{ message = 'ready' }", "wait_ready: process.send('ready')")
    end
    if type(app.cwd) == 'string' then
        facts.chdir = app.cwd
    end
    if type(app.pid_file) == 'string' and app.pid_file:find '^/' then
        add('pidFile', quote(app.pid_file), 'pid_file')
    end
    if type(app.out_file) == 'string' and app.out_file:find '^/' then
        add('workerOutput', quote(app.out_file), 'out_file')
    end
    if app.watch then
        table.insert(facts.notes, 'watch: `dutch-master master.lua --watch .` while developing.')
    end
    if app.cron_restart then
        table.insert(facts.notes, 'cron_restart: call `dutch-master restart` from cron; maxLifetime recycles workers.')
    end
    return facts
end

-- A master.js of the original: its options are those here, so that the text itself tells.
local function of_original(text)
    local facts = { environment = {}, options = {}, notes = {}, found = "the original's master.js", node = true }
    facts.worker = quote(text:match 'worker%s*:%s*[\'"]([^\'"]+)[\'"]'
        or text:match 'worker%s*:%s*[%w.]*%(?%s*__dirname%s*[,+]%s*[\'"]/?([^\'"]+)[\'"]' or 'app.js')
    facts.workers = tonumber(text:match 'numWorkers%s*:%s*(%d+)') or text:find 'numWorkers' and 'max' or nil
    facts.chdir = text:match 'chdir%(%s*[\'"]([^\'"]+)[\'"]'
    facts.name = text:match 'createLogger%(%s*{%s*name%s*:%s*[\'"]([^\'"]+)[\'"]'
    local signal = text:match 'restartSignal%s*:%s*[\'"]([^\'"]+)[\'"]'
    if signal then
        facts.options[1] = { 'restartSignal', quote(signal) }
    end
    for name, value in (text:match 'workerEnvironment%s*:%s*(%b{})' or ''):gmatch '([%w_]+)%s*:%s*[\'"]?([^\'",}]+)' do
        facts.environment[name] = value:gsub('%s+$', '')
    end
    for _, hook in ipairs { 'beforeFork', 'logger', 'workerEnvironment' } do
        local inside = text:match(hook .. '%s*:%s*function') or text:match(hook .. '%s*:?%s*%(')
        if inside and not (hook == 'beforeFork' and facts.chdir) then
            table.insert(facts.notes, ('Its %s is JavaScript: write it anew in Lua.'):format(hook))
        end
    end
    return facts
end

--- @param path of the configuration
-- @return list of facts, or nil, message
function M.from(platform, path)
    local text, message = platform.read_file(path, FILE_MAX)
    if not text then
        return nil, message
    end
    local value = path:find '%.json$' and cjson.decode(text) or nil
    if not value and text:find 'dutch%-master' and text:find 'worker' then
        return { of_original(text) }
    elseif not value then
        value, message = evaluate(path)
        if not value then
            return nil, message
        end
    end
    local apps = value.apps or value[1] and value or { value }
    local all = {}
    for i, app in ipairs(type(apps) == 'table' and apps or {}) do
        if type(app) == 'table' then
            all[i] = of_pm2_app(app)
        end
    end
    if not all[1] then
        return nil, 'no apps in it: expected { apps: [...] } of PM2, or a master.js of the original dutch-master'
    end
    return all
end

return M
