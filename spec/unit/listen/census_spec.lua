local Census = require 'dutch-master.listen.census'

describe('census', function()
    local census, others, records, lanes, holds, asked, looks

    before_each(function()
        others, records, lanes, holds, asked, looks = {}, {}, {}, {}, {}, 0
        census = Census.new {
            address = ':80', lanes = lanes,
            platform = { holders = function(inodes)
                local list = {}
                for i, inode in ipairs(inodes) do
                    list[i] = { pid = inode, group = inode == 12 and 700 or 1, name = 'nginx' }
                end
                return list
            end },
            log = setmetatable({}, { __index = function(_, level)
                return function(_, fields, message)
                    records[#records + 1] = { level = level, msg = message, fields = fields }
                end
            end }),
            listener = { strangers = function()
                looks = looks + 1
                return others, #others
            end },
            worker_of = function(group) return group == 700 and 3 or nil end,
            holds = function(id, fd)
                asked[#asked + 1] = id
                assert.equal(30 + id, fd)
                return holds[id]
            end,
        }
    end)

    -- A lane with one worker that serves and has no channel.
    local function lane(id, stuck)
        lanes[#lanes + 1] = { fd = 30 + id, silent_users = function() return { id } end,
            is_stuck = function() return stuck end }
        holds[id] = true
        return lanes[#lanes]
    end

    it('names strangers once, with their processes and the worker among them, and says when they are gone', function()
        census:look(0)
        assert.equal(0, #records)
        others = { 11, 12 }
        census:look(500) -- too early
        assert.equal(0, #records)
        census:look(1000)
        assert.equal('warn', records[1].level)
        assert.equal('Others have opened sockets at this address', records[1].msg)
        assert.same({ 'nginx (pid 11)', 'nginx (pid 12)' }, records[1].fields.processes)
        assert.same({ ':80', 2, 3 }, { records[1].fields.address, records[1].fields.sockets, records[1].fields.workerId })
        assert.truthy(records[1].fields.hint)
        assert.equal(2, census.count)
        census:look(2000)
        others = { 12 }
        census:look(3000)
        assert.equal(1, #records)
        others = { 12, 13 }
        census:look(4000)
        assert.same({ 'nginx (pid 13)' }, records[2].fields.processes)
        others = {}
        census:look(5000)
        assert.equal('Nobody else has sockets at this address any more', records[3].msg)
        assert.equal(0, census.count)
    end)

    it('looks when a worker is ready or gone, and soon after if it has just looked', function()
        census:look(0)
        census:count_now(300)
        assert.equal(2, looks)
        census:count_now(310)
        assert.equal(2, looks)
        census:look(350)
        census:look(400)
        assert.equal(3, looks)
    end)

    it('looks at once when a lane comes into use, or where there are strangers', function()
        census:look(0)
        census:count_now(1, true)
        assert.equal(2, looks)
        others = { 11 }
        census:count_now(2, true)
        census:count_now(3)
        assert.equal(4, looks)
    end)

    it('says nothing where the kernel does not tell', function()
        census.listener.strangers = function() return nil, 'not permitted', 'EACCES' end
        census:look(0)
        assert.equal(0, #records)
    end)

    it('knows of a worker from the moment it serves, so that it may let go of its socket at once', function()
        local one = lane(1, true)
        census:meet(1, one)
        census:meet(2, one) -- of another lane
        assert.same({ 1 }, asked)
        holds[1] = false
        assert.equal(1, census:look(10000))
        local hidden = lane(3, true)
        holds[3] = nil
        census:meet(3, hidden)
        holds[3] = false
        lanes[1] = nil
        lanes[1], lanes[2] = hidden, nil
        assert.is_nil(census:look(20000))
    end)

    it('finds a worker that has let go of its socket, one look at a time', function()
        lane(1)
        lane(2)
        assert.is_nil(census:look(0))
        assert.is_nil(census:look(350))
        assert.same({ 1, 2 }, asked) -- each when it is seen first
        holds[2] = false
        assert.is_nil(census:look(1000)) -- nothing waits: there is time
        assert.equal(2, #asked)
        local found = census:look(5000) or census:look(10000)
        assert.equal(2, found)
    end)

    it('looks soon where connections wait', function()
        lane(1, true)
        census:look(0)
        holds[1] = false
        assert.is_nil(census:look(900))
        assert.equal(1, census:look(1000))
    end)

    it('does not judge what it never saw, or cannot see', function()
        lane(1, true)
        lane(2, true)
        holds[1], holds[2] = nil, false -- of another user; in a process of its own
        for now = 0, 20000, 1000 do
            assert.is_nil(census:look(now))
        end
        holds[1], holds[2] = false, false
        for now = 21000, 30000, 1000 do
            assert.is_nil(census:look(now))
        end
    end)

    it('forgets who is gone', function()
        lane(1, true)
        census:look(0)
        lanes[1] = nil
        census:look(1000)
        lane(1, true)
        holds[1] = false -- another worker, as far as is known
        assert.is_nil(census:look(2000))
    end)
end)
