-- What a master remembers is bounded, whatever happens and however often: each of these is flooded, and what can be
-- reached afterwards is no more than what could be reached before. (Memory: SECURITY.md, "floods")

local conversation = require 'dutch-master.channel.conversation'
local fake = require 'spec.support.fake_cluster'
local Recent = require 'dutch-master.log.recent'
local store = require 'dutch-master.script.api'

-- Tables that can be reached, and bytes of text in them.
local function size_of(root, without)
    local seen, list, bytes = {}, { root }, 0
    for _, known in ipairs(without or {}) do
        seen[known] = true
    end
    seen[root] = true
    local function look(value)
        if type(value) == 'string' then
            bytes = bytes + #value
        elseif type(value) == 'table' and not seen[value] then
            seen[value] = true
            list[#list + 1] = value
        end
    end
    local i = 1
    while list[i] do
        for key, value in pairs(list[i]) do
            look(key)
            look(value)
        end
        i = i + 1
    end
    return #list, bytes
end

describe('what is remembered is bounded:', function()
    it('exits, verdicts, workers, slots and restarts of a cluster', function()
        local kind = 1
        local behaviours = {
            { ready_ms = 10, exit_ms = 5, closes_first = true }, -- a good release
            { crash_ms = 5 }, -- one that ends at once
        }
        local world = fake.new { plan = fake.plan { num_workers = 3 }, behaviour = function()
            return behaviours[kind]
        end }
        world.boot()
        assert.is_true(world.await 'steady')
        local verdicts = 0
        local function cycle(n)
            kind = n % 5 == 0 and 2 or 1
            world.cluster:restart { cause = 'signal', signal = 'SIGUSR2', on_verdict = function()
                verdicts = verdicts + 1
            end }
            if n % 3 == 0 then
                world.platform:live_children()[1]:exit { signal = 'SIGKILL' }
            end
            world.platform:advance(30000)
            kind = 1
            world.platform:advance(30000)
            for list in pairs { [world.records] = true, [world.transitions] = true } do
                for i = #list, 1, -1 do
                    list[i] = nil
                end
            end
        end
        local function size()
            return size_of(world.cluster, { world.platform, world.log, world.agenda, world.records, world.transitions, world })
        end
        for n = 1, 60 do
            cycle(n)
        end
        local tables, bytes = size()
        for n = 61, 200 do
            cycle(n)
        end
        local tables_later, bytes_later = size()
        assert.is_true(verdicts >= 180, verdicts)
        assert.is_true(tables_later <= tables * 1.05, ('%d tables, %d later'):format(tables, tables_later))
        assert.is_true(bytes_later <= bytes * 1.05, ('%d bytes, %d later'):format(bytes, bytes_later))
        assert.equal(100, #world.cluster.reports)
        assert.same({}, world.bugs)
    end)

    it('records', function()
        local recent = Recent.new()
        for i = 1, 20000 do
            recent:push(('x'):rep(i % 7000), i % 2 == 0)
        end
        local tables, bytes = size_of(recent)
        assert.is_true(tables < 10 and bytes <= 2 * 1024 * 1024 + 14000, bytes)
    end)

    it('what the script keeps, by whatever keys', function()
        local call = store.new { platform = { touch = function() end } }
        local kept, refused = 0, nil
        for i = 1, 40000 do
            local ok, err = pcall(call, 'store_set', {}, 'key' .. i, ('x'):rep(10))
            kept = kept + (ok and 1 or 0)
            refused = refused or not ok and err
            if refused then
                break
            end
        end
        assert.is_true(kept > 1000 and kept < 40000, kept)
        assert.matches('the store would hold', refused)
    end)

    it('what a worker asks for, and the addresses of which session keys are remembered', function()
        local tickets, ended = conversation.tickets(), nil
        local talk = conversation.new {
            worker_id = 1, tickets = tickets,
            channel = { send = function() return true end },
            query = function(_, reply) reply(7) end,
            on_bad = function(reason) ended = reason end,
        }
        for i = 1, 5000 do
            talk:line(('{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"seq":%d,"address":"127.0.0.1","port":%d,'
                .. '"addressType":4,"data":{"ticketKeys":"%s"}}'):format(i, 10000 + i, ('k'):rep(64)))
        end
        assert.matches('more than 1024 sockets', ended)
        local count = select(1, size_of(tickets))
        assert.is_true(count <= 300, count)
    end)
end)
