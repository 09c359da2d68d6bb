--- once.lua: one evaluation of a script, without a master: for `check`.

local Lane = require 'dutch-master.script.lane'
local machine = require 'dutch-master.machine'
local script = require 'dutch-master.script.session'

local M = {}

-- What a script is told while it is evaluated: there is no cluster, and a store that nobody keeps.
local function new_answers()
    local store = {}
    local answers = {
        workers = function() return {} end,
        store_get = function(key) return store[key] end,
        store_set = function(key, value) store[key] = value end,
        store_all = function() return store end,
        log = function() end,
    }
    return function(name, _, ...)
        if answers[name] then
            return answers[name](...)
        end
        return nil, 'the cluster has not started'
    end
end

--- Evaluates the script and asks for the number of workers.
-- @param options {platform, path, name}
-- @param done function(plan, num_workers) or function(nil, err), later or at once
function M.evaluate(options, done)
    local platform = options.platform
    local function broken(message)
        done(nil, { kind = 'system', message = message, messages = { message } })
    end
    local agenda = machine.agenda {
        timer = platform.timer,
        on_error = broken,
        on_bug = function(object, event)
            broken(('%s: %s in state %s'):format(object.machine.name, event, object.state))
        end,
    }
    local subject = script.new(options)
    local lane = Lane.new { platform = platform, agenda = agenda, most = 1,
        process = { script = options.path, ask = new_answers() } }
    local function finish(...)
        lane:close()
        done(...)
    end
    lane:add {
        start = function(process)
            subject:load(process, nil, function(session, ...)
                finish(session and session.plan, ...)
            end)
        end,
        failed = function(err)
            finish(nil, subject:failure(err))
        end,
    }
end

return M
