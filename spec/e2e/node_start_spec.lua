-- What a Node app brings along when it starts: flags of its sockets, options of its runtime, wrappers in front of it.
local bit = require 'bit'
local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local netns = require 'spec.support.netns'
local app = require 'spec.support.node_app'
local stock = require 'spec.support.stock'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local ONE, TWO, THREE = { versions = { '22' } }, { versions = { '18', '26' } }, { versions = { '18', '22', '26' } }

local function mode_text(path)
    return ('%o'):format(bit.band(assert(uv.fs_stat(path)).mode, tonumber('777', 8)))
end

describe('a Node worker', function()
    after_each(master.cleanup)

    versions.it('is ready and served with a socket of its own: exclusive, reusePort', function(version, binary)
        for _, option in ipairs { 'exclusive', tonumber(version) >= 24 and 'reusePort' or nil } do
            local m, port = app.start { binary = binary, workers = option == 'exclusive' and 1 or 2, plan = 'readyTimeout = 10,',
                app = ([[require('http').createServer((request, response) => response.end('ok'))
                    .listen({ port: Number(process.env.PORT), host: '127.0.0.1', %s: true })]]):format(option) }
            assert.equal(200, (http.get { port = port }))
            assert.equal(1, #m:records { msg = 'Worker listens with a socket of its own: it is not steered', workerId = 1 })
            local at = http.free_port()
            local peer = stock.start { binary = binary, dir = m.app, workers = option == 'exclusive' and 1 or 2,
                env = { PORT = tostring(at) } }
            wait.wait_until(function() return http.get { port = at } == 200 end, { what = 'the stock cluster' })
            peer:stop(wait)
            m:finish { code = 0 }
        end
    end, { versions = { '18', '22', '24', '26' } })

    versions.it('has an inspector\'s port of its own, as under stock', function(_, binary)
        local base = http.free_port()
        local m = app.start { binary = binary, app = app.http, flags = { '--inspect=127.0.0.1:' .. base } }
        local all = m.stderr
        m:wait_until(function()
            all = m.stderr
            return all:find('ws://127.0.0.1:' .. base + 1, 1, true) and all:find('ws://127.0.0.1:' .. base + 2, 1, true)
        end, 'two inspectors')
        assert.is_nil(all:find 'address already in use', all)
        m:finish { code = 0 }
    end, ONE)

    versions.it('whose wrapper keeps the channel from it is told so', function(_, binary)
        local m = app.start { binary = '/bin/sh', ready = false, workers = 1, app = app.http,
            flags = { '-c', 'exec "' .. binary .. '" "$0" 3>&-' }, plan = 'restartAttempts = 100, backoff = { first = 0.1, max = 0.1 },' }
        m:await(function(record) -- where Node does not get so far in the time it has, a later one does
            return record.msg == 'Worker exited' and (record.reason or ''):find '^it lost its channel before its program'
        end)
        m:finish {}
    end, TWO)

    versions.it('finds the sockets that the master was started with by LISTEN_FDS, if asked to', function(_, binary)
        local port = http.free_port()
        local m = app.start { binary = binary, ready = false, workers = 2, port = port, plan = 'listenFds = true,',
            wrap = { 'systemd-socket-activate', '-l', '127.0.0.1:' .. port, '--fdname=web' }, app = [[
            const { LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES } = process.env
            const server = require('http').createServer((request, response) => response.end(
                [LISTEN_FDS, LISTEN_PID == process.pid, LISTEN_FDNAMES, process.connected].join(' ')))
            if (LISTEN_FDS) server.listen({ fd: 3 })
        ]] }
        local body
        m:wait_until(function() -- the first connection starts it
            local status
            status, body = http.get { port = port }
            return status == 200
        end, 'an answer')
        assert.equal('1 true web true', body)
        m:await 'Cluster ready'
        m:finish { code = 0 }
    end, ONE)

    versions.it('shares a port for datagrams with other processes that want it so', function(version, binary)
        local other, port = uv.new_udp(), http.free_port()
        assert(other:bind('0.0.0.0', port, { reuseaddr = true })) -- as avahi
        local m = app.start { binary = binary, port = port, workers = 2, plan = 'readyTimeout = 10,', app = [[
            const dgram = require('dgram')
            const own = () => dgram.createSocket({ type: 'udp4', reuseAddr: true })
                .on('error', (error) => console.log('refused ' + error.code))
            own().bind(Number(process.env.PORT), () => own().bind(Number(process.env.PORT), () => {
                const alone = dgram.createSocket('udp4').on('error', (error) => console.log('alone ' + error.code))
                alone.bind(Number(process.env.PORT)) // who does not want it so may not
            }))
        ]] }
        m:wait_until(function()
            return table.concat(m.output, '\n'):find 'alone EADDRINUSE.*alone EADDRINUSE'
        end, 'both workers')
        table.sort(m.output)
        if version ~= '26' then -- a worker of stock dies of the second socket there
            local peer = stock.start { binary = binary, dir = m.app, env = { PORT = tostring(port) } }
            assert.same(peer:says(wait, 2), m.output)
        end
        app.roll(m)
        other:close()
        m:finish { code = 0 }
    end, TWO)

    -- Debian's /etc/hosts names ::1 in a container without IPv6 too: fastify tries it, and goes on.
    it('is told what stock is where there is no IPv6, and serves', function()
        local binary = versions.newest()
        local back = binary and netns.enter()
        if not back then
            return pending 'needs Node, and root for a network of its own'
        end
        local ok, message = pcall(function()
            assert(netns.set('net/ipv6/conf/all/disable_ipv6', 1) and netns.set('net/ipv6/conf/lo/disable_ipv6', 1))
            local source = [[
                const http = require('http'), port = Number(process.env.PORT)
                const listen = (name, ...where) => new Promise((resolve) => http.createServer((_, response) => response.end('ok'))
                    .on('error', (error) => { console.log(name + ' ' + error.code); resolve() }).listen(...where, resolve))
                listen('six', port, '::1').then(() => listen('four', port, '127.0.0.1')).then(() => listen('any', port + 1))
                    .then(() => listen('any6', port + 2, '::')).then(() => console.log('all'))
            ]]
            local m, port = app.start { binary = binary, workers = 1, app = source }
            m:await_output 'all'
            assert.same({ 200, 200 }, { (http.get { port = port }), (http.get { port = port + 1 }) })
            local peer = stock.start { binary = binary, dir = m.app, workers = 1,
                env = { PORT = tostring(http.free_port()) } }
            wait.wait_until(function() return peer.lines[#peer.lines] == 'all' end, { what = 'the stock cluster' })
            peer:stop(wait)
            assert.same(peer.lines, m.output)
            m:finish { code = 0 }
        end)
        back()
        assert(ok, message)
    end)

    local newest = versions.newest()
    if uv.getuid() ~= 0 or os.execute(('setpriv --reuid=65534 --clear-groups test -x %s'):format(newest)) ~= 0 then
        pending 'has a path of its user\'s: needs root, and a node that everybody may run'
    else
        versions.it('has a path that is its user\'s, and none where its user may not make one', function(_, binary)
            local dir = master.temp_dir()
            local own = dir .. '/own'
            assert(uv.fs_chmod(dir, tonumber('755', 8)))
            assert(uv.fs_mkdir(own, tonumber('755', 8)))
            assert(uv.fs_chown(own, 65534, 65534))
            local file = assert(io.open(dir .. '/app.js', 'w'))
            file:write [[
                const fs = require('fs'), http = require('http'), path = process.env.OWN + '/app.sock'
                const serve = () => http.createServer((request, response) => response.end('ok'))
                serve().listen(path, () => {
                    const { uid, gid } = fs.statSync(path)
                    fs.chmodSync(path, 0o660) // as apps behind nginx do
                    console.log(`owner ${uid} ${gid} ${(fs.statSync(path).mode & 0o777).toString(8)}`)
                    serve().on('error', (error) => console.log('root\'s ' + error.code)).listen(process.env.OWN + '/../app.sock')
                })
            ]]
            file:close()
            local m = app.start { binary = binary, worker = dir .. '/app.js', env = { OWN = own },
                plan = ("user = 'nobody', beforeFork = function() dutch.chdir '%s' end,"):format(dir) }
            local clients = load.start { socket = own .. '/app.sock', clients = 2, mode = 'close', rate = 50, expect = '^ok$' }
            app.roll(m)
            m:await('Worker exited', { count = 2 })
            local counts = clients:stop()
            assert.equal(0, counts.failed, counts.text)
            local seen = {}
            for _, line in ipairs(m.output) do
                seen[line] = (seen[line] or 0) + 1
            end
            local group = io.popen('id -g nobody'):read '*l'
            assert.same({ [('owner 65534 %s 660'):format(group)] = 4, ["root's EACCES"] = 4 }, seen)
            m:finish { code = 0 }
        end, TWO)
    end

    -- Up to Node 20 readableAll and writableAll are added to what the umask leaves; later ones give the path these alone.
    versions.it('gives its path the mode that stock would', function(_, binary)
        local source = [[
            const server = (path, options) => require('net').createServer().listen({ path, ...options })
            server('plain.sock', {})
            server('r.sock', { readableAll: true })
            server('w.sock', { writableAll: true })
            server('rw.sock', { readableAll: true, writableAll: true })
        ]]
        local function modes(dir)
            local list = {}
            for i, name in ipairs { 'plain', 'r', 'w', 'rw' } do
                local path = dir .. '/' .. name .. '.sock'
                wait.wait_until(function() return uv.fs_stat(path) end, { what = path })
                list[i] = mode_text(path)
            end
            return table.concat(list, ' ')
        end
        local m = app.start { binary = binary, app = source, workers = 1 }
        local ours = modes(m.app)
        local dir = master.temp_dir()
        local file = assert(io.open(dir .. '/app.js', 'w'))
        file:write(source)
        file:close()
        local peer = stock.start { binary = binary, dir = dir, workers = 1 }
        wait.wait_until(function() return uv.fs_stat(dir .. '/rw.sock') end, { what = 'the stock cluster' })
        wait.let_run(100) -- its chmod comes after the bind
        local theirs = modes(dir)
        peer:stop(wait)
        m:finish { code = 0 }
        assert.equal(theirs, ours)
    end)

    -- The second worker unlinks what the first one listens on: stock loses the path by that, and this master binds it anew.
    versions.it('may unlink its path before it listens there, and change its mode', function(_, binary)
        local source = [[
            const fs = require('fs'), id = require('cluster').worker.id
            const server = require('http').createServer((request, response) => response.end('ok'))
            function listen() {
                const gone = Date.now()
                try { fs.unlinkSync('app.sock') } catch {}
                server.listen('app.sock', () => {
                    if (fs.existsSync('app.sock')) fs.chmodSync('app.sock', 0o660)
                    fs.appendFileSync('gone', (Date.now() - gone) + '\n')
                    console.log('listens')
                })
            }
            const start = () => id === 1 || fs.existsSync('gone') ? listen() : setTimeout(start, 20)
            start()
        ]]
        local function seen(dir)
            local path = dir .. '/app.sock'
            local status, body = http.get { socket = path }
            return { status, body, uv.fs_stat(path) and mode_text(path) }
        end
        for workers = 1, 2 do
            local m = app.start { binary = binary, workers = workers, app = source }
            m:wait_until(function() return #m.output == workers end, 'all of them to listen')
            local ours = seen(m.app)
            assert.same({ 200, 'ok', '660' }, ours)
            if workers == 2 then
                local clients = load.start { socket = m:path 'app.sock', clients = 1, mode = 'close', rate = 50 }
                for _ = 1, 3 do
                    app.roll(m)
                end
                local counts = clients:stop()
                -- Between the app's unlink and our answer there may be no path: a client, one in 20 ms, may come just then.
                local most = 0
                for ms in io.lines(m:path 'gone') do
                    most = most + tonumber(ms) / 20 + 2
                end
                assert(counts.failed <= most and counts.failed == counts.refused and counts.ok > 10, counts.text)
                assert.same(ours, seen(m.app))
            end
            local dir = master.temp_dir()
            local file = assert(io.open(dir .. '/app.js', 'w'))
            file:write(source)
            file:close()
            local peer = stock.start { binary = binary, dir = dir, workers = workers }
            wait.wait_until(function() return #peer.lines == workers end, { what = 'the stock cluster' })
            local theirs = seen(dir)
            peer:stop(wait)
            m:finish { code = 0 }
            assert.same(workers == 1 and ours or { [2] = 'ENOENT' }, theirs)
        end
    end, THREE)

    -- As without a cluster: stock cuts the path off (18, 22), or refuses it (26).
    versions.it('may have a long path', function(_, binary)
        local dir = ('deep/'):rep(30)
        local m = app.start { binary = binary, workers = 1, files = { [dir .. '.keep'] = '', ['app.js'] = ([[
            process.chdir(__dirname + '/%s')
            require('http').createServer().listen('app.sock', () => console.log('is there ' + require('fs').existsSync('app.sock')))
        ]]):format(dir) } }
        m:await_output 'is there true'
        app.roll(m)
        m:finish { code = 0 }
    end, THREE)
end)
