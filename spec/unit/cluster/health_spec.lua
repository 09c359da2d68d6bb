-- When a worker is ready, and when it hangs: by its words, by questions, by who listens.
-- Longer than 400 lines: the rules meet each other in one object, and so they do here.

local Health = require 'dutch-master.cluster.health'
local Platform = require 'spec.support.fake_platform'

describe('health', function()
    local platform, health, events, records, dials, rotation, target, target_code, doors

    -- events: 'alive', 'ready ADDRESS', 'hung WHY' in their order
    local has, must = {}, {}
    local function new(rule, watchdog_ms)
        if health then
            health:close()
        end
        health = Health.new {
            platform = platform, id = 7, rule = rule, fallback = { type = 'listening' }, watchdog_ms = watchdog_ms,
            listens_at = function()
                return has
            end,
            must_listen_at = function()
                return must
            end,
            log = {
                debug = function(_, fields, message)
                    records[#records + 1] = { message, fields.address }
                end,
                warn = function(_, fields, message)
                    records[#records + 1] = { message, fields.reason }
                end,
            },
            sockets = { probe_target = function(_, id, port)
                assert.equal(7, id)
                assert.equal(rule.port, port)
                if target then
                    return target
                end
                return nil, 'it does not listen', target_code or 'ENOENT'
            end, doors = function(_, _, port)
                return not port and doors or { doors[port] }
            end },
            tell = function(event, what)
                what = event == 'ready' and what.address or event ~= 'ready' and what
                events[#events + 1] = what and event .. ' ' .. what or event
            end,
        }
        return health
    end

    -- One that is asked for a page.
    local function asked(rule, watchdog_ms)
        rule = rule or {}
        rule.type, rule.path, rule.interval_ms, rule.timeout_ms = 'http', rule.path or '/health', 500, 1000
        new(rule, watchdog_ms):ask()
        platform:advance(0)
        return health
    end

    -- What has happened since the last look.
    local function happened()
        local list = events
        events = {}
        return list
    end

    before_each(function()
        platform = Platform.new()
        events, records, dials, target_code, doors = {}, {}, {}, nil, {}
        function platform.dial(address, callbacks)
            local dial = { address = address, callbacks = callbacks, open = true }
            function dial.port()
                return 40000 + #dials
            end
            function dial.start(_, text)
                dial.text = text
                if platform.dial_fails then
                    return nil, 'connection refused', 'ECONNREFUSED'
                end
                return true
            end
            function dial.accepted()
                return false
            end
            function dial.close()
                assert(dial.open, 'closed twice')
                dial.open = false
            end
            dials[#dials + 1] = dial
            return dial
        end
        rotation = { address = { text = '127.0.0.1:80' }, rules = {}, queue = 0, exact = true }
        function rotation:probe(id, port)
            if self.no then
                return nil, unpack(self.no)
            end
            assert(not self.rules[id], 'two at once')
            self.rules[id] = port
            return true
        end
        function rotation:unprobe(id)
            assert(not dials[#dials].open, 'its rule is gone before it is')
            self.rules[id] = nil
        end
        function rotation:probed(id)
            self:unprobe(id)
            return self.exact
        end
        function rotation:waiting()
            return self.queue
        end
        target = rotation
    end)

    after_each(function()
        health:close()
        assert.is_nil(next(rotation.rules), 'a rule stayed')
        assert.is_nil(next(platform.timers), 'a timer stayed')
        for _, dial in ipairs(dials) do
            assert.is_false(dial.open)
        end
    end)

    local function answers(text)
        dials[#dials].callbacks.on_data(text)
    end

    it('sends one request from its port, and takes the status of the answer', function()
        asked()
        assert.equal('127.0.0.1:80', dials[1].address)
        assert.same({ [7] = 40001 }, rotation.rules)
        assert.equal('GET /health HTTP/1.1\r\nHost: 127.0.0.1:80\r\nUser-Agent: dutch-master\r\nConnection: close\r\n\r\n',
            dials[1].text)
        answers 'HTTP/1.1 20'
        assert.same({}, happened())
        answers '0 OK\r\nContent-Length'
        assert.same({ 'alive', 'ready 127.0.0.1:80' }, happened())
        assert.same({ { 'Worker was asked: GET /health answered 200', '127.0.0.1:80' } }, records)
        assert.same({}, rotation.rules)
        platform:advance(499)
        assert.equal(1, #dials)
        platform:advance(1)
        assert.equal(2, #dials)
        answers 'HTTP/1.1 200 OK\r\n'
        assert.equal(1, #records) -- it is said when it is another answer
    end)

    it('names a host, since servers refuse an empty one, where the address is that of all interfaces', function()
        for text, host in pairs { [':8000'] = 'localhost:8000', ['0.0.0.0:80'] = 'localhost:80',
            ['[::]:443'] = 'localhost:443', ['[::1]:80'] = '[::1]:80' } do
            rotation.address.text = text
            asked()
            assert.equal(host, dials[#dials].text:match '\r\nHost: ([^\r]*)\r\n')
            assert.equal(text, dials[#dials].address)
            health:close()
        end
    end)

    it('takes 2xx and 3xx for good, and any status for a sign of life', function()
        asked { host = 'example.org' }
        assert.matches('\r\nHost: example.org\r\n', dials[1].text)
        for status, good in pairs { [200] = true, [204] = true, [302] = true, [399] = true, [101] = false, [400] = false,
            [503] = false } do
            answers(('HTTP/1.0 %d\n'):format(status))
            assert.same({ 'alive', good and 'ready 127.0.0.1:80' or nil }, happened())
            assert.equal('GET /health answered ' .. status, health:words())
            platform:advance(500)
        end
    end)

    it('waits for the answer behind interim ones', function()
        asked()
        answers 'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\n\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>'
        answers '\r\nHTTP/1.1 200: no\r\n'
        assert.same({ {} }, { happened(), health:words() })
        answers '\r\nHTTP/1.1 204 No Content\r\n'
        assert.same({ 'alive', 'ready 127.0.0.1:80' }, happened())
        platform:advance(500)
        answers 'HTTP/1.1 103 Early Hints\r\n\r\n'
        dials[#dials].callbacks.on_end()
        assert.equal('GET /health: the connection was closed without an answer', health:words())
        platform:advance(500)
        answers 'HTTP/1.1 103 Early Hints\r\n\r\n'
        platform:advance(1000)
        assert.equal('GET /health: no answer in 1 s', health:words())
        platform:advance(500)
        answers('HTTP/1.1 103 Early Hints\r\n' .. ('Link: </x>\r\n'):rep(6000))
        assert.equal('GET /health was not answered in HTTP', health:words())
        assert.same({}, happened())
    end)

    it('knows what is no answer', function()
        asked { path = '/x' }
        for _, text in ipairs { 'hello\r\n', 'HTTP/1.1 2000 x\r\n', 'HTTP/1.1 20\r\n', '\r\nHTTP/1.1 200 OK\r\n', '\0\n',
            ('x'):rep(65537), 'HTTP/1.1 ' .. ('x'):rep(65537) } do
            answers(text)
            assert.equal('GET /x was not answered in HTTP', health:words())
            platform:advance(500)
        end
        dials[#dials].callbacks.on_end()
        assert.equal('GET /x: the connection was closed without an answer', health:words())
        platform:advance(500)
        dials[#dials].callbacks.on_end('connection reset by peer', 'ECONNRESET')
        assert.equal('GET /x: connection reset by peer', health:words())
        assert.same({}, happened())
    end)

    it('tells a server of TLS from one that says nothing', function()
        asked { path = '/x' }
        dials[#dials].callbacks.on_end() -- as Node's https does with a plain request
        platform:advance(500)
        dials[#dials].callbacks.on_data '\x16\3\3\0\x7a...'
        local words = 'GET /x: the connection was closed without an answer. It looks like a server of HTTPS: write'
            .. ' ready = { tls = true }'
        assert.equal(words, health:words())
        platform:advance(500)
        dials[#dials].callbacks.on_end()
        assert.equal(words, health:words())
        assert.same({}, happened())
        health:close()
    end)

    it('goes by an answer in TLS where that is the rule', function()
        asked { tls = true }
        dials[#dials].callbacks.on_data '\x15\3\3\0\2\2\x28'
        assert.equal('TLS: refused', health:words())
        assert.same({ 'alive' }, happened())
        platform:advance(500)
        dials[#dials].callbacks.on_end()
        assert.equal('TLS: the connection was closed without an answer', health:words())
        platform:advance(500)
        dials[#dials].callbacks.on_data 'HTTP/1.1 200 OK\r\n'
        assert.equal('TLS: the greeting was not answered in TLS', health:words())
        platform:advance(500)
        dials[#dials].callbacks.on_data '\x16\3\3\0\x7a...'
        assert.same({ 'alive', 'ready 127.0.0.1:80' }, happened())
        health:close()
    end)

    it('waits as long as nobody accepts, and gives up who accepts and is silent', function()
        asked()
        rotation.queue = 1
        platform:advance(2000)
        assert.equal(1, #dials)
        assert.equal('GET /health: nobody accepted in 1 s', health:words())
        rotation.queue = 0
        platform:advance(1000)
        assert.equal('GET /health: no answer in 1 s', health:words())
        assert.is_false(dials[1].open)
        platform:advance(500)
        assert.equal(2, #dials)
        platform:advance(1000)
        assert.same({}, happened())
    end)

    it('does not believe an answer that another worker may have given', function()
        asked()
        rotation.exact = false
        answers 'HTTP/1.1 200 OK\r\n'
        assert.equal('GET /health may have been answered by another worker', health:words())
        assert.same({}, happened())
        rotation.exact = true
        platform:advance(500)
        answers 'HTTP/1.1 200 OK\r\n'
        assert.same({ 'alive', 'ready 127.0.0.1:80' }, happened())
    end)

    it('says why it could not ask, and tries again', function()
        asked { port = 80 }
        target = nil
        answers 'HTTP/1.1 503 No\r\n'
        platform:advance(500)
        assert.equal('it does not listen', health:words())
        target = rotation
        rotation.no = { 'steering is refused', 'EPERM' }
        platform:advance(500)
        assert.equal('steering is refused', health:words())
        rotation.no = { 'too many', 'EAGAIN' }
        platform:advance(500)
        assert.equal('steering is refused', health:words())
        rotation.no, platform.dial_fails = nil, true
        platform:advance(20)
        assert.equal('connection refused', health:words())
        platform.dial_fails = false
        platform:advance(500)
        answers 'HTTP/1.1 200 OK\r\n'
        assert.same({ 'alive', 'alive', 'ready 127.0.0.1:80' }, happened())
    end)

    it('asks nobody who does not listen there, but knows it; and later, when it does', function()
        target = nil
        asked()
        assert.same({ 'starting', 'it does not listen', 0 }, { health.state, health:words(), #dials })
        target = rotation
        health:listens { stream = true, port = 81, text = ':81' }
        platform:advance(0)
        assert.same({ 'asking', 1 }, { health.state, #dials })
        assert.same({}, happened()) -- to listen is not its rule
    end)

    it('goes by the other rule where others have the socket', function()
        target, target_code = nil, 'ENOTSUP'
        asked()
        assert.same({ { 'HTTP readiness check impossible, using the default rule', 'it does not listen' } },
            records)
        health:listens { stream = true, port = 80, text = ':80' }
        assert.same({ 'ready :80' }, happened())
        assert.equal(1, #records)
        assert.equal(0, #dials)
    end)

    it('can be closed by whoever hears the result', function()
        for _, status in ipairs { '200', '503' } do
            asked()
            local closed = health
            health.tell = function()
                closed:close()
            end
            answers('HTTP/1.1 ' .. status .. ' x\r\n')
            platform:advance(5000)
            assert.is_nil(next(platform.timers))
        end
        assert.equal(2, #dials)
    end)

    it('asks on for the watchdog while it serves, in time, and not at all without one', function()
        asked(nil, 6000)
        answers 'HTTP/1.1 200 OK\r\n'
        health:serves()
        assert.equal('watching', health.state)
        platform:advance(500) -- what was to come keeps its time
        assert.equal(2, #dials)
        answers 'HTTP/1.1 200 OK\r\n'
        platform:advance(1999)
        assert.equal(2, #dials)
        platform:advance(1)
        assert.equal(3, #dials)
        dials[3].callbacks.on_end()
        platform:advance(500) -- at the former pace where there was none
        assert.equal(4, #dials)
        health:close()
        asked()
        answers 'HTTP/1.1 200 OK\r\n'
        health:serves()
        assert.equal('quiet', health.state)
    end)

    it('asks sooner when the watchdog cannot wait that long', function()
        asked(nil, 300)
        answers 'HTTP/1.1 200 OK\r\n'
        health:serves()
        platform:advance(100)
        assert.equal(2, #dials)
    end)

    it('knows each rule', function()
        local tcp, path, udp = { stream = true, port = 80, text = ':80' }, { stream = true, path = '/s', name = 'unix:/s' },
            { port = 53, text = 'udp::53' }
        local said = {
            tcp = function() health:listens(tcp) end, path = function() health:listens(path) end,
            udp = function() health:listens(udp) end, ready = function() health:says_ready() end,
            notify = function() health:notified { READY = '1' } end, message = function() health:message 'up' end,
            event = function() health:message { event = 'up' } end, other = function() health:message 'down' end,
        }
        local rules = {
            { { type = 'listening' }, 'ready tcp' }, { { type = 'port', port = 80 }, 'ready tcp' },
            { { type = 'port', port = 81 }, 'ready' }, { { type = 'path', path = '/s' }, 'path ready' },
            { { type = 'message', message = 'up' }, 'event message ready' },
            { { type = 'message' }, 'event message other ready' }, { { type = 'notify' }, 'notify ready' },
            { { type = 'auto', alive_ms = 1000 }, 'notify ready' }, { { type = 'http', path = '/' }, '' },
        }
        target = nil
        for _, rule in ipairs(rules) do
            local met = {}
            for name, say in pairs(said) do
                new(rule[1])
                say()
                met[#met + 1] = happened()[1] and name
            end
            table.sort(met)
            assert.equal(rule[2], table.concat(met, ' '))
        end
    end)

    it('takes a path or a datagram socket for readiness when no TCP port comes within a second', function()
        local path, tcp = { stream = true, path = '/s', name = 'unix:/s' }, { stream = true, port = 80, text = ':80' }
        for _, first in ipairs { path, { stream = false, port = 53, text = 'udp::53' } } do
            new { type = 'listening' }
            health:listens(first)
            platform:advance(999)
            assert.same({}, happened())
            platform:advance(1)
            assert.same({ 'ready ' .. (first.text or first.name) }, happened())
            new { type = 'listening' }
            health:listens(first)
            health:listens(tcp)
            assert.same({ 'ready :80' }, happened())
            health:close()
            platform:advance(2000)
            assert.same({}, happened())
        end
    end)

    it('waits for all addresses of those that it replaces, and names the missing ones', function()
        local function tcp(port)
            return { name = 'tcp:' .. port, stream = true, port = port, text = ':' .. port }
        end
        must = { tcp(80), tcp(9100) }
        new { type = 'listening' }
        has = { tcp(9100) }
        health:listens(has[1])
        assert.same({}, happened())
        assert.equal('it does not listen on :80, where the workers before it do. If that is meant, say which address'
            .. ' counts: ready = { port = 9100 }', health:words())
        has[2] = tcp(80)
        health:listens(has[2])
        assert.same({ 'ready :80' }, happened())
        has, must = {}, {}
    end)

    it('counts who lives long enough as ready where nothing else shows it', function()
        assert.same({ 1000, 700, false }, { new({ type = 'auto', alive_ms = 1000 }):alive_ms(),
            new({ type = 'alive', alive_ms = 700 }):alive_ms(), new({ type = 'notify' }):alive_ms() or false })
    end)

    it('has patience from the first sign of life on, and anew when it is forgiven', function()
        new({ type = 'notify' }, 2000)
        assert.is_nil(health:patience())
        health:notified { WATCHDOG = '1' }
        assert.same({ 'alive' }, happened())
        platform:advance(1500)
        assert.equal(500, health:patience())
        platform:advance(1500)
        assert.equal(0, health:patience())
        health:forgive()
        assert.equal(2000, health:patience())
        health:notified { WATCHDOG = 'trigger', STATUS = 'stuck' }
        assert.same({ 'hung it says that it must be replaced' }, happened())
        assert.equal('stuck', health.said.status)
        new { type = 'notify' }
        health:notified { WATCHDOG = 'trigger' }
        assert.same({}, happened()) -- nobody asked for a watchdog
        assert.is_nil(health:patience())
    end)

    it('knows what it says of itself, and nothing that cannot be', function()
        new { type = 'notify' }
        health:notified { RELOADING = '1', MAINPID = '123', EXTEND_TIMEOUT_USEC = '1500000' }
        assert.same({ reloading = true, main_pid = 123 }, health.said)
        for _, bad in ipairs { '-1', '0', '1e3', '0x10', '', ' 1' } do
            health:notified { MAINPID = bad, EXTEND_TIMEOUT_USEC = bad ~= '0' and bad or nil, STOPPING = bad }
        end
        assert.same({ reloading = true, main_pid = 123 }, health.said)
        health:notified { READY = '1', STOPPING = '1' }
        assert.same({ stopping = true, main_pid = 123 }, health.said)
        assert.same({ 'extend 1500', 'ready', 'request_restart says that it is stopping' }, happened())
    end)

    describe('of a worker that was given sockets', function()
        local function door(text)
            local function yes()
                return true
            end
            return { address = { text = text }, probe = yes, probed = yes, unprobe = yes, waiting = function()
                return 1
            end }
        end

        local function accept()
            platform:advance(0)
            dials[#dials].callbacks.on_end()
        end

        local function given(rule)
            doors = { door '1', door '2' }
            new(rule):given()
            return health
        end

        it('is good when it accepts at all of them, and READY=1 does not hasten that', function()
            given { type = 'auto', alive_ms = 1000 }
            assert.is_nil(health:alive_ms())
            health:notified { READY = '1' }
            assert.same({}, happened())
            accept()
            assert.same({}, happened())
            assert.equal('nobody accepted a connection at 2', (health:missing()))
            accept()
            assert.same({ 'ready 1' }, happened())
        end)

        it('needs READY=1 as well where that is the rule, in either order', function()
            for _, first in ipairs { 'said', 'accepted' } do
                given { type = 'notify' }
                for _, what in ipairs(first == 'said' and { 'said', 'accepted' } or { 'accepted', 'said' }) do
                    assert.same({}, happened(), first)
                    if what == 'said' then
                        health:notified { READY = '1' }
                    else
                        accept()
                        accept()
                    end
                end
                assert.same({ 'ready 1' }, happened())
                assert.is_nil((health:missing()))
                health:close()
            end
        end)

        it('says which of the two is missing', function()
            given { type = 'notify' }
            assert.equal('nobody accepted a connection at 1', (health:missing()))
            accept()
            accept()
            assert.equal('it accepts connections, but has not said READY=1', (health:missing()))
            health:close()
            doors = {}
            assert.equal('it has not said READY=1', (new({ type = 'notify' }):missing()))
        end)

        it('is asked at one port only, if that is named; and not at all where it is to be believed', function()
            given { type = 'port', port = 2 }
            accept()
            assert.same({ 'ready 2' }, happened())
            health:close()
            given { type = 'alive', alive_ms = 300 }
            platform:advance(1000)
            assert.equal(300, health:alive_ms())
            assert.equal(1, #dials)
        end)

        it('leaves nothing behind when it is given up', function()
            given { type = 'auto', alive_ms = 1000 }
            platform:advance(0)
            health:close()
            assert.is_false(dials[1].open)
            assert.equal(0, platform:armed())
        end)
    end)
end)
