-- Masters over a Node app, for the e2e specs: the parts of master.lua that all of them have.
local http = require 'spec.support.http'
local master = require 'spec.support.master'

local M = {}

-- Answers after 0 to 50 ms, says who it is.
M.http = [[
    const http = require('http')
    const server = http.createServer((request, response) => {
        const ms = new URL(request.url, 'http://x').searchParams.get('ms') || Math.random() * 50
        setTimeout(() => response.end(`${process.env.DUTCH_MASTER_GENERATION} ${process.pid}`), Number(ms))
    })
    server.listen(Number(process.env.PORT))
]]

local function quoted(first, more)
    local words = { ('%q'):format(first) }
    for i, word in ipairs(more or {}) do
        words[i + 1] = ('%q'):format(word)
    end
    return table.concat(words, ', ')
end

--- Starts a master. options: binary (of node), flags (for it, a list), app (source of app.js) or files, worker (default
--- app.js), plan (further lines of the plan, Lua text), env {NAME = value} for the workers, modules (a node_modules
--- directory), workers (2), ready = false: does not wait for 'Cluster ready', and what master.start takes.
-- @return the master, its port
function M.start(options)
    local port = options.port or http.free_port()
    local env = { ('PORT = "%d"'):format(port) }
    for name, value in pairs(options.env or {}) do
        env[#env + 1] = ('%s = %q'):format(name, value)
    end
    local files = options.files or {}
    if options.app then
        files['app.js'] = options.app
    end
    local plan = options.plan or ''
    if not plan:find 'restartSoak' then
        plan = plan .. ' restartSoak = 0.1,' -- the second of the default is a second for each roll
    end
    local script = ([[
        local dutch = require 'dutch-master'
        dutch.start {
            worker = '%s',
            interpreter = { %s },
            numWorkers = %d,
            workerEnvironment = { %s },
            %s
        }
    ]]):format(options.worker or 'app.js', quoted(options.binary, options.flags), options.workers or 2, table.concat(env, ', '),
        plan)
    local m = master.start {
        script = script, files = files, env = options.master_env, wrap = options.wrap,
    }
    if options.modules then
        assert(require('luv').fs_symlink(options.modules, m:path 'node_modules'))
    end
    if options.ready ~= false then
        m:await 'Cluster ready'
    end
    return m, port
end

--- How many seconds a Node has to be given here: five times what the slowest start of a worker of this master took, from
-- its fork to its readiness; at least so many.
function M.time_to_start(m, seconds)
    local forked = {}
    for _, record in ipairs(m.log) do
        if record.msg == 'Creating new worker' then
            forked[record.workerId] = record.arrived
        elseif record.msg == 'Worker listening' then
            seconds = math.max(seconds, 5 * (record.arrived - forked[record.workerId]) / 1e9)
        end
    end
    return ('%.1f'):format(seconds)
end

--- One roll, by signal, awaited.
function M.roll(m)
    local mark = m:mark()
    m:signal 'SIGUSR2'
    return m:await('Restart complete', { after = mark, timeout = 30000 })
end

return M
