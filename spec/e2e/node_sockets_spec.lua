-- Long-lived connections: socket.io by polling needs its clients to stay with their worker, WebSockets live until the
-- deadline of a roll, http2 clients are told to go.
local uv = require 'luv'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local versions = require 'spec.support.node_versions'

local HERE = uv.cwd() .. '/spec/support/nodejs/'

-- Runs a program in Node and gives its output when on_line has said true or it has ended.
local function run(binary, args)
    local program = { text = '', ended = false }
    local out = uv.new_pipe(false)
    program.process = assert(uv.spawn(binary, { args = args, stdio = { nil, out, 2 } }, function()
        program.ended = true
        program.process:close()
    end))
    out:read_start(function(_, data)
        program.text = program.text .. (data or '')
        if not data then
            out:close()
        end
    end)
    function program.wait_for(pattern)
        master.wait_until(function()
            return program.text:find(pattern) or (program.ended and out:is_closing())
        end, { what = pattern })
        return program.text:match(pattern)
    end
    function program.finish()
        master.wait_until(function() return program.ended and out:is_closing() end, { what = 'the end of a client' })
        return program.text
    end
    return program
end

local modules = versions.modules 'packages'
if not modules then
    pending 'packages are not installed, see spec/support/install-node'
    return
end
describe('long-lived connections of a Node app:', function()
    after_each(master.cleanup)

    versions.it('clients of socket.io stay with their worker when balance is sticky', function(_, binary)
        local m, port = app.start {
            binary = binary, modules = modules, workers = 3, plan = "balance = 'sticky',",
            app = [[
            const server = require('http').createServer()
            const io = new (require('socket.io').Server)(server)
            io.on('connection', (socket) => socket.on('who', (n, answer) => answer(process.pid)))
            server.listen(Number(process.env.PORT), '127.0.0.1')
        ]],
        }
        local clients = run(binary, { HERE .. 'socket_clients.cjs', tostring(port), modules })
        local ok, workers = clients.finish():match 'ok (%d+) workers (%d+)'
        assert.equal('20', ok)
        assert.is_true(tonumber(workers) > 1, 'all clients went to one worker')
        m:finish { code = 0 }
    end)

    versions.it('a WebSocket lives on during a roll, until the deadline', function(_, binary)
        local m, port = app.start {
            binary = binary, modules = modules, plan = 'stopTimeout = 3, killTimeout = 1,',
            app = [[
            const { WebSocketServer } = require('ws')
            const sockets = new WebSocketServer({ port: Number(process.env.PORT) })
            sockets.on('connection', (socket) => socket.on('message', (data) => socket.send('echo ' + data)))
        ]],
        }
        local client = run(binary, { '-e', ([[
            const WebSocket = require('%s/ws')
            const socket = new WebSocket('ws://127.0.0.1:%d')
            socket.on('message', (data) => console.log(String(data)))
            let n = 0
            socket.on('open', () => setInterval(() => socket.send(String(++n)), 50))
            socket.on('close', () => { console.log('closed'); process.exit(0) })
        ]]):format(modules, port) })
        client.wait_for 'echo 2'
        local mark = m:mark()
        app.roll(m)
        local _, before = client.text:gsub('echo', '')
        client.wait_for('echo ' .. before + 10)
        -- One of the two old workers had no connection and is gone long before the other.
        local first = m:await('Worker exited', { after = mark })
        assert.equal(0, #m:records('Hard-killing worker as it did not die gracefully', first.index - 1))
        m:await('Worker exited', { after = first, timeout = 8000 })
        assert.matches('closed', client.finish())
        m:finish { code = 0 }
    end)

    versions.it('http2 clients are told to go, and their requests are answered', function(_, binary)
        local m, port = app.start { binary = binary, app = [[
            require('http2').createServer((request, response) => {
                setTimeout(() => response.end(process.env.DUTCH_MASTER_GENERATION), 20)
            }).listen(Number(process.env.PORT))
        ]] }
        local client = run(binary, { '-e', ([[
            const http2 = require('http2')
            let failed = 0, answered = 0, sessions = 0, newest = 1
            async function go() {
                while (newest < 2) {
                    sessions += 1
                    const session = http2.connect('http://127.0.0.1:%d')
                    session.on('error', () => { failed += 1 })
                    while (!session.closed && !session.destroyed && newest < 2) {
                        await new Promise((resolve) => {
                            let body = '', stream
                            try { stream = session.request({ ':path': '/' }) } catch { return resolve() }
                            stream.on('data', (data) => { body += data })
                            // A stream refused after GOAWAY was not begun: a client may ask again elsewhere.
                            let refused = false
                            stream.on('error', (error) => { refused = /REFUSED|GOAWAY/.test(error.message) })
                            stream.on('close', () => {
                                if (body) { answered += 1; newest = Number(body) } else if (!refused) failed += 1
                                resolve()
                            })
                            stream.end()
                        })
                        if (answered === 5) console.log('going')
                    }
                    session.close()
                }
            }
            Promise.all([go(), go(), go(), go()]).then(() => {
                console.log(`failed ${failed} sessions ${sessions}`)
                process.exit(0)
            })
        ]]):format(port) })
        client.wait_for 'going'
        app.roll(m)
        local failed, sessions = client.finish():match 'failed (%d+) sessions (%d+)'
        assert.equal('0', failed)
        assert.is_true(tonumber(sessions) > 4)
        m:await('Worker exited', { count = 2, timeout = 5000 })
        m:finish { code = 0 }
    end)
end)
