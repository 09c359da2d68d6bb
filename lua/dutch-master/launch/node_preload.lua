--- node_preload.lua: where drain.cjs lies, the file a Node worker loads before its app.
--
-- It goes with the binary: beside it in a build tree, in share/dutch-master of the same prefix when installed, in the
-- source tree when Lua is taken from there.

local bit = require 'bit'

local M = {}

--- What the log and `check` say where it is not there; what is lost by that follows.
M.MISSING = 'The Node preload is not beside the program (drain.cjs, metrics.cjs; or in ../share/dutch-master): '

--- @param platform needs executable, realpath, access
--- @param environ {NAME = value}
--- @return an absolute path, or nil
function M.find(platform, environ)
    local places = {}
    if environ.DUTCH_MASTER_LUA then
        places[1] = environ.DUTCH_MASTER_LUA .. '/node/drain.cjs'
    end
    local executable = platform.realpath(platform.executable()) or platform.executable()
    local bin = executable:match('^(.*)/[^/]*$')
    if bin then
        places[#places + 1] = bin .. '/drain.cjs'
        places[#places + 1] = bin .. '/../share/dutch-master/drain.cjs'
    end
    for _, path in ipairs(places) do
        if platform.access(path, 'r') then
            return platform.realpath(path) or path
        end
    end
end

-- Whether the mode of a file grants it: 4 read, 1 search.
local function grants(stat, wanted, account)
    local shift = 0
    if stat.uid == account.uid then
        shift = 6
    elseif stat.gid == account.gid then
        shift = 3
    else
        for _, gid in ipairs(account.groups or {}) do
            shift = stat.gid == gid and 3 or shift
        end
    end
    return bit.band(bit.rshift(stat.mode, shift), wanted) == wanted
end

--- Whether workers of another user can read it, by the modes of the file and of the directories above it. Node does not
-- start without a file it is told to load.
-- @param path absolute, without symbolic links
-- @param account {uid, gid, groups}
function M.readable_by(platform, path, account)
    if account.uid == 0 then
        return true
    end
    local stat = platform.stat(path)
    if not stat or not grants(stat, 4, account) then
        return false
    end
    while path ~= '/' do
        path = path:match '^(/.+)/[^/]*$' or '/'
        stat = platform.stat(path)
        if not stat or not grants(stat, 1, account) then
            return false
        end
    end
    return true
end

return M
