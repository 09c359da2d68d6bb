-- The hello example's kind of worker, under load: lua-http in Lua workers, rolled again and again.

local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

local APP = [[
local http, worker = require 'dutch-master.http', require 'dutch-master.worker'
assert(http.serve(os.getenv 'LISTEN', function(_, response)
    response:send(worker.generation .. ' ' .. worker.id)
end))
]]

describe('a cluster of Lua workers on lua-http', function()
    after_each(master.cleanup)

    local function start(port)
        local m = master.start {
            script = ([[
                local dutch = require 'dutch-master'
                dutch.start { worker = 'app.lua', workerEnvironment = { LISTEN = '127.0.0.1:%d' } }
            ]]):format(port),
            files = { ['app.lua'] = APP },
        }
        m:await 'Cluster ready'
        return m
    end

    for _, mode in ipairs { 'close', 'keepalive' } do
        it(('loses no request in three rolls, clients: %s'):format(mode), function()
            local port = http.free_port()
            local m = start(port)
            local l = load.start { port = port, mode = mode, clients = 8, rate = 400 }
            for roll = 1, 3 do
                l:await(l.counts.total + 50)
                m:signal 'SIGUSR2'
                m:await('Restart complete', { count = roll, timeout = 20000 })
            end
            m:await('Worker exited', { count = 6, timeout = 20000 })
            local total = l.counts.total
            l:await(total + 20)
            local counts = l:stop()
            assert.equal(0, counts.failed, counts.text)
            -- A connection that the worker closes while a request is on its way is what the linger is for.
            assert.equal(0, counts.stale, counts.text)
            local generations = {}
            for body in pairs(l.bodies) do
                generations[body:match '^%d+'] = true
            end
            assert.is_true(generations['1'] and generations['4'])
            m:finish { code = 0 }
            assert.same({}, m:records 'Listening socket repaired')
            for _, record in ipairs(m:records 'Worker exited') do
                assert.equal(0, record.code)
            end
        end)
    end

    describe('with requests as they should not be', function()
        local ODD = [[
            require('dutch-master.http').serve(os.getenv 'LISTEN', function(request, response)
                if request.path == '/body' then
                    local body, message = request:body(5)
                    io.stderr:write('body: ', tostring(body), ' ', tostring(message), '\n')
                    response:send(body)
                elseif request.path == '/odd-error' then
                    error {}
                end
                response:send 'well'
            end)
        ]]

        local function start_odd()
            local port = http.free_port()
            local m = master.start {
                script = ([[
                    require('dutch-master').start { worker = 'app.lua', numWorkers = 1, metrics = true,
                        workerEnvironment = { LISTEN = '127.0.0.1:%d' } }
                ]]):format(port),
                files = { ['app.lua'] = ODD },
            }
            m:await 'Cluster ready'
            return m, port
        end

        --- Sends a text, and ends the connection's side of it.
        local function send_and_leave(m, port, text)
            local sent
            local handle = http.connect({ port = port }, function(err, connection)
                assert(not err, err)
                connection:write(text)
                connection:shutdown(function()
                    sent = true
                end)
            end)
            m:wait_until(function()
                return sent
            end, 'the end of a request')
            handle:close()
        end

        it('goes on when a client leaves in the middle of its body', function()
            local m, port = start_odd()
            for _, path in ipairs { '/ignored', '/body' } do
                send_and_leave(m, port, ('POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc'):format(path))
                assert.equal(200, (http.get { port = port, path = '/' }))
            end
            m:wait_until(function() return m.stderr:find 'body: nil Broken pipe' end, 'the error of the body')
            m:finish { code = 0 }
        end)

        it('answers an error that is no text, and says so', function()
            local m, port = start_odd()
            assert.equal(500, (http.get { port = port, path = '/odd-error' }))
            m:wait_until(function() return m.stderr:find 'worker: http: table: 0x' end, 'the error in stderr')
            m:finish { code = 0 }
        end)

        it('asks for a body that waits to be asked for, however that is written', function()
            local m, port = start_odd()
            local said = ''
            local handle = http.connect({ port = port }, function(_, connection)
                connection:write 'POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n'
                connection:read_start(function(_, data)
                    said = said .. (data or '')
                end)
            end)
            m:wait_until(function()
                return said:find('100 Continue', 1, true)
            end, '100 Continue')
            handle:write 'abc'
            m:wait_until(function()
                return said:find '\r\n\r\nabc$'
            end, 'the answer')
            handle:close()
            m:finish { code = 0 }
        end)

        it('refuses a request of which it cannot be said where it ends', function()
            local m, port = start_odd()
            for _, lines in ipairs { 'Content-Length: -1', 'Content-Length: 3\r\nContent-Length: 4',
                'Content-Length: 3\r\nTransfer-Encoding: chunked', 'Transfer-Encoding: strange',
                'Content-Length: three' } do
                local said, over = '', false
                local handle = http.connect({ port = port }, function(_, connection)
                    connection:write('POST /body HTTP/1.1\r\nHost: x\r\n' .. lines .. '\r\n\r\nabc')
                    connection:read_start(function(_, data)
                        said, over = said .. (data or ''), not data
                    end)
                end)
                m:wait_until(function()
                    return over
                end, 'the end of the connection: ' .. lines)
                handle:close()
                assert.matches('^HTTP/1.1 400 ', said, lines)
                assert.equal(200, (http.get { port = port, path = '/' }))
            end
            assert.truthy(m.stderr:find('a request that cannot be read', 1, true), m.stderr)
            m:finish { code = 0 }
        end)
    end)
end)
