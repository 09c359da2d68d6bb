--- dutch-master init: writes a master.lua for what lies in a directory.

local client = require 'dutch-master.cli.client'
local format = require 'dutch-master.cli.format'
local project = require 'dutch-master.cli.project'
local shell = require 'dutch-master.shell'
local sorted_keys = require 'dutch-master.sorted_keys'

local M = {
    name = 'init',
    takes_script = false,
    summary = 'write a master.lua for the project in a directory',
    description = 'Looks at what is there (Procfile, package.json, Gemfile, a WSGI or ASGI app, go.mod, a Lua app, an\n'
        .. 'executable; ecosystem.config.js of PM2, master.js of the original) and writes a master.lua with\n'
        .. 'comments that passes `check`. Changes nothing else, and no file that is there.',
    argument = { name = 'DIR', pattern = '.', expects = 'a directory' },
    options = {
        { long = 'from', value = 'FILE', doc = 'a configuration of PM2, or a master.js of the original' },
        { long = 'print', doc = 'print the script, write nothing' },
        { long = 'force', doc = 'over a master.lua that is there' },
    },
    examples = {
        'dutch-master init', 'dutch-master init /srv/app --print', 'dutch-master init --from ecosystem.config.js',
    },
    codes = '0, 1 nothing was recognised, or the file is there already',
}

local quote = project.quote

--- Facts of project.lua as the text of a script.
function M.script(facts)
    local lines = {}
    local function add(text, ...)
        lines[#lines + 1] = select('#', ...) > 0 and text:format(...) or text
    end
    add('-- Written by `dutch-master init`, by %s. Options: man dutch-master.lua', facts.found)
    for _, note in ipairs(facts.notes or {}) do
        add('-- ' .. note)
    end
    add "local dutch = require 'dutch-master'"
    add ''
    add 'dutch.start {'
    add('    worker = %s,', facts.worker)
    if facts.listen then
        add('    listen = %s, -- the master binds it, and keeps it over every restart', quote(facts.listen))
    end
    if type(facts.workers) == 'number' then
        add('    numWorkers = %d,', facts.workers)
    else
        add '    numWorkers = function()'
        add '        return math.max(dutch.cpus(), 2) -- knows CPU affinity and cgroup quotas'
        add '    end,'
    end
    if facts.chdir then
        add '    beforeFork = function()'
        add('        dutch.chdir %s -- of this fork: looked up anew each time', quote(facts.chdir))
        add '    end,'
    end
    if facts.environment and next(facts.environment) then
        add '    workerEnvironment = {'
        for _, name in ipairs(sorted_keys(facts.environment)) do
            local key = name:find '^[%a_][%w_]*$' and name or ('[%s]'):format(quote(name))
            add('        %s = %s,', key, quote(facts.environment[name]))
        end
        add '    },'
    end
    for _, option in ipairs(facts.options or {}) do
        add('    %s = %s,%s', option[1], option[2], option[3] and ' -- ' .. option[3] or '')
    end
    if facts.name then
        add('    logger = dutch.logger { name = %s },', quote(facts.name))
    end
    add '    -- metrics = true,               -- requests, errors and latency of each worker in `dutch-master metrics`'
    add "    -- restartConcurrency = 'canary', -- a restart begins with one worker, and goes on if it does well"
    add '}'
    return table.concat(lines, '\n') .. '\n'
end

local function write(ctx, path, text)
    if ctx.platform.stat(path) and not ctx.options.force then
        return nil, ('%s is there already (--force writes over it, --print shows what would be written)'):format(path)
    end
    local file, message = io.open(path, 'w')
    if not file then
        return nil, message
    end
    local ok, why = file:write(text)
    file:close()
    return ok, why
end

-- -> list of { path, text }, or nil, message
local function make(ctx, dir)
    local from = ctx.options.from
    for _, name in ipairs { 'ecosystem.config.js', 'ecosystem.config.cjs', 'ecosystem.config.json', 'master.js' } do
        if not from and ctx.platform.stat(dir .. '/' .. name) then
            from = dir .. '/' .. name
        end
    end
    if not from then
        local facts = project.look { platform = ctx.platform, dir = dir }
        if not facts then
            return nil, ('%s: nothing recognised there (looked for Procfile, package.json, config.ru, a WSGI or ASGI '
                .. 'app, go.mod, app.lua, an executable)'):format(dir)
        end
        return { { path = dir .. '/master.lua', text = M.script(facts) } }
    end
    if from:sub(1, 1) ~= '/' then
        from = (ctx.platform.cwd() or '.') .. '/' .. from
    end
    local all, message = project.from(ctx.platform, from)
    if not all then
        return nil, ('%s: %s'):format(from, message)
    end
    local scripts = {}
    for i, facts in ipairs(all) do
        -- A master runs one app: each has a script, and a life, of its own.
        local name = #all > 1 and facts.name and tostring(facts.name):gsub('[^%w._-]', '_') or 'master'
        scripts[i] = { path = ('%s/%s.lua'):format(dir, name), text = M.script(facts) }
    end
    return scripts
end

function M.run(ctx)
    local dir = ctx.argument or '.'
    local there = ctx.platform.stat(dir)
    if not there or there.type ~= 'directory' then
        return ctx.usage(('expected a directory, found "%s"'):format(dir))
    end
    local absolute = ctx.platform.realpath(dir) or dir
    local scripts, message = make(ctx, absolute)
    if not scripts then
        return client.fail(ctx, 'init: ' .. message)
    end
    for _, script in ipairs(scripts) do
        if ctx.options.print then
            ctx.out(script.text)
        else
            local ok, why = write(ctx, script.path, script.text)
            if not ok then
                return client.fail(ctx, 'init: ' .. why)
            end
            ctx.out(('Wrote %s\n'):format(format.visible(script.path)))
        end
    end
    if not ctx.options.print then
        local path = scripts[1].path
        path = format.visible(path:find '^[%w/._-]+$' and path or shell.quote(path))
        ctx.out(('Next: dutch-master check %s && dutch-master %s\n'):format(path, path))
    end
    return 0
end

return M
