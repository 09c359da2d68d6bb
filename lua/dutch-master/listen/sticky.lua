--- sticky.lua: which worker a client's address belongs to, for `balance = 'sticky'`. A client's address falls into a
-- bucket (core.bucket), a bucket has an owner. A bucket moves only when its owner leaves, or when the cluster grows: a
-- newcomer then takes back first what had to move before, so that nobody is moved twice without need.

local Buckets = {}
Buckets.__index = Buckets

-- At 256 the program costs about 60 us to attach; every owner should have several, so that shares are even.
local FEW, MANY, FEW_OWNERS = 256, 1024, 32

--- @param want the number of owners there will be, as far as one knows
function Buckets.new(want)
    local count = (want or 0) > FEW_OWNERS and MANY or FEW
    local self = setmetatable({ count = count, owner = {}, displaced = {}, held = {}, owners = 0 }, Buckets)
    return self
end

local function give(self, bucket, owner)
    local before = self.owner[bucket]
    if before then
        self.held[before] = self.held[before] - 1
    end
    self.owner[bucket] = owner
    self.held[owner] = self.held[owner] + 1
end

-- The owner with the fewest (sign = 1) or the most (-1) buckets; the lower key of two equal ones.
local function extreme(self, sign)
    local best
    for owner, held in pairs(self.held) do
        if not best or sign * held < sign * self.held[best] or held == self.held[best] and owner < best then
            best = owner
        end
    end
    return best
end

-- Up to `share` buckets for a newcomer: those that were moved away from an owner that left, then some of the richest.
local function take_share(self, owner, share)
    for bucket = 1, self.count do
        if self.held[owner] >= share then
            return
        end
        if self.displaced[bucket] then
            self.displaced[bucket] = nil
            give(self, bucket, owner)
        end
    end
    while self.held[owner] < share do
        local rich = extreme(self, -1)
        if self.held[rich] <= share then
            return
        end
        -- From its end, so that the rest stays in one piece and the program short.
        for bucket = self.count, 1, -1 do
            if self.owner[bucket] == rich then
                give(self, bucket, owner)
                break
            end
        end
    end
end

--- A new owner. It gets its share only if it makes the cluster grow; a successor (there are `want` owners already)
-- waits for what its predecessor leaves.
function Buckets:join(owner, want)
    if self.held[owner] then
        return
    end
    self.held[owner] = 0
    self.owners = self.owners + 1
    if self.owners == 1 then
        for bucket = 1, self.count do
            give(self, bucket, owner)
        end
    elseif self.owners <= want then
        take_share(self, owner, math.floor(self.count / self.owners))
    end
end

--- An owner leaves: its buckets go to those that have the fewest. If the cluster is short of a worker
-- then (fewer than `want`), the next one to join takes them back.
function Buckets:leave(owner, want)
    if not self.held[owner] then
        return
    end
    self.held[owner] = nil
    self.owners = self.owners - 1
    local short = self.owners < (want or 0)
    for bucket = 1, self.count do
        if self.owner[bucket] == owner then
            self.owner[bucket] = nil
            local heir = extreme(self, 1)
            if heir then
                give(self, bucket, heir)
                self.displaced[bucket] = short or nil
            end
        end
    end
end

--- The owner of each bucket. While a worker is away others take its buckets; it gets them back.
-- @param present list of owners that can serve, in a stable order
function Buckets:owners_of(present)
    local here, list = {}, {}
    for _, owner in ipairs(present) do
        here[owner] = true
    end
    for bucket = 1, self.count do
        local owner = self.owner[bucket]
        list[bucket] = here[owner] and owner or present[bucket % #present + 1]
    end
    return list
end

return Buckets
