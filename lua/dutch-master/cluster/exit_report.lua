--- exit_report.lua: how a worker ended, for the log, `why`, verdicts and onWorkerExit.

local addresses = require 'dutch-master.addresses'
local advice = require 'dutch-master.script.advice'

local M = {}

-- Which part of a start failed, by the step that core.spawn names.
local STEPS = {
    chdir = 'its directory',
    script = 'the worker',
    exec = 'the program',
    interpreter = 'the interpreter named in its #! line',
}

-- A program that is not there, and what its author may have meant.
local function not_found(path, search_path)
    local name = path:match '[^/]*$'
    if path:find '%s' then
        return ('%s: no such program; a command with arguments is a list: %s'):format(path, advice.as_list(path))
    elseif search_path and ((':' .. search_path .. ':'):find(':' .. path:sub(1, -#name - 2) .. ':', 1, true)
        or name == path) then
        return ('%s: not found in PATH (%s)%s'):format(name, search_path, name:find '%.%w+$'
            and (" (a file of the worker's directory is written './%s', and must be executable)"):format(name) or '')
    end
    return ('the program: %s: no such file or directory'):format(path)
end

--- "1 time", "3 times".
function M.times(count)
    return ('%d time%s'):format(count, count == 1 and '' or 's')
end

--- The reason of a start that failed, in words: "its directory: /deploys/x: no such file or directory".
-- @param failed {step, code, path, message = 'step: ...'} of core.spawn's status
-- @param worker {search_path: where a program without a slash was looked for; release: its directory}, as far as they
--   are known
function M.start_failure(failed, worker)
    local step, words = failed.message:match '^(%w+): (.*)$'
    if step ~= failed.step then
        words = failed.message
    end
    if failed.step == 'exec' and failed.code == 'ENOENT' and failed.path then
        return not_found(failed.path, worker.search_path)
    elseif failed.step == 'script' and failed.path and failed.path:sub(1, 1) ~= '/' and worker.release then
        words = ('%s (in %s)'):format(words, worker.release)
    end
    return ('%s: %s'):format(STEPS[failed.step] or failed.step, words)
end

-- Node's own words when the descriptor that NODE_CHANNEL_FD names is not there.
local function lost_its_channel(worker)
    local tail = worker.conversation and not worker.conversation.booted and worker.child:tail() or ''
    return tail:find('initializeClusterIPC', 1, true) or tail:find('setupChildProcessIpcChannel', 1, true)
end

-- In the words of the C library, Node, Python, Django, Flask, thin.
local IN_USE = { 'address already in use', 'address in use', 'eaddrinuse', 'errno 98', 'port is already in use',
    'port is in use', 'is in use by another program' }

local function is_in_use(line)
    local lower = line:lower()
    for _, sign in ipairs(IN_USE) do
        if lower:find(sign, 1, true) then
            return true
        end
    end
    return false
end

-- The line of its last words in which it was refused a port that the master holds for it: 0.0.0.0:80 beside :80.
-- @return the address as the worker has it, and as `listen` has it; or nil
local function refused_by_us(worker)
    local tail = worker.child and worker.child:tail() or ''
    for line in tail:gmatch '[^\n]+' do
        if is_in_use(line) then
            for _, entry in ipairs(worker.plan and worker.plan.listen or {}) do
                local port = addresses.tcp_port(entry)
                local place = port and (line:match('([%w_.:%[%]*-]*:' .. port .. ')%f[%D]') or
                    line:find('%f[%d]' .. port .. '%f[%D]') and 'port ' .. port)
                if place then
                    return place, entry.text
                end
            end
        end
    end
end

local OPENS_ITSELF = {
    exec = 'it opens its address itself, and that is taken: of several workers one gets it. If the program can take an'
        .. ' open socket, write the address in listen; if not, only numWorkers = 1 works, with a gap in each restart',
    node = 'it opens its address without the master, and that is taken: by listen({ exclusive: true }), or since a'
        .. ' launcher in front of the app (npx, nodemon, tsx) keeps the channel to itself; for tsx,'
        .. " interpreter = { 'node', '--import', 'tsx' }",
}

-- Whether it is ready without having shown that it serves.
local function only_lived(worker)
    local plan = worker.plan
    local rule = plan and plan.kind == 'exec' and plan.ready and plan.ready.type
    return (rule == 'auto' or rule == 'alive') and not addresses.has_tcp(plan.listen)
end

-- A worker that could not open an address, which it did not ask the master for.
local function opens_itself(worker)
    local kind = worker.plan and worker.plan.kind
    if not (kind == 'node' and worker.listening) and is_in_use(worker.child and worker.child:tail() or '') then
        return OPENS_ITSELF[kind]
    end
end

--- What is known to be behind the end of a worker that has not served; nil if nothing is.
function M.cause(worker)
    if worker.ready_at then
        return only_lived(worker) and opens_itself(worker) or nil
    elseif lost_its_channel(worker) then
        return 'it lost its channel before its program could use it. Something in front of Node passes on descriptors 0'
            .. ' to 2 alone: start Node without it, or let it pass on descriptor 3'
    end
    if worker.refused then
        return 'a socket was refused to it: ' .. worker.refused
    end
    local theirs, ours = refused_by_us(worker)
    return theirs and ('it tried to open %s itself, but the master holds %s for it. The server takes the open socket'
        .. ' only when its own configuration names the same address: write one of the two in both places'):format(
        theirs, ours) or opens_itself(worker)
end

local function words(worker, status, oom)
    if status.failed then
        return 'could not be started: ' .. M.start_failure(status.failed, worker)
    elseif worker.leaving.late or worker.leaving.daemon then
        return worker.leaving.late or worker.leaving.daemon
    elseif oom then
        return 'was killed because memory ran out'
    elseif status.signal then
        return 'was killed by ' .. status.signal
    end
    local text, cause = 'exited with code ' .. tostring(status.code), M.cause(worker)
    return cause and ('%s: %s'):format(text, cause) or text
end

--- @param worker see worker.lua
-- @param status how its process ended: see core.spawn
-- @return a table of plain values; times in ms, `at` in seconds since the epoch
function M.new(worker, status)
    local platform = worker.platform
    local now, leaving = platform.now(), worker.leaving
    -- SIGKILL that was not ours: whether the kernel's count of such deaths in our cgroup rose. nil: it does not count.
    local count = status.signal == 'SIGKILL' and not leaving.killed and worker.oom_kills_before and platform.oom_kills()
    local oom
    if count then
        oom = count > worker.oom_kills_before
    end
    return {
        worker = worker.id, pid = worker.pid, slot = worker.slot, generation = worker.generation,
        release = worker.release, code = status.code, signal = status.signal, core = status.core,
        step = status.failed and status.failed.step, message = words(worker, status, oom), why = leaving.why, oom = oom,
        unexpected = not leaving.told, killed = leaving.killed or nil, was_ready = worker.ready_at ~= nil,
        age_ms = now - worker.forked_at, served_ms = worker.ready_at and now - worker.ready_at or 0,
        at = platform.wall(), stderr = worker.child:tail(), cpu_ms = (status.user_ms or 0) + (status.system_ms or 0),
        max_rss_kb = status.max_rss_kb,
    }
end

return M
