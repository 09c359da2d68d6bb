-- hints.lua: what to write instead, behind errors of Lua that strangers get in their first minutes. Pure.

local M = {}

local HINTS = {
    { "index global 'dutch'", "is `local dutch = require 'dutch-master'` missing above?" },
    { "call field 'start'", "did you mean `dutch.start`, with `local dutch = require 'dutch-master'`?" },
    { "module 'dutchmaster' not found", 'did you mean "dutch-master"?' },
    { "module 'dutch_master' not found", 'did you mean "dutch-master"?' },
    { "module 'dutch' not found", 'did you mean "dutch-master"?' },
    { 'the script never calls start', "expected dutch.start { worker = ... }" },
}

--- The first line of a message with a hint at its end, or the message as it is.
function M.add(message)
    for _, hint in ipairs(HINTS) do
        if message:find(hint[1], 1, true) and not message:find(hint[2], 1, true) then
            local first, rest = message:match '^([^\n]*)(.*)$'
            return ('%s (%s)%s'):format(first, hint[2], rest)
        end
    end
    return message
end

return M
