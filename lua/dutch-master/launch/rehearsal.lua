--- rehearsal.lua: whether this user may give workers what the plan asks for: another user, limits, priority, CPUs. What
-- may not be set is found out before anything is forked, and named by its option, instead of failing fork after fork.

local M = {}

-- The step of a start that failed -> the options that it comes from, the first of them that the plan has.
local OPTIONS = {
    nice = { 'nice' }, affinity = { 'cpus' }, limits = { 'limits' }, groups = { 'user', 'group' },
    gid = { 'group', 'user' }, uid = { 'user' },
}

--- What core.spawn takes of it.
function M.fields(plan)
    return {
        uid = plan.uid, gid = plan.gid, groups = plan.groups, umask = plan.umask, limits = plan.limits,
        nice = plan.nice, cpus = plan.cpus, die_with_master = plan.die_with_master,
    }
end

local function asks_for_any(plan)
    return (plan.uid or plan.gid or plan.groups or plan.nice or plan.cpus) ~= nil or next(plan.limits or {}) ~= nil
end

--- @return true, or nil, message that begins with the option's name
function M.check(platform, plan)
    if not asks_for_any(plan) then
        return true
    end
    local fields = M.fields(plan)
    fields.file, fields.argv = 'true', { 'true' }
    local ok, failed = platform.rehearse(fields)
    if ok then
        return true
    end
    local name = failed.step
    for _, option in ipairs(OPTIONS[failed.step] or {}) do
        if plan[option] ~= nil then
            name = option
            break
        end
    end
    local me = platform.getuser(platform.uid())
    return nil, ('%s%s: %s may not set it for the workers: %s'):format(name, failed.path and '.' .. failed.path or '',
        me and me.name or 'user ' .. platform.uid(), failed.message:match ': ([^:]*)$' or failed.message)
end

return M
