--- snapshot.lua: the cluster as plain values, for those who look at it. Reads, changes nothing.

local M = {}

-- How long the present phase may take until its next step, by the workers' own deadlines, in ms.
local function patience(cluster)
    local plan = cluster.launcher.plan
    if cluster.state == 'stopping' then
        return plan.stop_timeout_ms
    end
    local attempts, pause = plan.restart_attempts, plan.backoff
    local concurrency = plan.restart_concurrency
    local canary = type(concurrency) == 'table' and concurrency.canary and concurrency.canary.soak_ms or 0
    return attempts * plan.ready_timeout_ms + math.min(pause.first_ms * 2 ^ attempts, pause.max_ms * attempts)
        + plan.restart_soak_ms + canary + plan.stop_timeout_ms
end

-- How long the workers may still take by what they have asked for, in ms. In `steady` nobody waits for them.
local function asked(cluster)
    local longest, now = 0, cluster.platform.now()
    if cluster.state == 'steady' then
        return longest
    end
    for _, worker in pairs(cluster.workers) do
        longest = math.max(longest, (worker:due() or now) - now)
    end
    return longest
end

--- How many of these slots somebody serves.
function M.serving(slots)
    local count = 0
    for _, slot in ipairs(slots) do
        count = count + (slot.current and 1 or 0)
    end
    return count
end

--- What the service manager hears at every change, made at no cost: see systemd.lua.
function M.summary(cluster)
    return {
        state = cluster.state, generation = cluster.generation, wanted = cluster.wanted,
        serving = M.serving(cluster.slots),
        failure = cluster.failure, processes = cluster.process_count, last_verdict = cluster.last_verdict,
        restarts = cluster.newest, patience_ms = patience(cluster), asked_ms = asked(cluster),
        roll = cluster.restarting and cluster.restarting.walk,
    }
end

local function of_worker(cluster, worker, queue)
    local slot = cluster:slot_of(worker)
    local usage, said = cluster.platform.proc_stat(worker.pid) or {}, worker.health.said
    return {
        id = worker.id, slot = worker.slot, pid = worker.pid, state = worker.state, generation = worker.generation,
        release = worker.release, uptime_ms = cluster.platform.now() - worker.forked_at,
        ready = worker.ready_at ~= nil, restarts = slot and slot.forks - 1, rss_kb = usage.rss_kb,
        cpu_ms = usage.cpu_ms, queue = queue.queue, steered = queue.steered, status = said.status,
        reloading = said.reloading, stopping = said.stopping, main_pid = said.main_pid,
        measured = worker.measured,
    }
end

local function of_slot(cluster, slot)
    local waits = not slot.incoming and slot.state ~= 'serving' and slot.state ~= 'proving'
    return { slot = slot.number, state = slot.state, failures = slot.failures, restarts = slot.forks - 1,
        preparing = slot.incoming and slot.incoming.state == 'preparing' or nil,
        backoff_ms = waits and math.max(slot.fork_at - cluster.platform.now(), 0) or nil }
end

local function of_slots(cluster)
    local slots = {}
    for i, slot in ipairs(cluster.slots) do
        slots[i] = of_slot(cluster, slot)
    end
    return slots
end

-- Reports of exits (see exit_report.lua), oldest first.
local function exits_of(cluster, id)
    local found = {}
    for _, report in ipairs(cluster.reports) do
        if id == nil or report.worker == id then
            found[#found + 1] = report
        end
    end
    return found
end

--- What `why` needs: of the worker `id`, or of all.
function M.why(cluster, id)
    local worker = cluster.workers[id]
    return {
        exits = exits_of(cluster, id), slots = of_slots(cluster), state = cluster.state,
        alive = worker and of_worker(cluster, worker, cluster.sockets:snapshot()[id] or {}) or nil,
        verdict = cluster.last_verdict, request = cluster.last_request, lost_master = cluster.lost_master,
    }
end

-- How long callbacks held the master's loop.
local function held(platform)
    if not platform.held then
        return nil
    end
    local calls, seconds, longest = platform.held()
    return { calls = calls, seconds = seconds, longest = longest }
end

--- What `status` shows.
function M.full(cluster)
    local platform = cluster.platform
    local pid, master_pid = platform.pid(), platform.master_pid and platform.master_pid() or nil
    local now, own = platform.now(), platform.proc_stat(master_pid or pid) or {}
    local queues = cluster.sockets:snapshot()
    local workers, roll = {}, cluster.restarting and cluster.restarting.walk
    for _, worker in pairs(cluster.workers) do
        workers[#workers + 1] = of_worker(cluster, worker, queues[worker.id] or {})
    end
    table.sort(workers, function(a, b)
        return a.slot < b.slot or a.slot == b.slot and a.id < b.id
    end)
    return {
        script = cluster.script, pid = pid, master_pid = master_pid, version = platform.version, state = cluster.state,
        image = platform.executable and platform.executable(),
        generation = cluster.generation, wanted = cluster.wanted, uptime_ms = now - cluster.started_at,
        rss_kb = own.rss_kb, cpu_ms = own.cpu_ms, workers = workers, slots = of_slots(cluster),
        totals = cluster.totals:snapshot(), sockets = queues.totals, unserved = queues.unserved,
        strangers = queues.strangers, held = held(platform),
        hooks = cluster.launcher and cluster.launcher.hooks and cluster.launcher.hooks.totals,
        last_verdict = cluster.last_verdict, last_request = cluster.last_request, balance = queues.balance,
        roll = roll and { generation = roll.generation, total = roll.total, done = roll.done,
            back = roll.back, elapsed_ms = now - roll.started_at } or nil,
    }
end

return M
