-- The matrix of deaths.lua: kinds of workers, moments, ways to die. Of each kind there are up to three masters: one lives
-- through all moments of a life with plain restarts, one has canaries, one boots and stops again and again.
-- For spec/e2e/keeper_moments_spec.lua (short) and spec/bench/takeover.lua (long).

local deaths = require 'spec.support.deaths'
local wait = require 'spec.support.wait'

local M = {}
local Rows = {}
Rows.__index = Rows

local TRIES = 4 -- a death that is to come while it boots or stops may come too late

--- @param tell function(text, life, name): hears of each death after which something was not as it should be; without a
-- life, of a master that could not be judged
function M.new(tell)
    --- sums: "kind moment" -> { deaths, requests, failed, wrong, worst (ms) }
    return setmetatable({ tell = tell, sums = {}, minutes = 0, crashed = 0 }, Rows)
end

local function note(self, life, moment, way, result)
    local key = life.kind.name .. ' ' .. moment
    local sum = self.sums[key] or { deaths = 0, requests = 0, failed = 0, wrong = 0, worst = 0 }
    self.sums[key] = sum
    sum.deaths = sum.deaths + (result.died and 1 or 0)
    sum.requests, sum.failed = sum.requests + result.requests, sum.failed + result.failed
    sum.wrong = sum.wrong + (#result.wrong > (result.failed > 0 and 1 or 0) and 1 or 0)
    if result.died and way == 'minute' then
        self.minutes = self.minutes + 1
    elseif result.took then
        sum.worst = math.max(sum.worst, result.took)
    end
    if #result.wrong > 0 then
        self.tell(('%s %s, %s after %d ms: %s'):format(life.kind.name, moment, way, result.ms,
            table.concat(result.wrong, '; ')), life, life.kind.name .. '-' .. moment)
    end
    return result.died
end

-- One task: some moments of one life, and of the next one if it does not go on.
local function live(self, kind, list, options)
    local life
    for i = 1, options.times do
        for j, moment in ipairs(list) do
            life = life or deaths.begin(kind, options)
            local way = options.way_of(i + j - 1) -- no three in a row that it dies of by itself: see deaths.in_turns
            note(self, life, moment, way, life:die(moment, way))
            if life.broken then
                life:finish()
                life = nil
            end
        end
    end
    if life then
        life:finish()
    end
end

-- Another one: it boots and stops again and again.
local function begin_and_end(self, kind, which, options)
    local way_of, times, done, tries = options.way_of, options.times, { booting = 0, stopping = 0 }, 0
    while tries < TRIES * times and (which.booting and done.booting < times or which.stopping and done.stopping < times) do
        tries = tries + 1
        local boots = which.booting and done.booting < times
        local life, result = deaths.begin(kind, options, boots and way_of(tries) or nil)
        if boots and note(self, life, 'booting', way_of(tries), result) then
            done.booting = done.booting + 1
        end
        if life.broken then
            life:finish()
        elseif which.stopping and done.stopping < times then
            if note(self, life, 'stopping', way_of(tries + 1), life:stop(way_of(tries + 1))) then
                done.stopping = done.stopping + 1
            end
        else
            life:finish()
        end
    end
end

local function tasks(self, kinds, which, options)
    local list = {}
    for _, kind in ipairs(kinds) do
        local steady = {}
        for _, moment in ipairs { 'idle', 'rolling', 'failing', 'scaling' } do
            steady[#steady + 1] = which[moment] and moment or nil
        end
        if #steady > 0 then
            list[#list + 1] = { kind.name, function() live(self, kind, steady, options) end }
        end
        if which.canary then
            list[#list + 1] = { kind.name .. ' canary', function()
                live(self, kind, { 'canary' }, setmetatable({ canary = true }, { __index = options }))
            end }
        end
        if which.booting or which.stopping then
            list[#list + 1] = { kind.name .. ' boots', function() begin_and_end(self, kind, which, options) end }
        end
    end
    return list
end

--- Each kind dies in each moment. options: times, way_of (function(so-manieth death of a master) -> way), at_once (masters
-- at a time), rate (requests a second of each load). which: a set of moments
function Rows:run(kinds, which, options)
    local ok, message = pcall(wait.together, tasks(self, kinds, which, options), options.at_once)
    if not ok then
        self.crashed = self.crashed + 1
        self.tell(message)
    end
end

return M
