-- Node apps that listen, close and disconnect at random, beside the same app under stock cluster: same answers, and where
-- stock refuses, nobody is refused here.
local cjson = require 'cjson'
local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local stock = require 'spec.support.stock'
local tls = require 'spec.support.tls'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local PATTERNS = os.getenv 'DM_SANITIZE' and 4 or 20 -- a sanitizer sees enough in four

-- Does what STEPS says: { ms, verb, place of the port, once }. What is `once` happens in one worker of all. Each step
-- waits until the listens before it are answered: on a busy machine several would come at once, and a worker of stock
-- that listens, closes and listens again before the first answer has lost the port (see node_listen_spec).
local APP = [==[
    const fs = require('fs'), http = require('http'), net = require('net')
    const ports = JSON.parse(process.env.PORTS), kinds = process.env.KINDS.split(' ')
    const key = fs.readFileSync(process.env.KEYS + 'key.pem'), cert = fs.readFileSync(process.env.KEYS + 'cert.pem')
    const servers = {}, answers = []
    const answer = (i) => (request, response) => {
        response.setHeader('Connection', 'close')
        response.end('port ' + i)
    }
    const make = {
        http: (i) => http.createServer(answer(i)),
        // Closed by who answers, and opened again: it is another worker's turn meanwhile.
        turns: (i) => http.createServer((request, response) => {
            answer(i)(request, response)
            const server = servers[i]
            if (!server || !server.listening || Math.random() < 0.5) return
            verbs.close(i)
            setTimeout(() => verbs.listen(i), 20)
        }),
        https: () => require('https').createServer({ key, cert }, () => {}), // answers plain words by an end
        http2: () => require('http2').createSecureServer({ key, cert }, () => {}),
        net: (i) => net.createServer((socket) => socket.on('error', () => {}).end('port ' + i)),
        path: (i) => http.createServer(answer(i)),
    }
    const listens = {
        udp(i, done) {
            const socket = require('dgram').createSocket('udp4')
            socket.on('message', (text, from) => socket.send('port ' + i, from.port, from.address))
            socket.on('error', done).bind(ports[i], '127.0.0.1', done)
            return socket
        },
        path: (i, done) => make.path(i).on('error', done).listen(ports[i], done),
    }
    const verbs = {
        listen(i) {
            if (servers[i]) return
            answers.push(new Promise((resolve) => {
                const listen = listens[kinds[i]] || (() => make[kinds[i]](i).on('error', resolve)
                    .listen(ports[i], '127.0.0.1', resolve))
                servers[i] = listen(i, resolve)
            }))
        },
        unref(i) { if (servers[i]) servers[i].unref() },
        close(i) {
            if (servers[i]) servers[i].close()
            servers[i] = null
        },
        disconnect() { require('cluster').worker.disconnect() },
    }
    const mine = (id) => { try { fs.writeFileSync('step' + id, '', { flag: 'wx' }); return true } catch { return false } }
    const begun = Date.now()
    const until = (ms) => new Promise((resolve) => setTimeout(resolve, Math.max(begun + ms - Date.now(), 0)))
    const run = async () => {
        for (const [id, [ms, verb, i, once]] of JSON.parse(process.env.STEPS).entries()) {
            await until(ms)
            await Promise.all(answers)
            if (once && !mine(id)) continue
            verbs[verb](i)
            if (verb === 'disconnect') return // no listen is answered any more
        }
        await until(1200)
        console.log('done ' + process.pid)
    }
    run()
]==]

local KINDS = { 'http', 'turns', 'https', 'http2', 'net', 'path', 'udp' }

-- Three places. The first is there from the start, and left at most by one worker at a time; the second comes late,
-- goes and comes again; the third goes for good in some.
-- @return the steps, and what listens at each place
local function pattern(random)
    local function at(from, to)
        return random(from, to)
    end
    local steps = { { 0, 'listen', 0, false } }
    local function add(ms, verb, i, once)
        steps[#steps + 1] = { ms, verb, i, once or false }
    end
    if random(2) == 1 then
        local ms = at(200, 600)
        add(ms, 'close', 0, true)
        add(ms + at(20, 300), 'listen', 0, true)
    end
    add(at(0, 400), 'listen', 1)
    for _ = 1, random(0, 2) do
        local ms = at(300, 900)
        add(ms, 'close', 1)
        add(ms + at(0, 200), 'listen', 1)
    end
    add(at(0, 200), 'listen', 2)
    local third = random(3)
    if third > 1 then
        add(at(400, 800), 'close', 2)
    end
    if third > 2 then
        add(at(900, 1100), 'listen', 2)
    end
    if random(3) == 1 then
        add(at(700, 1000), 'disconnect', 0, true)
    end
    if random(2) == 1 then
        add(at(400, 1000), 'unref', random(0, 2))
    end
    table.sort(steps, function(a, b)
        return a[1] < b[1]
    end)
    return steps, { 'http', KINDS[random(#KINDS)], KINDS[random(#KINDS)] }
end

-- What comes of a datagram: 'port n' or 'waits'.
local function answer_of_datagram(port)
    local socket, text = uv.new_udp(), nil
    socket:recv_start(function(_, data)
        text = data or text
    end)
    socket:send('x', '127.0.0.1', port, function() end)
    wait.try(function() return text end, { timeout = 400 / wait.scale })
    socket:close()
    return text or 'waits'
end

-- What comes of a connection: 'port n', 'ended' (of what does not speak HTTP), 'refused', or 'waits'.
local function answer_of(target)
    local text, refused, ended, connected = '', false, false, false
    local handle
    handle = http.connect(target, function(err)
        if err then
            refused = err:find 'ECONNREFUSED' ~= nil or err:find 'ENOENT' ~= nil
            ended = true
            return
        end
        connected = true
        handle:write 'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'
        handle:read_start(function(_, data)
            text = text .. (data or '')
            ended = ended or not data
        end)
    end)
    wait.try(function() return ended end, { timeout = 400 / wait.scale }) -- "waits" costs all of it
    if not handle:is_closing() then
        handle:close()
    end
    return refused and 'refused' or text:match 'port %d' or connected and ended and 'ended' or 'waits'
end

local function answers(places)
    local list = {}
    for i, place in ipairs(places) do
        list[i] = place.kind == 'udp' and answer_of_datagram(place.at)
            or answer_of(place.kind == 'path' and { socket = place.at } or { port = place.at })
    end
    return list
end

-- Stock's final answers, once they are the same twice.
local function settled(places)
    local before
    return wait.wait_until(function()
        local now = table.concat(answers(places), ', ')
        local same = now == before and now
        before = now
        return same
    end, { what = 'the same answers twice' })
end

local function places_of(kinds)
    local list, dir = {}, master.temp_dir()
    for i, kind in ipairs(kinds) do
        list[i] = { kind = kind, at = kind == 'path' and dir .. '/' .. i or http.free_port() }
    end
    return list
end

local function environment(places, kinds, steps)
    local at = {}
    for i, place in ipairs(places) do
        at[i] = place.at
    end
    return { PORTS = cjson.encode(at), KINDS = table.concat(kinds, ' '), STEPS = cjson.encode(steps), KEYS = tls.KEYS }
end

describe('a Node app that listens and closes at random', function()
    after_each(master.cleanup)

    -- 18 listens with a server that was closed before the answer came, 26 resets fresh connections of one that closes.
    local binaries = {}
    versions.each(function(_, binary)
        binaries[#binaries + 1] = binary
    end, { '20', '22', '24' })
    if #binaries == 0 then
        return pending 'needs Node 20, 22 or 24, see spec/support/install-node'
    end

    it('gives the answers that it gives under stock, and nobody is refused', function()
        local seed = tonumber(os.getenv 'DM_SEED') or 17 -- the same patterns each time, unless asked
        math.randomseed(seed)
        print(('patterns of Node apps: DM_SEED=%d'):format(seed))
        local list = {}
        for number = 1, PATTERNS do
            local steps, kinds = pattern(math.random)
            local binary = binaries[number % #binaries + 1]
            list[number] = { ('pattern %d of seed %d, %s: %s %s'):format(number, seed, binary:match 'node%d+', table.concat(kinds, ' '),
                cjson.encode(steps)), function()
                local places = places_of(kinds)
                local m = app.start { binary = binary, app = APP, env = environment(places, kinds, steps),
                    plan = 'backoff = { first = 0.05 }, stopTimeout = 5, killTimeout = 1,' }
                local clients = load.start { port = places[1].at, clients = 1, mode = 'close', rate = 100, expect = '^port 0$' }
                local peer_places = places_of(kinds)
                local dir = master.temp_dir()
                local file = assert(io.open(dir .. '/app.js', 'w'))
                file:write(APP)
                file:close()
                local peer = stock.start { binary = binary, dir = dir, env = environment(peer_places, kinds, steps),
                    again = true }
                local function done(lines)
                    local count = 0
                    for _, line in ipairs(lines) do
                        local pid = tonumber(line:match '^done (%d+)$') -- of one that has left they say nothing
                        count = count + (pid and uv.kill(pid, 0) == 0 and 1 or 0)
                    end
                    return count >= 2
                end
                wait.wait_until(function() return done(peer.lines) and done(m.output) end, { what = 'the steps' })
                local theirs = settled(peer_places)
                peer:stop(wait)
                local wanted = theirs:gsub('refused', 'waits')
                local ours
                local same = wait.try(function()
                    ours = table.concat(answers(places), ', ')
                    return ours == wanted
                end, { timeout = 10000 })
                assert(same, ('stock: %s, here: %s\n%s'):format(theirs, ours, m:dump()))
                local counts = clients:stop()
                assert(counts.failed == counts.late, counts.text .. m:dump())
                m:finish { code = 0 }
            end }
        end
        math.randomseed(tonumber(tostring(uv.hrtime()):sub(-9))) -- ports are chosen by chance
        wait.together(list, 4)
    end)
end)
