--- The command line: finds out what is asked, and hands over.
-- `dutch-master master.lua` runs a master (dutch-master.init); `dutch-master VERB` is a client of a running one, or of
-- none (check, completion). Each verb is a module of dutch-master.cli that returns a description and a function `run`:
-- help, completion and the check of arguments come from the description, so that they cannot differ from each other.
-- Nothing here may touch a worker: a verb asks the master, over its control socket.

local arguments = require 'dutch-master.cli.arguments'
local help = require 'dutch-master.cli.help'
local suggest = require 'dutch-master.suggest'
local terminal = require 'dutch-master.cli.terminal'

local M = {}

--- In the order of the help text.
M.verbs = {
    'check', 'plan', 'status', 'top', 'why', 'events', 'logs', 'list', 'metrics', 'web', 'restart', 'reload', 'scale',
    'upgrade', 'stop', 'init', 'completion',
}

--- What the programs of others are called with, and what is meant here.
local OTHER_NAMES = {
    ls = 'list', ps = 'list', show = 'status', stats = 'metrics', prometheus = 'metrics',
    ['reload-all'] = 'restart', startOrReload = 'restart', gracefulReload = 'restart', ['phased-restart'] = 'restart',
    flush = 'logs', info = 'why', jlist = 'list', prettylist = 'list', delete = 'stop', is_active = 'status',
    monit = 'top', monitor = 'top', watch = 'top',
    log = 'logs', tail = 'logs', describe = 'why', deploy = 'restart', update = 'upgrade',
    validate = 'check', test = 'check', quit = 'stop', kill = 'stop', shutdown = 'stop',
}

local FAILED, USAGE, SYSTEM, SCRIPT = 1, 2, 71, 78

--- What is run by a script, not as one.
local PROGRAMS = { js = true, mjs = true, cjs = true, ts = true, py = true, rb = true, php = true, sh = true }
local NAMES_PROGRAM = "a master is started with a Lua script, which names the program: worker = '%s'"

function M.verb(name)
    return require('dutch-master.cli.' .. name)
end

local IS_VERB = {}
for _, name in ipairs(M.verbs) do
    IS_VERB[name] = true
end

local function usage_error(ctx, message, verb)
    ctx.err('dutch-master: ' .. message .. '\n' .. help.usage(verb) .. '\n')
    return USAGE
end

local function unknown_verb(ctx, word, second)
    if word == 'start' or word == 'run' then
        local told = ('there is no verb "%s": a master is started with `dutch-master %s`'):format(word,
            second and second:find '%.lua$' and second or 'master.lua')
        return usage_error(ctx, told)
    end
    if word:find '%.%w+$' then
        return usage_error(ctx, word .. ': no such file; ' .. NAMES_PROGRAM:format(word))
    end
    local meant = ctx.platform.stat(word .. '.lua') and ('dutch-master %s.lua'):format(word) or OTHER_NAMES[word]
        or suggest.nearest(word, M.verbs)
    local hint = meant and (' (did you mean "%s"?)'):format(meant) or ''
    return usage_error(ctx, ('unknown verb "%s"%s'):format(word, hint))
end

--- A script differs from a mistyped verb by its looks, or by being there.
local function looks_like_script(ctx, word)
    return arguments.is_like_script(word) or ctx.platform.stat(word) ~= nil
end

-- What is named behind --watch, or else the directory of the script. -> list, or nil, message
local function watched_paths(ctx, argv, first)
    local paths = {}
    for i = first or 1, first and #argv or 0 do
        local path, message = arguments.absolute(ctx.platform, argv[i])
        if not path or not ctx.platform.stat(path) then
            return nil, ('--watch: %s: %s'):format(argv[i], message or 'no such file or directory')
        end
        paths[#paths + 1] = path
    end
    if first and not paths[1] then
        paths[1] = ctx.script:match '^(.*)/[^/]*$'
    end
    return paths
end

-- All of it stays: to look for garbage each time a quarter more is there took longer than to read it.
local function read_master()
    collectgarbage 'stop'
    local master = require 'dutch-master.master'
    collectgarbage('restart', -1) -- LuaJIT: after a pause
    return master
end

local function run_master(ctx, argv, first)
    local script, second = argv[first], argv[first + 1]
    if second and IS_VERB[second] then
        local told = ('the verb comes first: dutch-master %s %s'):format(second, argv[first])
        return usage_error(ctx, told, M.verb(second))
    end
    local flags = {}
    while second == '--keeper' or second == '--no-keeper' or second == '--take-over' do -- main.c has seen them
        flags[second] = true
        first, second = first + 1, argv[first + 2]
    end
    if second and second ~= '--watch' then
        return usage_error(ctx, ('unexpected "%s" after the script'):format(second))
    end
    local path, message = arguments.absolute(ctx.platform, script)
    if not path then
        ctx.err('dutch-master: ' .. message .. '\n')
        return SYSTEM
    end
    local seen, why = ctx.platform.stat(path)
    if seen and PROGRAMS[path:match '%.(%w+)$'] then
        return usage_error(ctx, script .. ' is no Lua script; ' .. NAMES_PROGRAM:format(argv[first]))
    elseif not seen then
        ctx.err(('dutch-master: %s\n'):format(why))
        return SCRIPT
    end
    ctx.script = path
    local watched, told = watched_paths(ctx, argv, second and first + 2 or nil)
    if not watched then
        return usage_error(ctx, told)
    end
    -- Before the rest of the program is read: it starts meanwhile.
    local process = require('dutch-master.script.process').start { platform = ctx.platform, script = path }
    local code = read_master().run { script = path, argv = argv, takes_over = flags['--take-over'],
        script_process = process }
    if code == nil and watched[1] then
        require('dutch-master.cli.changes_watch').start(ctx, watched)
    end
    return code
end

local function run_verb(ctx, name, argv, first)
    ctx.platform.no_signals()
    local verb = M.verb(name)
    local parsed, message = arguments.parse(verb, argv, first)
    if not parsed then
        return usage_error(ctx, message, verb)
    end
    if parsed.options.help then
        ctx.out(help.verb(verb))
        return 0
    end
    if parsed.script and not looks_like_script(ctx, parsed.script) then
        local argument = not parsed.argument and verb.argument
        local wanted = argument and ('expected %s or a script'):format(argument.expects) or 'expected a script'
        return usage_error(ctx, ('%s: %s, found "%s"'):format(name, wanted, parsed.script), verb)
    end
    ctx.color = ctx.color and not parsed.options.no_color
    ctx.options, ctx.argument, ctx.words = parsed.options, parsed.argument, parsed.words
    ctx.names_script = parsed.script ~= nil
    ctx.verb, ctx.picks = name, verb.looks
    --- For what only the verb, or the master, can find wrong with an argument. -> exit code
    function ctx.usage(told)
        return usage_error(ctx, ('%s: %s'):format(name, told), verb)
    end
    if verb.takes_script ~= false then
        ctx.script_name = parsed.script or 'master.lua'
        ctx.script, message = arguments.absolute(ctx.platform, ctx.script_name)
        if not ctx.script then
            ctx.err('dutch-master: ' .. message .. '\n')
            return SYSTEM
        end
    end
    return verb.run(ctx)
end

local function dispatch(ctx, argv)
    local word = argv[1]
    if not word then
        return usage_error(ctx, 'which script? Try `dutch-master master.lua`, or `dutch-master --help`')
    elseif word == '--help' or word == '-h' or word == 'help' then
        if argv[2] and IS_VERB[argv[2]] then
            ctx.out(help.verb(M.verb(argv[2])))
        elseif argv[2] then
            return unknown_verb(ctx, argv[2])
        else
            ctx.out(help.all(M))
        end
        return 0
    elseif word == '--version' or word == '-V' or word == 'version' then
        local built = ctx.platform.built and (' (%s)'):format(ctx.platform.built) or ''
        ctx.out(('dutch-master %s%s\n'):format(ctx.platform.version, built))
        return 0
    elseif word == '--state' then -- asked by `upgrade`, of the next program
        ctx.out(require('dutch-master.cli.upgrade').describe(ctx.platform))
        return 0
    elseif word == '-t' then
        return run_verb(ctx, 'check', argv, 2)
    elseif IS_VERB[word] then
        return run_verb(ctx, word, argv, 2)
    elseif word == '--' then
        return argv[2] and run_master(ctx, argv, 2) or usage_error(ctx, 'which script?')
    elseif word:sub(1, 1) == '-' then
        local verb = argv[2] and IS_VERB[argv[2]] and argv[2]
        local hint = verb and ('options come after the verb: dutch-master %s %s'):format(verb, word)
            or word == '-v' and 'did you mean "-V", "--version"?'
        return usage_error(ctx, ('unknown option "%s"%s'):format(word, hint and (' (%s)'):format(hint) or ''),
            verb and M.verb(verb))
    elseif looks_like_script(ctx, word) then
        return run_master(ctx, argv, 1)
    end
    return unknown_verb(ctx, word, argv[2])
end

--- argv[0] is the program. Returns an exit code, or nil: the loop runs until platform.stop(code).
function M.main(argv, platform)
    local ctx = terminal.context(platform or require 'dutch-master.platform')
    local code = dispatch(ctx, argv)
    -- What could not be said was not done.
    return code == 0 and ctx.mute and FAILED or code
end

return M
