-- What of a master outlives it: that a snapshot never names what is not in the store, and what comes out of it again.

local books = require 'dutch-master.keeper.book'
local cjson = require 'cjson'
local State = require 'dutch-master.keeper.estate'

-- A keeper made of tables: what it was told, in order, and its store.
local function new_keeper()
    local keeper = { told = {}, store = {}, closed = {}, killed = {} }
    local function note(...)
        keeper.told[#keeper.told + 1] = table.concat({ ... }, ' ')
    end
    keeper.platform = {
        keep_fd = function(name, fd)
            if keeper.full then
                return nil, 'the store is full', keeper.full
            end
            note('put', name, fd)
            keeper.store[name] = fd
            return true
        end,
        pid = function()
            return 77
        end,
        drop_fd = function(name)
            note('drop', name)
            keeper.store[name] = nil
        end,
        keep = function(texts)
            note 'state'
            keeper.estate = books.text(texts)
            return true
        end,
        close_fd = function(fd)
            keeper.closed[#keeper.closed + 1] = fd
        end,
    }
    return keeper
end

local function new_writer(keeper, collect)
    keeper.errors = {}
    local log = {
        error = function(_, fields)
            table.insert(keeper.errors, fields.reason)
        end,
        info = function(_, text)
            table.insert(keeper.errors, text)
        end,
    }
    return State.writer { platform = keeper.platform, collect = collect, log = function() return log end }
end

describe('the state of a master', function()
    it('names a descriptor only when the keeper has it, and as long as it has', function()
        local keeper, fds = new_keeper(), { a = 5, b = 6 }
        local writer = new_writer(keeper, function(book)
            local kept = {}
            for _, name in ipairs { 'a', 'b', 'c' } do
                kept[#kept + 1] = book:fd(name, fds[name])
            end
            return { names = kept }
        end)
        writer:write()
        table.sort(keeper.told)
        assert.same({ 'put a 5', 'put b 6', 'state' }, keeper.told)
        keeper.told = {}
        writer:write()
        assert.same({ 'state' }, keeper.told)
        keeper.told = {}
        fds = { b = 7, c = 8 }
        writer:write()
        assert.equal('drop a', table.remove(keeper.told))
        assert.equal('state', table.remove(keeper.told))
        table.sort(keeper.told)
        assert.same({ 'put b 7', 'put c 8' }, keeper.told)
        assert.same({ b = 7, c = 8 }, keeper.store)
    end)

    it('stays what it was when the keeper refuses something, and says so once', function()
        local keeper, fd = new_keeper(), 5
        local writer = new_writer(keeper, function(book)
            return { name = book:fd('a' .. fd, fd) }
        end)
        writer:write()
        local before = keeper.estate
        fd, keeper.full = 6, 'ENOSPC'
        writer:write()
        writer:write()
        assert.equal(before, keeper.estate)
        assert.same({ a5 = 5 }, keeper.store)
        assert.same({ 'the store is full' }, keeper.errors)
        keeper.full = false
        writer:write()
        assert.same({ a6 = 6 }, keeper.store)
        assert.equal('State is kept again', keeper.errors[2])
    end)

    it('waits for a keeper that is busy without a word, and names one that does not move', function()
        local keeper = new_keeper()
        local writer = new_writer(keeper, function(book)
            return { name = book:fd('a', 5) }
        end)
        keeper.full = 'EAGAIN'
        assert.same({ nil, 'the store is full', 'EAGAIN' }, { writer:write() })
        assert.same({}, keeper.errors)
        keeper.full = 'ETIMEDOUT'
        writer:write()
        assert.same({ 'the keeper does not move: if somebody has stopped it, kill -CONT 77' }, keeper.errors)
        keeper.full = nil
        assert.is_true(writer:write())
        assert.same({ a = 5 }, keeper.store)
        assert.equal(2, #keeper.errors)
    end)

    it('comes back, with every value that is used twice once', function()
        local keeper = new_keeper()
        local plan = { worker = 'app.js', limit = math.huge, hooks = {}, text = 'a\0b\255' }
        local writer = new_writer(keeper, function(book)
            return { workers = { { plan = book:share(plan) }, { plan = book:share { worker = 'other.js' } },
                { plan = book:share(plan) } }, name = book:fd('lane/1', 9), none = book:fd('lane/2', nil) }
        end)
        writer:write()
        local former = State.read({ state = keeper.estate, store = { ['lane/1'] = 9, stray = 10, lanes = 11 } },
            keeper.platform)
        assert.same({ 'lane/1', 'lanes' }, former:unknown 'lane')
        local workers = former.state.workers
        assert.equal(workers[1].plan, workers[3].plan)
        assert.same(plan, former:shared(workers[1].plan))
        assert.equal('other.js', former:shared(workers[2].plan).worker)
        assert.equal(9, former:take(former.state.name))
        assert.is_nil(former:take(nil))
        assert.is_nil(former:take 'nothing')
        assert.same({ 'stray' }, former:unknown 's')
        assert.same({}, former:unknown 'lane/')
        assert.equal(11, former:take 'lanes')
        former:close_rest()
        assert.same({ 10 }, keeper.closed)
        assert.equal('drop stray', keeper.told[#keeper.told])
    end)

    it('drops what an object named when that is gone, and keeps it again when it comes back', function()
        local keeper = new_keeper()
        local function new_object(name, fd)
            return { keep = function(_, book) return { fd = book:fd(name, fd) } end }
        end
        local list = { new_object('a', 5), new_object('b', 6) }
        local objects = { list[1], list[2] }
        local writer = new_writer(keeper, function(book)
            return { objects = book:each(objects) }
        end)
        writer:know { stray = 9 }
        writer:write()
        assert.same({ 'put a 5', 'put b 6', 'state', 'drop stray' }, keeper.told)
        keeper.told = {}
        objects = { list[2] }
        writer:write()
        assert.same({ 'state', 'drop a' }, keeper.told)
        keeper.told = {}
        objects = { list[2], list[1] }
        writer:write()
        assert.same({ 'put a 5', 'state' }, keeper.told)
        keeper.told, keeper.full, list[1].part = {}, true, nil
        list[1].keep = function(_, book) return { fd = book:fd('c', 7) } end
        assert.is_nil(writer:write())
        keeper.full, objects = false, { list[2] }
        writer:write() -- c never was in a snapshot
        assert.same({ b = 6 }, keeper.store)
        writer:again() -- to another keeper
        assert.equal('state', table.remove(keeper.told))
        assert.equal('put b 6', table.remove(keeper.told))
    end)

    it('that is checked finds a change that nobody has noted, and says which', function()
        local keeper, object = new_keeper(), { value = 1, keep = function(self) return { value = self.value } end }
        local writer = State.writer { platform = keeper.platform, checks = true, collect = function(book)
            return { objects = book:each { object } }
        end }
        writer:write()
        object.value, object.part = 2, nil
        writer:write()
        object.value = 3
        assert.error_matches(function()
            writer:write()
        end, 'a change was not noted: state.objects.1.value is 3, and was kept as 2')
    end)

    it('of another version, or none at all, is refused in words', function()
        local refused = { ['{"version":3}'] = 'it is of version 3, this program reads versions 1, 2',
            ['7'] = 'it is no table', ['{'] = '', ['{"version":1,"cluster":7}'] = 'it is not as one of its version',
            ['{"version":"1"}'] = 'it is of version 1', ['{"version":1.5}'] = 'it is of version 1.5' }
        for text, message in pairs(refused) do
            local former, why = State.read({ state = text, store = {} }, {})
            assert.is_nil(former)
            assert.truthy(why:find(message, 1, true), why)
        end
    end)

    it('of the former version is made one of this', function()
        local text = cjson.encode { version = 1, shared = { { stop_timeout_ms = 300 } }, cluster = { workers = {
            { plan = 1, alive_at = 5, leaving = { until_ms = 1000 } }, { id = 2 } } } }
        local former = assert(State.read({ state = text, store = {} }, {}))
        local worker = former.state.cluster.workers[1]
        assert.same({ State.VERSION, { until_ms = 1000, since_ms = 700, allowed_ms = 300 }, 5 },
            { former.state.version, worker.leaving, worker.health.alive_at })
    end)

    it('leaves alone who is known, and ends what was half made', function()
        local files = {
            ['/proc/7/task/7/children'] = '8 20 21 22 23 24 25 ',
            ['/proc/23/comm'] = 'dutch-master\n', -- forked, not yet anything
            ['/proc/24/comm'] = 'dutch-watcher\n', ['/proc/25/comm'] = 'other\n',
        }
        local origins = {
            [20] = { worker = '1', master = '7' }, -- known
            [21] = { worker = '9', master = '7' }, [22] = { worker = '2', master = '7' }, -- what a worker left behind
            [23] = {}, [24] = {}, [25] = { worker = '9', master = '1' },
        }
        local killed = {}
        local platform = {
            pid = function() return 7 end,
            master_pid = function() return 8 end,
            read_file = function(path) return files[path] end,
            origin = function(pid) return origins[pid] end,
            realpath = function(path) return path == '/proc/25/exe' and '/bin/other' or '/bin/dutch-master' end,
            kill_stranger = function(pid) killed[#killed + 1] = pid end,
        }
        local former = State.read({ state = '{"version":2}', store = {} }, platform)
        local ended = former:end_strangers({ [20] = true }, function(id) return id == 9 end)
        assert.same({ { pid = 21, id = 9 } }, ended)
        assert.same({ 21, 23 }, killed)
    end)
end)
