-- A keeper and its master, as processes: which is which, and the end of both at one blow. A master without a keeper is
-- its own pair.
local uv = require 'luv'
local files = require 'spec.support.files'

local M = {}

local function children_of(pid)
    return files.or_empty(('/proc/%d/task/%d/children'):format(pid, pid)):gmatch '%d+'
end

function M.is_keeper(pid)
    return files.read(('/proc/%d/comm'):format(pid)) == 'dutch-keeper\n'
end

--- The master of a keeper. nil: there is none at this moment, or that is no keeper.
-- What a dead master was about to exec looks the same, and is older.
function M.master_of(keeper)
    local found
    for pid in M.is_keeper(keeper) and children_of(keeper) or function() end do
        local words = files.or_empty(('/proc/%s/cmdline'):format(pid))
        if files.read(('/proc/%s/comm'):format(pid)) == 'dutch-master\n' and not words:find '%-%-script%-process%z'
            and not words:find '%-%-lua%-worker%z' then
            found = tonumber(pid)
        end
    end
    return found
end

--- The process that does the work of a master: its keeper's child, or itself.
function M.master(pid)
    return M.master_of(pid) or pid
end

--- Both by SIGKILL, so that neither can do anything about the other's death.
function M.kill(pid)
    uv.kill(pid, 'sigstop')
    while M.is_keeper(pid) do -- until it has stopped: then what it forked is there
        local state = files.or_empty(('/proc/%d/stat'):format(pid)):match '%) (%a)'
        if state ~= 'R' and state ~= 'S' and state ~= 'D' then
            break
        end
    end
    local master = M.master_of(pid)
    if master then
        uv.kill(master, 'sigkill')
    end
    return uv.kill(pid, 'sigkill')
end

return M
