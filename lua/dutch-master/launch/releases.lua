--- releases.lua: the directories that generations run in.
--
-- The first fork of a generation says where it runs. Later ones of it run there too if the generation is pinned: by
-- `pinRelease`, or because a restart was aborted and the others of it still do.

local Releases = {}
Releases.__index = Releases

--- @param options {platform}
function Releases.new(options)
    local self = setmetatable(options, Releases)
    self.known = {} -- generation -> {release = where its first fork ran, pinned, back_to = generation}
    return self
end

--- Later forks of this generation run where its first one did, wherever the script would have them by now.
function Releases:pin(generation)
    local known = self.known[generation]
    if known then
        known.pinned = true
    end
end

--- Where a generation runs. @return its directory, or nil when that is gone or was never known
function Releases:of(generation)
    local known = self.known[generation]
    return known and known.release and self.platform.realpath(known.release) and known.release or nil
end

--- Makes `generation` a rollback: it runs in the release of an earlier one.
function Releases:roll_back(generation, to)
    self.known[generation] = { release = self.known[to].release, pinned = true, back_to = to }
end

--- Whether `generation` is a rollback to the generation `to`.
function Releases:rolls_back(generation, to)
    local known = self.known[generation]
    return known ~= nil and known.back_to == to
end

--- Forgets the releases of generations that nobody will ask for any more.
-- @param used set of generations
function Releases:forget(used)
    for generation in pairs(self.known) do
        if not used[generation] then
            self.known[generation] = nil
        end
    end
end

--- For another master: see keeper/estate.lua.
function Releases:keep()
    local list = {}
    for generation, known in pairs(self.known) do
        list[#list + 1] = { generation = generation, known = known }
    end
    return list
end

function Releases:resume(kept)
    for _, item in ipairs(kept) do
        self.known[item.generation] = item.known
    end
end

--- Where a fork of this generation runs.
-- @param cwd where the script would have it, or nil: where the master was started
-- @param pinned whether the plan says so
-- @param log where it is said that a release is gone
-- @return the directory, its release (without links)
function Releases:place(generation, cwd, pinned, log)
    local known = self.known[generation]
    if known and (known.pinned or pinned) then
        if known.release and self.platform.realpath(known.release) then
            return known.release, known.release
        end
        log:warn({ generation = generation, release = known.release, directory = cwd },
            'The release of this generation is gone, its worker runs where the script says')
    end
    local release = cwd and self.platform.realpath(cwd) or cwd
    if not known then
        self.known[generation] = { release = release }
    end
    return cwd, release
end

return Releases
