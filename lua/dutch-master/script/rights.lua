--- rights.lua: whether this user may give workers what the plan asks for: another user, limits, priority, processors.
-- The kernel is asked, by a child that tries all of it and ends. It is asked when the plan is made: an error of the
-- script, at its line, instead of workers that fail one after the other.

local M = {}

-- The step of a start that failed -> the options that it comes from, and who may.
local STEPS = {
    nice = { options = { 'nice' }, who = 'only root can raise a priority' },
    affinity = { options = { 'cpus' }, who = 'there are no such processors for this user or in this container' },
    limits = { options = { 'limits' }, who = 'only root can raise a hard limit (ulimit -H shows it)' },
    groups = { options = { 'user', 'group' }, who = 'only root can start workers as another user' },
    gid = { options = { 'group', 'user' }, who = 'only root can start workers as another group' },
    uid = { options = { 'user' }, who = 'only root can start workers as another user' },
}
local ASKED = { 'uid', 'gid', 'groups', 'nice', 'cpus' }

--- What core.spawn takes of it.
function M.fields(plan)
    return {
        uid = plan.uid, gid = plan.gid, groups = plan.groups, umask = plan.umask, limits = plan.limits,
        nice = plan.nice, cpus = plan.cpus, die_with_master = plan.die_with_master,
    }
end

-- All that matters, as text: it is asked once for the same.
local function wishes(plan)
    local parts = {}
    for i, name in ipairs(ASKED) do
        local value = plan[name]
        parts[i] = type(value) == 'table' and table.concat(value, ',') or tostring(value)
    end
    for _, limit in ipairs(plan.limits or {}) do
        parts[#parts + 1] = ('%s %s %s'):format(limit.name, tostring(limit.soft), tostring(limit.hard))
    end
    return table.concat(parts, ' ')
end

local NO_WISHES = wishes {}

local function say(platform, plan, failed, at)
    local step = STEPS[failed.step]
    local place
    for _, option in ipairs(step and step.options or {}) do
        place = place or plan[option] ~= nil and at:key(option) or nil
    end
    place = place or at:key(step and step.options[1] or failed.step)
    place = failed.path and place:key(failed.path) or place
    local user = platform.getuser(platform.uid())
    place:say(('%s may not set it for the workers: %s%s'):format(user and user.name or 'user ' .. platform.uid(),
        failed.message:match ': ([^:]*)$' or failed.message,
        step and (platform.uid() ~= 0 or failed.step == 'affinity') and ': ' .. step.who or ''))
end

--- @return function(plan, at): says at its place what may not be set
function M.new(platform)
    local allowed = NO_WISHES
    return function(plan, at)
        local wished = wishes(plan)
        if wished == NO_WISHES or wished == allowed then
            return
        end
        local fields = M.fields(plan)
        fields.file, fields.argv = 'true', { 'true' }
        local ok, failed = platform.rehearse(fields)
        if not ok then
            return say(platform, plan, failed, at)
        end
        allowed = wished
    end
end

return M
