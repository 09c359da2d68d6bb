--- Help texts, made of the verbs' descriptions. Pure.

local arguments = require 'dutch-master.cli.arguments'
local format = require 'dutch-master.cli.format'

local M = {}

local function synopsis(verb)
    local words = { 'dutch-master', verb.name }
    if verb.argument then
        words[#words + 1] = verb.argument.required and verb.argument.name or '[' .. verb.argument.name .. ']'
    end
    if verb.takes_scripts then
        words[#words + 1] = '[master.lua ...]'
    elseif verb.takes_script ~= false then
        words[#words + 1] = '[master.lua]'
    end
    for _, option in ipairs(verb.options or {}) do
        words[#words + 1] = ('[--%s%s]'):format(option.long, option.value and ' ' .. option.value or '')
    end
    return table.concat(words, ' ')
end

--- One or two lines for an error.
function M.usage(verb)
    if verb then
        return 'usage: ' .. synopsis(verb)
    end
    return 'usage: dutch-master master.lua\n'
        .. '       dutch-master VERB [master.lua] [options]     (dutch-master --help lists the verbs)'
end

local WIDTH = 79 -- of the smallest terminal, whose last column stays free

local function fold(text, indent)
    return format.fold(text, WIDTH, indent or 0, indent)
end

local OPTION_WIDTH = 22 -- of its name

--- Those of the verb, and those that every one has that asks a master.
local function codes(verb)
    local text = verb.codes
    if verb.talks then
        text = text .. (text:find '%f[%d]77 ' and '' or ", 77 it is another user's master")
            .. (text:find '%f[%d]124 ' and '' or ', 124 the master does not answer')
    end
    return text
end

function M.verb(verb)
    local lines = { fold(synopsis(verb)), '', fold(verb.description or verb.summary), '', 'Options:' }
    for _, option in ipairs(arguments.options(verb)) do
        local name = (option.short and '-' .. option.short .. ', ' or '    ') .. '--' .. option.long
        if option.value then
            name = name .. ' ' .. option.value
        end
        lines[#lines + 1] = ('  %-' .. OPTION_WIDTH .. 's  %s'):format(name, fold(option.doc, OPTION_WIDTH + 4))
    end
    if verb.examples then
        lines[#lines + 1] = ''
        lines[#lines + 1] = 'Examples:'
        for _, example in ipairs(verb.examples) do
            lines[#lines + 1] = '  ' .. example
        end
    end
    if verb.codes then
        lines[#lines + 1] = ''
        lines[#lines + 1] = 'Exit codes:'
        lines[#lines + 1] = '  ' .. fold(codes(verb), 2)
    end
    return table.concat(lines, '\n') .. '\n'
end

local HEAD = [[
dutch-master master.lua             run a cluster, in the foreground
                                    --watch [PATH ...]: restart on changes
                                    --take-over: serve in place of the workers
                                    that a killed master has left
                                    --no-keeper: without the small parent
                                    that starts another master if this one dies
dutch-master VERB [master.lua] ...  ask the one that runs (./master.lua)

]]

local TAIL = [[

  dutch-master check && dutch-master restart --wait   # a deploy: 0 = it serves
  dutch-master status --watch                         # what runs now
  dutch-master why                                    # what went wrong last

Signals:
  USR2, HUP restart all gracefully; TERM, QUIT stop gracefully;
  INT twice stops at once; USR1 reopens logs; TTIN, TTOU one more, fewer.
Exit codes:
  0 done, 1 failed, 2 usage, 3 not running, 10 restart aborted (the old release
  serves), 11 rolled back, 12 superseded by a later restart, 71 system,
  77 not permitted, 78 script, 124 timed out.
More: dutch-master VERB --help, man dutch-master, man dutch-master.lua
]]

function M.all(cli)
    local lines = {}
    for _, name in ipairs(cli.verbs) do
        lines[#lines + 1] = ('  %-11s %s\n'):format(name, fold(cli.verb(name).summary, 14))
    end
    return HEAD .. table.concat(lines) .. TAIL
end

return M
