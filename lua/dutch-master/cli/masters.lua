--- masters.lua: every master of this user, for root those of all users, by the sockets in the runtime directories.
-- A socket whose master is dead, hangs, or is another user's is a finding like any other: nothing here waits for it
-- longer than SILENT_MS.

local absent = require 'dutch-master.cli.absent'
local Peer = require 'dutch-master.cli.peer'

local M = {}

--- A master answers in milliseconds.
local SILENT_MS = 1000
--- Until a full backlog is taken for a master that hangs. Connecting blocks, one socket after the other.
local CONNECT_MS = 100

local ROOT = 0

--- The names in `parent` that begin with `prefix`.
local function children(platform, parent, prefix)
    local found = {}
    for _, name in ipairs(platform.list(parent) or {}) do
        if name:sub(1, #prefix) == prefix then
            found[#found + 1] = parent .. '/' .. name
        end
    end
    return found
end

--- The directories of services: RuntimeDirectory= of the unit.
function M.services(platform)
    return children(platform, '/run', 'dutch-master-')
end

--- The directories that masters of a user may choose, the likely one first.
function M.of_user(platform, uid)
    local account = platform.getuser(uid)
    local found = { uid == ROOT and '/run/dutch-master' or nil }
    found[#found + 1] = account and '/run/dutch-master-' .. account.name -- RuntimeDirectory= of examples/systemd/
    found[#found + 1] = ('/run/user/%d/dutch-master'):format(uid)
    found[#found + 1] = ('/tmp/dutch-master-%d'):format(uid)
    return found
end

local function directories(platform)
    local chosen = platform.environ().DUTCH_MASTER_RUNTIME_DIR
    if chosen and chosen ~= '' then
        return { chosen }
    end
    local found, lists = { (platform.runtime_dir()) }, { M.of_user(platform, platform.uid()) }
    if platform.uid() == ROOT then
        lists = { { '/run/dutch-master' }, M.services(platform), children(platform, '/run/user', ''),
            children(platform, '/tmp', 'dutch-master-') }
    end
    for _, list in ipairs(lists) do
        for _, dir in ipairs(list) do
            found[#found + 1] = dir:find '^/run/user/[^/]+$' and dir .. '/dutch-master' or dir
        end
    end
    return found
end

--- -> list of { path, owner = uid of the directory }, in the order of their names
function M.sockets(platform)
    local found, seen = {}, {}
    for _, dir in ipairs(directories(platform)) do
        local there = not seen[dir] and platform.stat(dir)
        seen[dir] = true
        for _, name in ipairs(there and platform.list(dir) or {}) do
            if name:find '%.sock$' then
                found[#found + 1] = { path = dir .. '/' .. name, owner = there.uid }
            end
        end
    end
    table.sort(found, function(a, b)
        return a.path < b.path
    end)
    return found
end

local PROBLEMS = {
    ECONNREFUSED = 'dead', ENOENT = 'dead', EAGAIN = 'hangs', EACCES = 'foreign', EPERM = 'foreign',
}

--- Connects. -> conn | nil, problem ('dead', 'hangs', 'foreign'), in words
local function connect(platform, socket)
    local conn, message, code = platform.connect(socket.path, CONNECT_MS)
    if not conn then
        return nil, PROBLEMS[code] or 'dead', message
    end
    local uid = conn:uid()
    -- A directory may be anybody's; who serves in it must be its owner, or root.
    if uid and uid ~= ROOT and uid ~= socket.owner then
        conn:close()
        return nil, 'foreign', ('served by user %d'):format(uid)
    end
    return conn
end

--- The masters that can be connected to. -> list of { path, conn }
function M.living(platform)
    local found = {}
    for _, socket in ipairs(M.sockets(platform)) do
        local conn = connect(platform, socket)
        if conn then
            found[#found + 1] = { path = socket.path, conn = conn }
        end
    end
    return found
end

--- Asks all of them. done(list of { path, pid, status, or problem, message and script if it is known }), when each has
-- answered or is silent.
function M.ask(platform, request, done)
    local found, open = M.sockets(platform), 1
    local function finish()
        open = open - 1
        if open == 0 then
            table.sort(found, function(a, b)
                local x, y = a.status and a.status.script or a.path, b.status and b.status.script or b.path
                return x < y
            end)
            done(found)
        end
    end
    for _, socket in ipairs(found) do
        local conn, problem, message = connect(platform, socket)
        if not conn then
            socket.problem, socket.message = problem, message
        else
            open = open + 1
            socket.pid = conn:pid()
            local peer
            local function answered(what, words)
                socket.problem, socket.message = what, words
                peer:close()
                finish()
            end
            peer = Peer.new(platform, conn, function(reason)
                socket.problem, socket.message = 'dead', reason or 'it hung up'
                finish()
            end)
            peer:ask(request, {
                timeout_ms = SILENT_MS,
                done = function(answer, error)
                    socket.status = answer and answer.status
                    answered(error and 'failed', error and error.message)
                end,
                silent = function()
                    socket.script = absent.script_of(platform, socket.pid, socket.path)
                    answered('hangs', ('no answer within %g s'):format(SILENT_MS / 1000))
                end,
            })
        end
    end
    finish()
end

return M
