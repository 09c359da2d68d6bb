--- fake_sockets.lua: the listeners of a cluster over a network of tables, for the specs of sockets.lua.

local Doubts = require 'dutch-master.listen.doubts'
local Hand = require 'dutch-master.listen.hand'
local Platform = require 'spec.support.fake_platform'
local Sockets = require 'dutch-master.listen.sockets'
local fake_network = require 'spec.support.fake_network'

local M = { A = '127.0.0.1:80' }

--- What sockets are made with, as a master would: `given`, and of the rest what is usual.
function M.options(given)
    local options = { want = 2, balance = 'steered', backlog = 511, stall_timeout_ms = 1000, lost_after_ms = 30000,
        inherited = {}, worker_of = function() end,
        stalled = function() end, spoilt = function() end, awaits_workers = function() return true end }
    for key, value in pairs(given or {}) do
        options[key] = value
    end
    return options
end

--- What all listeners share, for what is made without sockets.lua. fate: see Cluster:fate
function M.hands(platform, log, fate)
    local hand = Hand.new { platform = platform }
    return hand, Doubts.new { platform = platform, log = log, hand = hand, keep_ms = 30000,
        fate = fate or function() return 'free' end }
end

--- @return {platform, network, log, records = what was logged, rescued = connections that workers were given, rescue =
-- what takes them, idle = worker id -> whether it sleeps; functions: new(options) -> sockets, and those below}
function M.new()
    local world = { platform = Platform.new(), records = {}, rescued = {}, idle = {} }
    world.network = fake_network.add(world.platform)
    world.log = setmetatable({}, {
        __index = function(_, level)
            return function(_, fields, message)
                world.records[#world.records + 1] = { level = level, fields = fields, message = message }
            end
        end,
    })
    function world.rescue(fd, done, worker)
        world.rescued[#world.rescued + 1] = { fd = fd, worker = worker }
        done(true)
        return true
    end
    function world.new(options)
        options = M.options(options)
        options.platform, options.log = world.platform, world.log
        options.rescue = function(...)
            return world.rescue(...)
        end
        options.idle = function(id)
            return world.idle[id]
        end
        world.sockets = Sockets.new(options)
        return world.sockets
    end
    --- Closes them. Nothing may be left.
    function world.finish()
        world.sockets:close()
        assert(not next(world.network.open), 'a listener stayed open')
        assert(not next(world.platform.timers), 'a timer stayed open')
        assert(not next(world.platform.store), 'a copy of a connection stayed with the keeper')
    end

    function world.logged(message)
        local count = 0
        for _, record in ipairs(world.records) do
            count = count + (record.message == message and 1 or 0)
        end
        return count
    end

    --- The worker ids whose lanes get new connections of a listener.
    function world.rotation(text)
        local ids = {}
        for _, listener in ipairs(world.sockets:snapshot().listeners) do
            if listener.address == (text or M.A) then
                for _, lane in ipairs(listener.lanes) do
                    if lane.steered then
                        ids[#ids + 1] = lane.worker or lane.state
                    end
                end
            end
        end
        table.sort(ids)
        return ids
    end

    function world.request(text, fields)
        local port = tonumber(text:match ':(%d+)$')
        local made = { name = text, text = text, type = 'tcp4', stream = true, port = port, index = 0 }
        for key, value in pairs(fields or {}) do
            made[key] = value
        end
        return made
    end

    function world.query(id, text, fields)
        local answer = {}
        world.sockets:query(id, world.request(text, fields), function(...)
            answer = { ... }
        end)
        return unpack(answer, 1, 3)
    end

    --- Workers without a channel.
    function world.serving(...)
        for _, id in ipairs { ... } do
            assert(world.sockets:take(id))
            world.sockets:join(id)
        end
    end

    --- Workers with one.
    function world.asking(...)
        for _, id in ipairs { ... } do
            assert(world.query(id, M.A))
            world.sockets:join(id)
        end
    end
    return world
end

return M
