local Directory = require 'dutch-master.listen.directory'
local Platform = require 'spec.support.fake_platform'
local books = require 'dutch-master.keeper.book'
local estate = require 'dutch-master.keeper.estate'
local fake_network = require 'spec.support.fake_network'
local fake_sockets = require 'spec.support.fake_sockets'

describe('the directory of listeners', function()
    local platform, network, directory, records

    local log = setmetatable({}, { __index = function()
        return function(_, fields, message)
            records[#records + 1] = { message = message, fields = fields }
        end
    end })

    local function new(inherited, balance)
        local fields = { platform = platform, log = log, balance = balance or 'steered', backlog = 511,
            stall_timeout_ms = 1000 }
        fields.hand, fields.doubts = fake_sockets.hands(platform, log)
        directory = Directory.new { platform = platform, want = 2, balance = balance or 'steered',
            inherited = inherited or {}, fields = fields }
        return directory
    end

    before_each(function()
        platform, records = Platform.new(), {}
        network = fake_network.add(platform)
        new()
    end)

    after_each(function()
        directory:close()
        assert.is_nil(next(network.open))
    end)

    local function open()
        local texts = {}
        for text in pairs(network.open) do
            texts[#texts + 1] = text
        end
        table.sort(texts)
        return texts
    end

    local function request(text, fields)
        local wish = { stream = true, text = text, name = text, port = tonumber(text and text:match '%d+$') }
        for key, value in pairs(fields or {}) do
            wish[key] = value
        end
        return wish
    end

    it('gives a port that was found by listen(0) to who listens there, and that worker another one for the next', function()
        local any = { name = 'tcp4:127.0.0.1:0#0' }
        local found = directory:open(1, request('127.0.0.1:0', any))
        local there = request(found.address.text, { name = 'tcp4:' .. found.address.text })
        found:assign(1, any)
        assert.equal('EADDRINUSE', select(3, directory:open(1, there))) -- it has it still
        found:drop(1)
        assert.equal(found, directory:open(1, there))
        assert.equal(found, directory:find(1, there))
        found:assign(1, there)
        local again = request('127.0.0.1:0', any)
        local other = directory:open(1, again)
        assert.not_equal(found, other)
        assert.equal(other, directory:find(1, again))
        assert.equal(found, directory:open(2, request('127.0.0.1:0', any))) -- as the first one found
        found:drop(1)
    end)

    it('numbers the ports that a worker asks for beside one that it has, and knows them as a former version wrote them', function()
        local any = { name = 'tcp4:127.0.0.1:0#0' }
        local first = directory:open(1, request('127.0.0.1:0', any))
        first:assign(1, any)
        local wishes, found = {}, {}
        for i = 1, 3 do
            wishes[i] = request('127.0.0.1:0', any)
            found[i] = directory:open(1, wishes[i])
            found[i]:assign(1, wishes[i])
        end
        assert.same({ any.name .. '+1', any.name .. '+2', any.name .. '+3' },
            { wishes[1].key, wishes[2].key, wishes[3].key })
        local book, store = books.new(books.shared(), 0), {}
        local state = { version = estate.VERSION, shared = {}, one = directory:keep(book) }
        local text = books.text(assert(book:close(state))):gsub('(:0#0)%+(%d)', function(key, count)
            return key .. ('+'):rep(count)
        end)
        for _, part in ipairs(book.parts) do
            for _, held in ipairs(part.fds) do
                store[held.name] = held.fd
            end
        end
        directory:close()
        local former = assert(estate.read({ state = text, store = store }, platform))
        assert.equal(any.name .. '+++', former.state.one.asked[4].key)
        new()
        assert(directory:resume(former.state.one, former))
        for i, rotation in ipairs { unpack(directory.rotations, 2) } do
            assert.equal(wishes[i].key, rotation.key)
            assert.equal(rotation, directory:find(1, request('127.0.0.1:0', { key = any.name .. ('+'):rep(i) })))
        end
        local fourth = directory:open(1, request('127.0.0.1:0', any))
        assert.equal(any.name .. '+4', fourth.key)
        for _, rotation in ipairs(directory.rotations) do
            rotation:drop(1)
        end
    end)

    it('lets go of what nobody has any more where a worker wants the port in another form', function()
        local former = directory:open(1, request('127.0.0.1:85'))
        former:assign(1, request '127.0.0.1:85')
        former:join(1)
        local listen = platform.listen
        platform.listen = function(address, ...) -- as the kernel does
            if address.text == ':85' and network.open['127.0.0.1:85'] then
                return nil, 'EADDRINUSE', 'EADDRINUSE'
            end
            return listen(address, ...)
        end
        assert.equal('EADDRINUSE', select(3, directory:open(2, request ':85')))
        former:drop(1)
        assert.equal(':85', directory:open(2, request ':85').address.text)
        assert.same({ ':85' }, open())
        assert.equal(1, #directory.rotations)
    end)

    it('binds the plan in its order, and changes nothing when one cannot be had', function()
        assert.is_true(directory:update { ':80', ':81' })
        assert.same({ ':80', ':81' }, open())
        network.taken[':83'] = true
        local ok, message, code = directory:update { ':82', ':83' }
        assert.is_nil(ok)
        assert.equal('EADDRINUSE', code)
        assert.matches(':83', message)
        assert.same({ ':80', ':81' }, open())
        assert.equal(':80', directory.rotations[1].key)
    end)

    it('binds nothing of a list that is wrong in itself', function()
        for text, code in pairs { [':90'] = 'EADDRINUSE', ['nonsense'] = 'EINVAL' } do
            assert.equal(code, (select(3, directory:update { ':90', text })))
            assert.same({}, open())
        end
    end)

    it('has a port for each entry that wants any, and each keeps its own by its name', function()
        local function ports()
            local by_name = {}
            for _, rotation in ipairs(directory.rotations) do
                by_name[rotation.name] = rotation.address.port
            end
            return by_name
        end
        directory:update { { text = ':0', name = 'b' }, { text = ':0', name = 'd' } }
        local first = ports()
        assert.not_equal(first.b, first.d)
        directory:update { { text = ':0', name = 'a' }, { text = ':0', name = 'b' }, { text = ':0', name = 'd' } }
        assert.same({ first.b, first.d }, { ports().b, ports().d })
        assert.equal(3, #open())
        directory:update { { text = ':0', name = 'c' }, { text = ':0', name = 'd' } } -- one has another name now
        assert.equal(first.d, ports().d)
        assert.equal(2, #directory.rotations)
        assert.equal(2, #open())
        directory:update {}
        assert.same({}, open())
        directory:update { ':0', ':0' }
        local texts = open()
        directory:update { ':0', ':0' }
        assert.same(texts, open())
    end)

    it('keeps a listener that stays, and closes one that left the plan when nobody has it', function()
        directory:update { ':80', ':81' }
        local first, second = directory.plan[1], directory.plan[2]
        second:assign(1)
        directory:update { ':80' }
        assert.equal(first, directory.plan[1])
        directory:close_unused(true)
        assert.same({ ':80', ':81' }, open())
        second:drop(1)
        directory:close_unused(true)
        assert.same({ ':80' }, open())
    end)

    it('does not change the rights of a path that is served', function()
        directory:update { { text = 'unix:/run/a', mode = 384 } }
        local ok, message, code = directory:update { { text = 'unix:/run/a', mode = 432 } }
        assert.is_nil(ok)
        assert.equal('EBUSY', code)
        assert.matches('stop and start', message)
    end)

    it('has room for so many lanes as the kernel has, where each worker gets one', function()
        directory:update { ':80' }
        local ok, message, code = directory:has_room(100000)
        assert.is_nil(ok)
        assert.equal('E2BIG', code)
        assert.matches("balance = 'shared'", message)
        assert.is_true(directory:has_room(8))
        new(nil, 'shared')
        directory:update { ':81' }
        assert.is_true(directory:has_room(100000))
        network.open[':80'] = nil -- of the one before
    end)

    it('opens what a worker asks for once, and finds what the plan has', function()
        directory:update { ':80' }
        assert.equal(directory.plan[1], directory:open(1, request ':80'))
        local asked = directory:open(1, request ':8000')
        assert.equal(asked, directory:open(2, request ':8000'))
        assert.equal(asked, directory:find(2, request ':8000'))
        assert.is_nil(directory:find(2, request ':8001'))
        assert.same({ directory.plan[1], asked }, directory.rotations)
    end)

    it('makes a path with the mode that a worker wants, and that its Node would make of it', function()
        local modes = {}
        function platform.listen(_, options)
            modes[#modes + 1] = options.mode or 'as the umask has it'
            return nil, 'no', 'EACCES'
        end
        for i, wish in ipairs { {}, { readable_all = true }, { writable_all = true }, { readable_all = true, adds_modes = true },
            { adds_modes = true } } do
            wish.type, wish.path = 'unix', '/run/' .. i
            directory:open(1, request('unix:/run/' .. i, wish))
        end
        assert.same({ 'as the umask has it', tonumber('444', 8), tonumber('222', 8), tonumber('10444', 8),
            'as the umask has it' }, modes)
    end)

    it('gives each worker a datagram socket of its own where no port is named', function()
        local wish = request('udp:127.0.0.1:0', { stream = false, port = 0 })
        assert.not_equal(directory:open(1, wish), directory:open(2, wish))
        assert.equal(directory:open(1, wish), directory:find(1, wish))
    end)

    it('is bounded in what workers may ask for', function()
        for i = 1, 256 do
            assert(directory:open(1, request(':' .. 10000 + i)))
        end
        local rotation, message, code = directory:open(1, request ':9')
        assert.is_nil(rotation)
        assert.equal('EMFILE', code)
        assert.matches('256 addresses', message)
    end)

    it('takes what came from outside, once, and never closes it for want of a user', function()
        local address = platform.address ':80'
        new { { fd = 3, address = address } }
        local by_number = directory:open(1, request(nil, { fd = 3, name = 'fd:3' }))
        assert.equal(3, by_number.fd)
        assert.equal(by_number, directory:find(1, request ':80'))
        directory:close_unused(true)
        assert.same({ ':80' }, open())
        local none, message = directory:open(1, request(nil, { fd = 9, name = 'fd:9' }))
        assert.is_nil(none)
        assert.matches('descriptor 9', message)
    end)

    it('says which of its own addresses is in the way of another form of it', function()
        directory:update { ':80' }
        network.taken['0.0.0.0:80'] = true
        local _, message = directory:open(1, request '0.0.0.0:80')
        assert.matches('the master itself holds :80', message, 1, true)
    end)

    it('keeps what closed listeners counted, and says what was lost with them', function()
        directory:update { ':80' }
        local listener = network.open[':80']
        network.resets = true
        directory.plan[1]:assign(1)
        listener.client()
        directory:close()
        assert.equal('Waiting connections lost, their socket is closed', records[#records].message)
        assert.equal(1, (select(3, directory:count())))
    end)
end)
