-- A keeper (src/keeper) whose masters do what a spec says: see kept_masters.c.
local p = require 'spec.support.process'

local PROGRAM = p.runner:match '^.*/' .. 'kept-masters'

local M = {}

--- The masters, one after the other, by what each does.
-- @return what they said, a line each, and how the keeper ended
function M.run(...)
    local null = assert(io.open('/dev/null', 'w')) -- the keeper says there that a master has died
    local output, record = p.output_of({ PROGRAM, stderr = p.fileno(null), ... }, 20000)
    null:close()
    local lines = {}
    for line in output:gmatch '[^\n]+' do
        lines[#lines + 1] = line
    end
    return lines, record.status
end

return M
