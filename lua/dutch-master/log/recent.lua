--- recent.lua: the last records, as text: a thousand small tables would be four times as large. A flood of records
--- takes no more memory than BYTES, and does not drive out what went wrong: the last records of level error and above
--- have places of their own.

local Recent = {}
Recent.__index = Recent

-- Records kept in all, and how many of these places are for grave ones alone. Bytes, of each of the two kinds.
local ALL, GRAVE = 1000, 100
local BYTES = 1024 * 1024

local Ring = {}
Ring.__index = Ring

local function new_ring(places)
    return setmetatable({ places = places, first = 1, last = 0, bytes = 0, lines = {}, numbers = {} }, Ring)
end

local function drop_first(ring)
    local place = ring.first % ring.places
    ring.bytes = ring.bytes - #ring.lines[place]
    ring.lines[place], ring.numbers[place] = nil, nil
    ring.first = ring.first + 1
end

function Ring:push(number, line)
    if self.last - self.first + 1 == self.places then
        drop_first(self)
    end
    self.last = self.last + 1
    local place = self.last % self.places
    self.lines[place], self.numbers[place] = line, number
    self.bytes = self.bytes + #line
    while self.bytes > BYTES and self.first < self.last do
        drop_first(self)
    end
end

function Recent.new()
    return setmetatable({ count = 0, common = new_ring(ALL - GRAVE), grave = new_ring(GRAVE) }, Recent)
end

--- Remembers a record.
-- @param grave whether it is of level error or above
function Recent:push(line, grave)
    self.count = self.count + 1
    local ring = grave and self.grave or self.common
    ring:push(self.count, line)
end

--- The last n of those that are remembered, the oldest first.
function Recent:list(n)
    local list, a, b = {}, self.common, self.grave
    local i, j = a.last, b.last
    while #list < n and (i >= a.first or j >= b.first) do
        local common_is_later = j < b.first
            or i >= a.first and a.numbers[i % a.places] > b.numbers[j % b.places]
        if common_is_later then
            list[#list + 1], i = a.lines[i % a.places], i - 1
        else
            list[#list + 1], j = b.lines[j % b.places], j - 1
        end
    end
    for k = 1, math.floor(#list / 2) do
        list[k], list[#list - k + 1] = list[#list - k + 1], list[k]
    end
    return list
end

return Recent
