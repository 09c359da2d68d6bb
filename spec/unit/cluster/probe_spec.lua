local Platform = require 'spec.support.fake_platform'
local Probe = require 'dutch-master.cluster.probe'

describe('probe', function()
    local platform, probe, results, dials, rotation, target

    local function new(rule)
        rule = rule or {}
        rule.path, rule.interval_ms, rule.timeout_ms = rule.path or '/health', 500, 1000
        probe = Probe.new {
            platform = platform, id = 7, rule = rule,
            sockets = { probe_target = function(_, id, port)
                assert.equal(7, id)
                assert.equal(rule.port, port)
                if target then
                    return target
                end
                return nil, 'it does not listen', 'ENOENT'
            end },
            on_result = function(result)
                results[#results + 1] = result
            end,
        }
        probe:start(0)
        platform:advance(0)
        return probe
    end

    before_each(function()
        platform = Platform.new()
        results, dials = {}, {}
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
        probe:close()
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
        new()
        assert.equal('127.0.0.1:80', dials[1].address)
        assert.same({ [7] = 40001 }, rotation.rules)
        assert.equal('GET /health HTTP/1.1\r\nHost: 127.0.0.1:80\r\nUser-Agent: dutch-master\r\nConnection: close\r\n\r\n',
            dials[1].text)
        answers 'HTTP/1.1 20'
        assert.same({}, results)
        answers '0 OK\r\nContent-Length'
        assert.same({ { words = 'GET /health answered 200', status = 200, good = true, address = '127.0.0.1:80' } }, results)
        assert.same({}, rotation.rules)
        platform:advance(499)
        assert.equal(1, #dials)
        platform:advance(1)
        assert.equal(2, #dials)
    end)

    it('names a host, since servers refuse an empty one, where the address is that of all interfaces', function()
        for text, host in pairs { [':8000'] = 'localhost:8000', ['0.0.0.0:80'] = 'localhost:80',
            ['[::]:443'] = 'localhost:443', ['[::1]:80'] = '[::1]:80' } do
            rotation.address.text = text
            new()
            assert.equal(host, dials[#dials].text:match '\r\nHost: ([^\r]*)\r\n')
            assert.equal(text, dials[#dials].address)
            probe:close()
        end
    end)

    it('takes 2xx and 3xx for good, and no other', function()
        new { host = 'example.org' }
        assert.matches('\r\nHost: example.org\r\n', dials[1].text)
        for status, good in pairs { [200] = true, [204] = true, [302] = true, [399] = true, [199] = false, [400] = false,
            [503] = false } do
            answers(('HTTP/1.0 %d\n'):format(status))
            assert.same({ status, good }, { results[#results].status, results[#results].good })
            platform:advance(500)
        end
    end)

    it('knows what is no answer', function()
        new { path = '/x' }
        for _, text in ipairs { 'hello\r\n', 'HTTP/1.1 2000 x\r\n', 'HTTP/1.1 20\r\n', '\r\nHTTP/1.1 200 OK\r\n', '\0\n',
            ('x'):rep(65537), 'HTTP/1.1 ' .. ('x'):rep(65537) } do
            answers(text)
            assert.same({ words = 'GET /x was not answered in HTTP', good = false, address = '127.0.0.1:80' },
                results[#results])
            platform:advance(500)
        end
        dials[#dials].callbacks.on_end()
        assert.equal('GET /x: the connection was closed without an answer', results[#results].words)
        platform:advance(500)
        dials[#dials].callbacks.on_end('connection reset by peer', 'ECONNRESET')
        assert.equal('GET /x: connection reset by peer', results[#results].words)
    end)

    it('waits as long as nobody accepts, and gives up who accepts and is silent', function()
        new()
        rotation.queue = 1
        platform:advance(2000)
        assert.equal(1, #dials)
        assert.same({ words = 'GET /health: nobody accepted in 1 s', good = false }, results[#results])
        rotation.queue = 0
        platform:advance(1000)
        assert.equal('GET /health: no answer in 1 s', results[#results].words)
        assert.is_false(dials[1].open)
        platform:advance(500)
        assert.equal(2, #dials)
        platform:advance(1000)
        assert.equal('GET /health: no answer in 1 s', results[#results].words)
    end)

    it('does not believe an answer that another worker may have given', function()
        new()
        rotation.exact = false
        answers 'HTTP/1.1 200 OK\r\n'
        assert.same({ words = 'GET /health may have been answered by another worker', good = false,
            address = '127.0.0.1:80' }, results[1])
        rotation.exact = true
        platform:advance(500)
        answers 'HTTP/1.1 200 OK\r\n'
        assert.is_true(results[2].good)
    end)

    it('says why it could not ask, and tries again', function()
        target = nil
        new { port = 80 }
        assert.same({ words = 'it does not listen', good = false }, results[1])
        target = rotation
        rotation.no = { 'steering is refused', 'EPERM' }
        platform:advance(500)
        assert.equal('steering is refused', results[2].words)
        rotation.no = { 'too many', 'EAGAIN' }
        platform:advance(500)
        assert.equal(2, #results)
        rotation.no, platform.dial_fails = nil, true
        platform:advance(20)
        assert.equal('connection refused', results[3].words)
        platform.dial_fails = false
        platform:advance(500)
        answers 'HTTP/1.1 200 OK\r\n'
        assert.is_true(results[4].good)
    end)

    it('can be closed by whoever hears the result', function()
        for _, ending in ipairs { 'answer', 'overdue' } do
            new()
            local closed = probe
            function probe.on_result()
                results[#results + 1] = true
                closed:close()
                closed.close = function() end
            end
            rotation.queue = 1
            if ending == 'answer' then
                answers 'HTTP/1.1 200 OK\r\n'
            end
            platform:advance(5000)
        end
        assert.equal(2, #results)
    end)

    it('asks at another pace', function()
        new()
        probe:pace(2000)
        answers 'HTTP/1.1 200 OK\r\n'
        platform:advance(1999)
        assert.equal(1, #dials)
        platform:advance(1)
        assert.equal(2, #dials)
        dials[2].callbacks.on_end()
        platform:advance(500) -- at the former pace where there was none
        assert.equal(3, #dials)
    end)
end)
