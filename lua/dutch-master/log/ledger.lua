--- ledger.lua: records that wait until the state of which they speak is kept (keeper/commit.lua). They are in that
-- state themselves, with numbers: a master that dies in between leaves them to the next one, and the number of the last
-- one that was written stands beside the state (platform.said), so that none is written twice. Who delivers a record to
-- a file or a pipe says its number in the same breath; what a script's own logger took is said here.

local cjson = require 'cjson'

local Ledger = {}
Ledger.__index = Ledger

-- Bytes of records that may wait. In a flood the oldest ones go out before they are kept.
local BYTES = 512 * 1024

--- @param options {platform, commit, deliver = function(record, number or nil)}
function Ledger.new(options)
    local self = setmetatable(options, Ledger)
    self.first = self.platform.said() + 1 -- the number of the first that waits
    self.records, self.bytes = {}, 0
    return self
end

local function deliver_first(self)
    local record, number = table.remove(self.records, 1), self.first
    self.first, self.bytes = number + 1, self.bytes - #record.text
    self.deliver(record, number)
    self.platform.say(self.first - 1)
end

--- @param record {text = as a line of JSON, and what it was made of: see logger.lua}
function Ledger:enter(record)
    self.records[#self.records + 1] = record
    self.bytes = self.bytes + #record.text
    while self.bytes > BYTES and self.records[2] do
        deliver_first(self)
    end
    if not self.awaits then
        self.awaits = true
        self.commit:add(function()
            self.awaits = false
            self:flush()
        end)
    end
end

--- A record that speaks of no state: behind those that wait, or at once.
function Ledger:follow(record)
    if self.records[1] then
        return self:enter(record)
    end
    self.deliver(record)
end

--- Delivers all that wait: their state is kept, or nobody would go on from it.
function Ledger:flush()
    while self.records[1] do
        deliver_first(self)
    end
end

--- For another master: see keeper/estate.lua.
function Ledger:keep()
    local kept = { first = self.first, texts = {}, times = {} }
    for i, record in ipairs(self.records) do
        kept.texts[i], kept.times[i] = record.text, record.at
    end
    return kept
end

--- Those of a former master that it has not written come first.
-- @param read function(fields of the line of JSON, time, text) -> record
function Ledger:resume(kept, read)
    for i, text in ipairs(kept.texts) do
        if kept.first + i > self.platform.said() + 1 then
            self:enter(read(cjson.decode(text), kept.times[i], text))
        end
    end
end

return Ledger
