--- shell.lua: text for a shell's command line.

local M = {}

--- One word, whatever it holds.
function M.quote(text)
    return "'" .. text:gsub("'", "'\\''") .. "'"
end

return M
