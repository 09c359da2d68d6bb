--- totals.lua: what a cluster counts over its life, for `metrics`. Numbers only, never reset.

local Totals = {}
Totals.__index = Totals

--- Every reason there is: a scrape shows them all from the start, with 0.
local REASONS = {
    'crash', 'start_failed', 'never_ready', 'out_of_memory', 'asked', 'max_memory', 'max_lifetime', 'hung', 'scaled',
    'stopped', 'replaced',
}
local RESULTS = { 'done', 'aborted', 'rolled_back', 'superseded', 'stopped' }

function Totals.new()
    local self = setmetatable({ exits = {}, killed = 0, verdicts = {}, roll_ms = 0, rolls = 0 }, Totals)
    for _, reason in ipairs(REASONS) do
        self.exits[reason] = 0
    end
    for _, result in ipairs(RESULTS) do
        self.verdicts[result] = 0
    end
    return self
end

-- What a worker was told to leave for, as a word: see worker:replace and the events that say why.
local WHY = {
    { '^asked', 'asked' }, { 'maxMemory', 'max_memory' }, { 'maxLifetime', 'max_lifetime' },
    { '^scaled', 'scaled' }, { '^stopped', 'stopped' }, { 'sign of life', 'hung' }, { 'answer', 'hung' },
    { 'hang', 'hung' },
}

local function reason_of(report)
    if report.step then
        return 'start_failed'
    elseif report.oom then
        return 'out_of_memory'
    elseif report.unexpected then
        return report.was_ready and 'crash' or 'never_ready'
    end
    for _, entry in ipairs(WHY) do
        if report.why and report.why:find(entry[1]) then
            return entry[2]
        end
    end
    return 'replaced'
end

--- @param report see exit_report.lua
function Totals:exit(report)
    local reason = reason_of(report)
    self.exits[reason] = self.exits[reason] + 1
    self.killed = self.killed + (report.killed and 1 or 0)
end

--- @param verdict of a restart
function Totals:verdict(verdict)
    self.verdicts[verdict.result] = (self.verdicts[verdict.result] or 0) + 1
    self.rolls = self.rolls + 1
    self.roll_ms = self.roll_ms + (verdict.duration_ms or 0)
end

--- For those who look at it, and for another master: see keeper/estate.lua.
function Totals:snapshot()
    return { exits = self.exits, killed = self.killed, verdicts = self.verdicts, rolls = self.rolls,
        roll_ms = self.roll_ms }
end

local function take_over(into, kept)
    for key, value in pairs(kept) do
        if type(value) == 'table' and type(into[key]) == 'table' then
            take_over(into[key], value)
        else
            into[key] = value
        end
    end
end

--- What a former master has counted. One of another version may have had other reasons: ours begin with 0.
function Totals:resume(kept)
    take_over(self, kept)
end

return Totals
