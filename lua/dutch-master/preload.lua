--- preload.lua: where drain.cjs lies, the file a Node worker loads before its app.
--
-- It goes with the binary: beside it in a build tree, in share/dutch-master of the same prefix when installed, in the
-- source tree when Lua is taken from there.

local M = {}

--- @param platform needs executable, realpath, access
--- @param environ {NAME = value}
--- @return an absolute path, or nil and the places that were tried
function M.find(platform, environ)
    local tried = {}
    if environ.DUTCH_MASTER_LUA then
        tried[1] = environ.DUTCH_MASTER_LUA .. '/node/drain.cjs'
    end
    local executable = platform.realpath(platform.executable()) or platform.executable()
    local bin = executable:match('^(.*)/[^/]*$')
    if bin then
        tried[#tried + 1] = bin .. '/drain.cjs'
        tried[#tried + 1] = bin .. '/../share/dutch-master/drain.cjs'
    end
    for _, path in ipairs(tried) do
        if platform.access(path, 'r') then
            return platform.realpath(path) or path
        end
    end
    return nil, tried
end

return M
