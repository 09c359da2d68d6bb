--- claim.lua: the place of the one master of a script: its lock, the name of its file, and the paths of its sockets.
-- Taken before anything is bound or forked: claim.take{platform, script, plan}; claim:release() at the end.

local bit = require 'bit'

local M = {}

--- sun_path has 108 bytes, one for the NUL.
local MAX_PATH = 107

--- FNV-1a, 64 bits: which script, in 16 digits.
local function hash(text)
    local value = 0xcbf29ce484222325ULL
    for i = 1, #text do
        value = bit.bxor(value, text:byte(i)) * 0x100000001b3ULL
    end
    return bit.tohex(value)
end

--- What the files of a script's master are called: its name for people, its path for uniqueness.
function M.name_for(script)
    local base = script:match '([^/]+)$':gsub('%.lua$', ''):gsub('[^%w._-]', '_'):sub(1, 40)
    return base .. '-' .. hash(script)
end

--- The socket of the master of `script` -> path | nil, message, code
function M.path_for(script, plan, platform)
    local path = plan and plan.control_socket
    if not path then
        local dir, message, code = platform.runtime_dir()
        if not dir then
            return nil, message, code
        end
        path = dir .. '/' .. M.name_for(script) .. '.sock'
    end
    if #path > MAX_PATH then
        return nil, ('%s: too long for a socket, %d bytes of at most %d'):format(path, #path, MAX_PATH), 'ENAMETOOLONG'
    end
    return path
end

local Claim = {}
Claim.__index = Claim

function Claim:release()
    self.lock:close()
    if self.name then
        self.name:close()
    end
end

--- The files may have been removed, with their directory or without (a cleaner of /tmp, a logout): they are made again.
-- Nobody else can be the master meanwhile, for the name of the script's file is held as well.
-- @return the paths of sockets that are gone
function Claim:look(platform)
    if not platform.stat(self.lock_path) then
        platform.runtime_dir() -- made again, if it is that
        local lock = platform.lock(self.lock_path)
        if lock then
            self.lock:close()
            self.lock = lock
        end
    end
    local gone = {}
    for _, path in ipairs(self.paths) do
        if not platform.stat(path) then
            gone[#gone + 1] = path
        end
    end
    return gone
end

-- By the file and not by its path: whatever becomes of the directory in which the lock is. Its birth too: when the
-- script is replaced, as an edit does it, another file may get its inode while this master runs.
local function claim_name(platform, script)
    local file = platform.stat(script)
    if not file then
        return nil
    end
    return platform.claim(('script/%.0f-%.0f-%s'):format(file.dev, file.ino, file.born or hash(script)))
end

--- For another master: see keeper/estate.lua.
function Claim:keep(book)
    return { lock = book:fd('lock', self.lock:fd()), lock_path = self.lock_path, paths = self.paths,
        name = self.name and book:fd('claim', self.name:fd()) }
end

--- The place of a former master. @return claim, or nil, message
function M.resume(kept, former, platform)
    local lock, message
    local fd, name = former:take(kept.lock), former:take(kept.name)
    if fd then
        lock, message = platform.lock(kept.lock_path, fd)
    end
    if not lock then
        return nil, message or 'the lock was not kept'
    end
    return setmetatable({ lock = lock, lock_path = kept.lock_path, name = name and platform.claim('', name),
        paths = kept.paths, path = kept.paths[1] }, Claim)
end

--- Where the sockets of its master are: the path that the script chooses, and the usual one, if it is to be had.
-- @return the list, the usual one or nil; or nil, message, code
function M.paths_for(script, plan, platform)
    local usual, message, code = M.path_for(script, nil, platform)
    local chosen = plan and plan.control_socket
    if chosen then
        local ok, too_long, why = M.path_for(script, plan, platform)
        if not ok then
            return nil, too_long, why
        end
    elseif not usual then
        return nil, message, code
    end
    return { chosen or usual, usual ~= chosen and chosen and usual or nil }, usual
end

--- Takes the place of the one master of `script`. -> claim | nil, message, code; EAGAIN: another one has it.
-- The socket is also served where the script's path alone puts it: a client can find it without evaluating the script.
function M.take(world)
    local platform, script, plan = world.platform, world.script, world.plan
    local paths, usual, code = M.paths_for(script, plan, platform)
    if not paths then
        return nil, usual, code
    end
    local lock, lock_path, message
    if usual then
        lock_path = usual:gsub('%.sock$', '.lock')
        lock, message, code = platform.lock(lock_path)
    end
    if not lock and code ~= 'EAGAIN' and plan.control_socket then
        paths = { plan.control_socket }
        lock_path = plan.control_socket .. '.lock'
        lock, message, code = platform.lock(lock_path)
    end
    local name
    if lock then
        local why, kind
        name, why, kind = claim_name(platform, script)
        if kind == 'EAGAIN' then
            lock:close()
            lock, message, code = nil, why, kind
        end
    end
    if not lock then
        if code == 'EAGAIN' then
            message = ('a master of %s is running already: %s'):format(script, message)
        end
        return nil, message, code
    end
    return setmetatable({ lock = lock, lock_path = lock_path, name = name, paths = paths, path = paths[1] }, Claim)
end

return M
