--- The master dies in every way at random moments of a life, under Node of each version, Lua, gunicorn and puma, beside kept
-- connections and a connection for each request. The ways by turns: SIGKILL, SIGSEGV, SIGSTOP (its keeper ends it),
-- SIGABRT (an assertion), no memory (no allocation succeeds any more); and once in each moment SIGSTOP for a minute, until its
-- keeper loses its patience. What must be true after each death: see spec/support/deaths.lua.
-- usage: build/dm-spec spec/bench/takeover.lua [idle|booting|rolling|failing|canary|scaling|stopping|minute]...
-- DM_KINDS=node22,lua chooses; DM_KILLS deaths of each kind in each moment (20), DM_AT_ONCE masters at a time (3).
-- Without a name it does all: about half an hour. Each that went wrong leaves its log in DM_DUMPS (/tmp).

local uv = require 'luv'
io.stdout:setvbuf 'line'
math.randomseed(uv.hrtime() % 2 ^ 31)
local deaths = require 'spec.support.deaths'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local KILLS = tonumber(os.getenv 'DM_KILLS') or 20
local AT_ONCE = tonumber(os.getenv 'DM_AT_ONCE') or 3
local RATE, SLOW_RATE = 60, 15 -- of each load; the second where many masters are there at once
local MINUTES_AT_ONCE = 12 -- masters: they are there longer than they do anything
local DUMPS = os.getenv 'DM_DUMPS' or '/tmp'

local chosen = {}
for _, name in ipairs(#arg > 0 and arg or { 'minute', unpack(deaths.moments) }) do
    chosen[name] = true
end

local sums = {} -- "kind moment" -> { deaths, requests, failed, wrong, worst (ms) }
local minutes = 0

local function sum_of(kind, moment)
    local key = kind.name .. ' ' .. moment
    sums[key] = sums[key] or { deaths = 0, requests = 0, failed = 0, wrong = 0, worst = 0 }
    return sums[key]
end

local function dump(life, name)
    local path = ('%s/takeover-%s-%d.log'):format(DUMPS, name, uv.hrtime() / 1e6)
    local file = io.open(path, 'w')
    if file then
        file:write(life.m:dump())
        file:close()
    end
    return path
end

local function note(life, moment, way, result)
    local sum = sum_of(life.kind, moment)
    sum.deaths = sum.deaths + (result.died and 1 or 0)
    sum.requests, sum.failed = sum.requests + result.requests, sum.failed + result.failed
    sum.wrong = sum.wrong + (#result.wrong > (result.failed > 0 and 1 or 0) and 1 or 0)
    if result.died and way == 'minute' then
        minutes = minutes + 1
    elseif result.took then
        sum.worst = math.max(sum.worst, result.took)
    end
    if #result.wrong > 0 then
        print(('%s %s, %s after %d ms: %s'):format(life.kind.name, moment, way, result.ms,
            table.concat(result.wrong, '; '):sub(1, 1000)))
        print('    ' .. dump(life, life.kind.name .. '-' .. moment))
    end
    return result.died
end

-- One task: some moments of one life, and of the next one if it does not go on.
local function live(kind, list, options, way_of, times)
    local life
    for i = 1, times do
        for j, moment in ipairs(list) do
            life = life or deaths.begin(kind, options)
            local way = way_of(i + j - 1) -- no three in a row that it dies of by itself: see deaths.in_turns
            note(life, moment, way, life:die(moment, way))
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
local function begin_and_end(kind, which, options, way_of, times)
    local done, tries = { booting = 0, stopping = 0 }, 0
    while tries < 3 * times and (which.booting and done.booting < times or which.stopping and done.stopping < times) do
        tries = tries + 1
        local boots = which.booting and done.booting < times
        local life, result = deaths.begin(kind, options, boots and way_of(tries) or nil)
        if boots and note(life, 'booting', way_of(tries), result) then
            done.booting = done.booting + 1
        end
        if life.broken then
            life:finish()
        elseif which.stopping and done.stopping < times then
            if note(life, 'stopping', way_of(tries + 1), life:stop(way_of(tries + 1))) then
                done.stopping = done.stopping + 1
            end
        else
            life:finish()
        end
    end
end

local function tasks(kinds, which, rate, way_of, times)
    local list = {}
    for _, kind in ipairs(kinds) do
        local steady = {}
        for _, moment in ipairs { 'idle', 'rolling', 'failing', 'scaling' } do
            steady[#steady + 1] = which[moment] and moment or nil
        end
        if #steady > 0 then
            list[#list + 1] = { kind.name, function() live(kind, steady, { rate = rate }, way_of, times) end }
        end
        if which.canary then
            list[#list + 1] = { kind.name .. ' canary', function()
                live(kind, { 'canary' }, { rate = rate, canary = true }, way_of, times)
            end }
        end
        if which.booting or which.stopping then
            list[#list + 1] = { kind.name .. ' boots', function()
                begin_and_end(kind, which, { rate = rate }, way_of, times)
            end }
        end
    end
    return list
end

local kinds, missing = deaths.kinds()
local names = os.getenv 'DM_KINDS'
for i = #kinds, 1, -1 do
    if names and not (',' .. names .. ','):find(',' .. kinds[i].name .. ',', 1, true) then
        table.remove(kinds, i)
    end
end
for _, name in ipairs(missing) do
    print(name .. ' is not installed')
end

local crashed = 0
local function run(...)
    local ok, message = pcall(wait.together, ...)
    if not ok then
        crashed = crashed + 1
        print(message)
    end
end

local began = uv.hrtime()
run(tasks(kinds, chosen, RATE, function(i)
    return deaths.in_turns[(i - 1) % #deaths.in_turns + 1]
end, KILLS), AT_ONCE)
if chosen.minute then
    local all = {}
    for _, moment in ipairs(deaths.moments) do
        all[moment] = true
    end
    run(tasks(kinds, all, SLOW_RATE, function() return 'minute' end, 1), MINUTES_AT_ONCE)
end

print(('\n%-9s %-9s %6s %9s %7s %6s  worst takeover'):format('', '', 'deaths', 'requests', 'failed', 'wrong'))
local deaths_of_all, failed, wrong = 0, 0, crashed
for _, kind in ipairs(kinds) do
    for _, moment in ipairs(deaths.moments) do
        local sum = sums[kind.name .. ' ' .. moment]
        if sum then
            print(('%-9s %-9s %6d %9d %7d %6d  %.0f ms'):format(kind.name, moment, sum.deaths, sum.requests, sum.failed,
                sum.wrong, sum.worst))
            deaths_of_all, failed, wrong = deaths_of_all + sum.deaths, failed + sum.failed, wrong + sum.wrong
        end
    end
end
master.cleanup()
print(('%d of them hung for a minute; %d s'):format(minutes, (uv.hrtime() - began) / 1e9))
print(('%d deaths, %d requests failed, %d wrong'):format(deaths_of_all, failed, wrong))
os.exit(failed + wrong == 0 and 0 or 1)
