--- The master dies in every way at random moments of a life, under Node of each version, Lua, gunicorn and puma, beside kept
-- connections and a connection for each request. The ways by turns: SIGKILL, SIGSEGV, SIGSTOP (its keeper ends it),
-- SIGABRT (an assertion), no memory (no allocation succeeds any more); and once in each moment SIGSTOP for a minute, until its
-- keeper loses its patience. What must be true after each death: see spec/support/deaths.lua. A short form of it is
-- spec/e2e/keeper_moments_spec.lua.
-- usage: build/dm-spec spec/bench/takeover.lua [idle|booting|rolling|failing|canary|scaling|stopping|minute]...
-- DM_KINDS=node22,lua chooses; DM_KILLS deaths of each kind in each moment (20), DM_AT_ONCE masters at a time (3).
-- Without a name it does all: about half an hour. Each that went wrong leaves its log in DM_DUMPS (/tmp).

local uv = require 'luv'
io.stdout:setvbuf 'line'
math.randomseed(uv.hrtime() % 2 ^ 31)
local death_rows = require 'spec.support.death_rows'
local deaths = require 'spec.support.deaths'
local master = require 'spec.support.master'

local KILLS = tonumber(os.getenv 'DM_KILLS') or 20
local AT_ONCE = tonumber(os.getenv 'DM_AT_ONCE') or 3
local RATE, SLOW_RATE = 60, 15 -- of each load; the second where many masters are there at once
local MINUTES_AT_ONCE = 12 -- masters: they are there longer than they do anything
local DUMPS = os.getenv 'DM_DUMPS' or '/tmp'
local TEXT = 1000 -- bytes of what was wrong; the rest is in the log

local chosen = {}
for _, name in ipairs(#arg > 0 and arg or { 'minute', unpack(deaths.moments) }) do
    chosen[name] = true
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

local function tell(text, life, name)
    if not life then
        return print(text)
    end
    local path = ('%s/takeover-%s-%d.log'):format(DUMPS, name, uv.hrtime() / 1e6)
    local file = assert(io.open(path, 'w'))
    file:write(life.m:dump())
    file:close()
    print(text:sub(1, TEXT) .. '\n    ' .. path)
end

local began = uv.hrtime()
local rows = death_rows.new(tell)
rows:run(kinds, chosen, { times = KILLS, at_once = AT_ONCE, rate = RATE, way_of = function(i)
    return deaths.in_turns[(i - 1) % #deaths.in_turns + 1]
end })
if chosen.minute then
    local all = {}
    for _, moment in ipairs(deaths.moments) do
        all[moment] = true
    end
    rows:run(kinds, all, { times = 1, at_once = MINUTES_AT_ONCE, rate = SLOW_RATE, way_of = function() return 'minute' end })
end

print(('\n%-9s %-9s %6s %9s %7s %6s  worst takeover'):format('', '', 'deaths', 'requests', 'failed', 'wrong'))
local deaths_of_all, failed, wrong = 0, 0, rows.crashed
for _, kind in ipairs(kinds) do
    for _, moment in ipairs(deaths.moments) do
        local sum = rows.sums[kind.name .. ' ' .. moment]
        if sum then
            print(('%-9s %-9s %6d %9d %7d %6d  %.0f ms'):format(kind.name, moment, sum.deaths, sum.requests, sum.failed,
                sum.wrong, sum.worst))
            deaths_of_all, failed, wrong = deaths_of_all + sum.deaths, failed + sum.failed, wrong + sum.wrong
        end
    end
end
master.cleanup()
print(('%d of them hung for a minute; %d s'):format(rows.minutes, (uv.hrtime() - began) / 1e9))
print(('%d deaths, %d requests failed, %d wrong'):format(deaths_of_all, failed, wrong))
os.exit(failed + wrong == 0 and 0 or 1)
