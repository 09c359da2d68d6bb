--- Words of a command line into options, according to a verb's description. Pure, but for `absolute`.
--
-- A description: { name, summary, description, codes, examples = {...}, run = function(ctx),
--   options = { {long=, short=, value=, doc=, number=, integer=}, ... }   with `value` it takes one: --timeout 5,
--     --timeout=5; `integer` is a number without a fraction
--   argument = { name=, pattern=, expects=, required=, valid= }   a word that is not the script; valid(word): whether a
--     word of that pattern has a meaning
--   takes_script = false; takes_scripts = true                  any number of them, in ctx.words
--   talks = true                                                asks the master over its socket
--   looks = true                                                changes nothing: the only master may be meant }

local suggest = require 'dutch-master.suggest'

local M = {}

--- The largest number that an option accepts: a year in seconds, well below any timer's range.
local MOST = 366 * 86400

local HELP = { long = 'help', short = 'h', doc = 'this text' }
local NO_COLOR = { long = 'no-color', doc = 'no colours (NO_COLOR in the environment does the same)' }
local SOCKET = { long = 'socket', value = 'PATH', doc = 'the control socket, if it is not where the script puts it' }

--- All options of a verb, those that every verb has included.
function M.options(verb)
    local all = {}
    for _, option in ipairs(verb.options or {}) do
        all[#all + 1] = option
    end
    if verb.talks then
        all[#all + 1] = SOCKET
    end
    all[#all + 1] = NO_COLOR
    all[#all + 1] = HELP
    return all
end

local function find(verb, kind, name)
    local names = {}
    for _, option in ipairs(M.options(verb)) do
        if option[kind] == name then
            return option
        end
        names[#names + 1] = option.long
    end
    local meant = kind == 'long' and suggest.nearest(name, names)
    return nil, meant and (' (did you mean "--%s"?)'):format(meant) or ''
end

local function key(option)
    return (option.long:gsub('-', '_'))
end

local function checked(option, text)
    if option.number or option.integer then
        local number = tonumber(text)
        if not number or number ~= number or number < (option.least or 0) or number > MOST
            or option.integer and number ~= math.floor(number) then
            return nil, ('--%s: expected %s%s of at least %g, found "%s"'):format(option.long,
                option.integer and 'an integer' or 'a number', option.value == 'SECONDS' and ' of seconds' or '',
                option.least or 0, text)
        end
        return number
    end
    return text
end

local function expected(argument, word)
    return ('expected %s, found "%s"'):format(argument.expects or argument.name, word)
end

--- Whether a word is meant as a script, whatever there is of that name.
function M.is_like_script(word)
    return word:find('/', 1, true) ~= nil or word:find '%.lua$' ~= nil
end

local function positional(verb, parsed, word)
    local argument = verb.argument
    if verb.takes_scripts then
        if not M.is_like_script(word) then
            return nil, ('expected a script, found "%s"'):format(word)
        end
        parsed.words[#parsed.words + 1] = word
    elseif argument and not parsed.argument and word:find(argument.pattern) then
        if argument.valid and not argument.valid(word) then
            return nil, expected(argument, word)
        end
        parsed.argument = word
    elseif verb.takes_script ~= false and not parsed.script then
        if word == '' then
            return nil, 'the name of the script is empty'
        end
        parsed.script = word
    elseif argument and not parsed.argument then
        local first = parsed.script
        return nil, expected(argument, first and not M.is_like_script(first) and first or word)
    else
        return nil, ('unexpected "%s"'):format(word)
    end
    return true
end

--- -> { options = {json = true, ...}, argument =, script = } | nil, message
function M.parse(verb, argv, first)
    local parsed = { options = {}, words = {} }
    local i, only_words = first, false
    while argv[i] do
        local word, ok, message = argv[i], true, nil
        if only_words or word == '-' or not word:find '^%-' or word:find '^%-%d+$' then
            ok, message = positional(verb, parsed, word)
        elseif word == '--' then
            only_words = true
        else
            local name, value = word:match '^%-%-([^=]+)=(.*)$'
            name = name or word:match '^%-%-(.+)$'
            local option, hint = find(verb, name and 'long' or 'short', name or word:sub(2))
            if not option then
                return nil, ('%s: unknown option "%s"%s'):format(verb.name, word, hint or '')
            elseif option.value then
                if not value then
                    i = i + 1
                    value = argv[i]
                end
                if not value then
                    return nil, ('%s: --%s needs a value (%s)'):format(verb.name, option.long, option.value)
                end
                ok, message = checked(option, value)
                parsed.options[key(option)] = ok
            elseif value then
                return nil, ('%s: --%s takes no value'):format(verb.name, option.long)
            else
                parsed.options[key(option)] = true
            end
        end
        if not ok then
            return nil, ('%s: %s'):format(verb.name, message)
        end
        i = i + 1
    end
    if verb.argument and verb.argument.required and not parsed.argument and not parsed.options.help then
        if parsed.script and not M.is_like_script(parsed.script) then
            return nil, ('%s: %s'):format(verb.name, expected(verb.argument, parsed.script))
        end
        return nil, ('%s: %s is missing'):format(verb.name, verb.argument.expects or verb.argument.name)
    end
    return parsed
end

--- "/a/./b//../c" -> "/a/c". By the letters only: a symbolic link on the way (Capistrano's `current`) is part of the
-- name, and the master of /deploys/app/current/master.lua stays the same one when the link moves.
function M.normalise(path)
    local parts = {}
    for part in path:gmatch '[^/]+' do
        if part == '..' then
            parts[#parts] = nil
        elseif part ~= '.' then
            parts[#parts + 1] = part
        end
    end
    return '/' .. table.concat(parts, '/')
end

--- -> absolute path | nil, message
function M.absolute(platform, path)
    if path:sub(1, 1) == '/' then
        return M.normalise(path)
    end
    local cwd, message = platform.cwd()
    if not cwd then
        return nil, 'the working directory cannot be found: ' .. tostring(message)
    end
    return M.normalise(cwd .. '/' .. path)
end

return M
