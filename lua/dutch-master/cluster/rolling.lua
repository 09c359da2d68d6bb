--- rolling.lua: what a rolling restart (roll.lua) is to the cluster: how one begins, gives way to a later one, is
-- aborted, rolled back and ended.
--
-- Its functions act on a cluster as those of cluster.lua do: on its generation and its slots, by their events. The
-- generation of an aborted roll is given up; a roll back has a generation of its own, pinned to the old release.

local Roll = require 'dutch-master.cluster.roll'

local M = {}

--- Answers a request for a restart that does not come about.
-- @param result of the verdict
function M.refuse(cluster, request, message, result)
    if request.on_verdict then
        request.on_verdict({ result = result, generation = cluster.generation, total = #cluster.slots, done = 0,
            duration_ms = 0, message = message })
    end
end

local function batch_size(plan, count)
    local wish = plan.restart_concurrency
    if type(wish) == 'table' then
        wish = wish.after
    end
    if type(wish) ~= 'number' then
        return count
    elseif wish < 1 then
        return math.max(math.floor(wish * count), 1)
    end
    return math.min(wish, count)
end

local function end_of_roll(cluster, verdict)
    cluster.roll = nil
    local fields = { generation = verdict.generation, duration = verdict.duration_ms / 1000 }
    if verdict.result == 'done' then
        cluster.log:info(fields, 'Restart complete')
    elseif verdict.result == 'superseded' then
        cluster.log:info(fields, 'Restart superseded by a later one')
    elseif verdict.result ~= 'stopped' then
        local failure = verdict.failure or {}
        fields.reason, fields.slot, fields.failedWorkerId = verdict.message, failure.slot, failure.worker
        fields.code, fields.signal, fields.stderr = failure.code, failure.signal, failure.stderr
        fields.replaced = verdict.done > 0 and verdict.done or nil
        cluster.log:error(fields, verdict.result == 'rolled_back' and 'Restart rolled back, the old release serves'
            or verdict.done > 0 and 'Restart aborted, two releases serve' or 'Restart aborted, the old workers stay')
    end
    cluster.last_verdict = verdict
    cluster.launcher:hook('onRestart', verdict)
    if not cluster.superseding then
        cluster.agenda:post(cluster, 'rolled')
    end
end

-- Of this roll, or of one that it superseded, and not of a way back.
local function is_newer(cluster, generation, roll)
    return generation > roll.previous and not cluster.launcher:leads_back(generation, roll.previous)
end

-- One that was added during the roll, or has lost its worker: it would try the failed release for ever.
local function is_unserved(cluster, slot, roll)
    return not slot.current and is_newer(cluster, slot.generation, roll)
end

local function abort(cluster, roll)
    cluster.generation = roll.previous
    cluster.launcher:pin(roll.previous)
    for _, slot in ipairs(cluster.slots) do
        if roll.active[slot] or is_unserved(cluster, slot, roll) then
            cluster.agenda:post(slot, 'cancel', roll.previous)
        end
    end
end

-- What every roll of this cluster needs, besides its own `fields`: generation, slots, size, ...
local function new_roll(cluster, fields)
    fields.attempts = cluster.launcher.plan.restart_attempts
    fields.platform, fields.agenda, fields.log = cluster.platform, cluster.agenda, cluster.log
    function fields.judge(new, old)
        return cluster.launcher:judge(new, old)
    end
    function fields.weigh(worker, weight)
        cluster.sockets:weigh(worker.id, weight)
    end
    function fields.room(n)
        return cluster.process_count + n <= #cluster.slots + fields.size
    end
    function fields.on_abort(roll)
        abort(cluster, roll)
    end
    cluster.newest = fields.generation
    cluster.roll = Roll.new(fields)
    return cluster.roll
end

-- The slots that an aborted roll, or one that it superseded, had replaced go back to the release that the others run.
local function roll_back(cluster, roll)
    local release = cluster.launcher:release_of(roll.previous)
    local generation, slots, differs = cluster.newest + 1, {}, false
    for _, slot in ipairs(cluster.slots) do
        if is_unserved(cluster, slot, roll) then -- since the abort: the verdict may have waited for an exit
            cluster.agenda:post(slot, 'cancel', roll.previous)
        elseif slot.current and is_newer(cluster, slot.current.generation, roll) then
            slots[#slots + 1] = slot
            differs = differs or slot.current.release ~= release
        end
    end
    roll.done = #slots
    if not release or not differs then
        return false
    end
    cluster.launcher:lead_back(generation, roll.previous)
    cluster.log:warn({ generation = generation, slots = roll.done, release = release }, 'Rolling back')
    local back = new_roll(cluster, {
        generation = generation, previous = roll.previous, slots = slots, size = roll.size, rolls_back = true,
        roll_back = function()
            return false
        end,
        on_end = function() end, -- what is to be said at its end, the aborted roll says
    })
    back:add {
        on_progress = function(state)
            state.back = true
            roll:report(state)
        end,
        on_verdict = function(verdict)
            roll:returned(verdict)
        end,
    }
    back:advance()
    cluster:changed()
    return true
end

local function forget_releases(cluster)
    local used = { [cluster.generation] = true, [cluster.roll.previous] = true }
    for _, slot in ipairs(cluster.slots) do
        used[slot.generation] = true
        if slot.current then -- one that an abort kept may be older, or of a way back
            used[slot.current.generation] = true
        end
    end
    cluster.launcher:forget_releases(used)
end

-- The roll under way gives way to a later one. @return the generation that was served before it
local function supersede(cluster)
    local previous = cluster.roll.previous
    cluster.superseding = true
    cluster.roll:finish('superseded', 'a later restart was requested')
    cluster.superseding = false
    return previous
end

--- Begins a roll: the action of the cluster's event `restart`.
-- @param request see Cluster:restart
-- @return 'rolling', or nil when the script or what it asks for is bad
function M.begin(cluster, request)
    cluster.log:info({ signal = request.signal, cause = request.cause, by = request.who, reason = request.reason },
        'Restart requested')
    local loaded, err = cluster.launcher:load()
    local message = err and err.message
    if loaded then
        local ok, why = cluster:adopt(loaded)
        if not ok then
            loaded, message = nil, why
        end
    end
    if not loaded then
        cluster.log:error({ reason = message }, 'Restart aborted, the old workers stay')
        M.refuse(cluster, request, message, 'aborted')
        return nil
    end
    local previous = cluster.roll and supersede(cluster) or cluster.generation
    cluster.generation = cluster.newest + 1
    local wish = loaded.plan.restart_concurrency
    new_roll(cluster, {
        generation = cluster.generation, previous = previous, slots = cluster.slots,
        size = batch_size(loaded.plan, #cluster.slots), canary = type(wish) == 'table' and wish.canary or nil,
        roll_back = function(roll)
            return roll_back(cluster, roll)
        end,
        on_end = function(_, verdict)
            end_of_roll(cluster, verdict)
        end,
    })
    forget_releases(cluster)
    cluster.roll:add(request)
    cluster.roll:advance()
    cluster:changed()
    return 'rolling'
end

return M
