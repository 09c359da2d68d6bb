-- rights.lua: options that this user may not set, found before anything is forked. Otherwise each worker would fail at
-- its start, again and again. Pure: what the system allows is given as text of /proc/self/limits and the user's number.

local M = {}

--- Names of limits in /proc/self/limits.
local TITLES = {
    as = 'Max address space', core = 'Max core file size', cpu = 'Max cpu time', data = 'Max data size',
    fsize = 'Max file size', memlock = 'Max locked memory', msgqueue = 'Max msgqueue size', nice = 'Max nice priority',
    nofile = 'Max open files', nproc = 'Max processes', rss = 'Max resident set', rtprio = 'Max realtime priority',
    rttime = 'Max realtime timeout', sigpending = 'Max pending signals', stack = 'Max stack size',
}

local function hard_limit(text, name)
    local title = TITLES[name]:gsub('%p', '%%%0')
    local hard = text:match(title .. '%s+%S+%s+(%S+)')
    return hard == 'unlimited' and math.huge or tonumber(hard)
end

--- Says at `at` what a user other than root may not set.
-- @param own { uid =, groups = set or nil, limits = text of /proc/self/limits or nil }
function M.check(plan, own, at)
    if own.uid == nil or own.uid == 0 then
        return
    end
    if plan.uid ~= nil and plan.uid ~= own.uid then
        at:key('user'):say(('only root can start workers as another user (this is user %d)'):format(own.uid))
    end
    if plan.nice ~= nil and plan.nice < 0 then
        at:key('nice'):say(('only root can raise a priority: expected 0 or more, found %d'):format(plan.nice))
    end
    for _, limit in ipairs(own.limits and plan.limits or {}) do
        local hard = hard_limit(own.limits, limit.name)
        local wanted = limit.hard == 'unlimited' and math.huge or limit.hard
        if hard and wanted and wanted > hard then
            at:key('limits'):key(limit.name):say(('only root can raise a limit: the hard limit here is %.0f, found %s')
                :format(hard, tostring(limit.hard)))
        end
    end
end

return M
