-- The page of `dutch-master web`: who may see it, and what a real browser makes of it.

local bit = require 'bit'
local cjson = require 'cjson'
local uv = require 'luv'
local browser = require 'spec.support.browser'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local TALKER = [[
    local worker = require 'dutch-master.worker'
    io.stderr:write('<img src=x onerror="document.title=1"><script>alert(1)</script> worker ' .. worker.id .. '\n')
    worker.ready()
]]

local SCRIPT = "require('dutch-master').start { worker = 'app.lua', ready = 'message', numWorkers = %d, "
    .. 'restartSoak = 0.2 }'

local function start(workers, keeper)
    local m = master.start {
        script = SCRIPT:format(workers or 2), files = { ['app.lua'] = TALKER }, keeper = keeper,
    }
    m:await 'Cluster ready'
    return m
end

local function start_web(m, ...)
    local port = http.free_port()
    local c = cli.start(m, { 'web', '--listen', '127.0.0.1:' .. port, ... })
    c:await_output 'dutch%-master web: http://'
    return c, port
end

local function stop(c)
    c:kill 'sigterm'
    c:wait()
end

--- The head and body of an answer, by curl.
local function ask(m, port, path, ...)
    local url = ('http://127.0.0.1:%d%s'):format(port, path)
    local c = cli.run(m, { '-si', '--max-time', '10', url, ... }, { program = 'curl' })
    local status = tonumber(c.out:match '^HTTP/1.1 (%d+)')
    return status, c.out
end

--- What /events sent: how often each kind came, and what was there when it was asked for the first time.
local function read_events(text)
    local seen = {}
    for kind, data in text:gmatch 'event: (%l+)\ndata: ([^\n]*)\n' do
        seen[kind] = kind == 'init' and cjson.decode(data).masters[1] or (seen[kind] or 0) + 1
    end
    return seen
end

describe('web', function()
    after_each(function()
        browser.cleanup()
        master.cleanup()
    end)

    it('answers whoever is on this machine and names it rightly, and changes nothing', function()
        local m = start()
        local c, port = start_web(m)
        local status, text = ask(m, port, '/')
        assert.equal(200, status)
        assert.matches("content%-security%-policy: default%-src 'none'; script%-src 'self'", text)
        assert.matches('x%-content%-type%-options: nosniff', text)
        -- What a page of somebody else could try.
        assert.equal(421, (ask(m, port, '/', '-H', 'Host: evil.example')))
        assert.equal(421, (ask(m, port, '/events', '-H', 'Host: evil.example:' .. port)))
        assert.equal(403, (ask(m, port, '/metrics', '-H', 'Origin: http://evil.example')))
        assert.equal(200, (ask(m, port, '/metrics', '-H', 'Origin: http://127.0.0.1:' .. port)))
        assert.equal(405, (ask(m, port, '/', '-X', 'POST')))
        assert.equal(404, (ask(m, port, '/../etc/passwd', '--path-as-is')))
        m:wait_until(function()
            text = select(2, ask(m, port, '/metrics'))
            return text:find 'dutch_master_workers_serving{[^}]*} 2'
        end, 'the numbers')
        assert.matches('content%-type: text/plain; version=0.0.4', text)
        assert.falsy(text:find '# EOF')
        text = select(2, ask(m, port, '/metrics', '-H', 'Accept: application/openmetrics-text;version=1.0.0'))
        assert.matches('content%-type: application/openmetrics%-text; version=1.0.0', text)
        assert.matches('\n# EOF\n$', text)
        stop(c)
        m:finish()
    end)

    it('wants a token elsewhere than on loopback', function()
        local m = start(1)
        local c = cli.run(m, { 'web', '--listen', '0.0.0.0:' .. http.free_port() })
        assert.equal(2, c.code)
        assert.matches('token%-file is needed', c.err)
        m:rewrite('token', 'short\n')
        c = cli.run(m, { 'web', '--token-file', m:path 'token' })
        assert.same({ 1, true }, { c.code, c.err:find 'at least 16' ~= nil })
        local token = ('a1'):rep(16)
        m:rewrite('token', token .. '\n')
        local port
        c, port = start_web(m, '--token-file', m:path 'token')
        assert.falsy(c.out:find(token, 1, true))
        assert.equal(401, (ask(m, port, '/')))
        assert.equal(401, (ask(m, port, '/?token=' .. ('b1'):rep(16))))
        assert.equal(200, (ask(m, port, '/metrics', '-H', 'Authorization: Bearer ' .. token)))
        local status, text = ask(m, port, '/?token=' .. token)
        assert.equal(303, status)
        assert.matches('set%-cookie: dutch_master=' .. token .. '; Path=/; HttpOnly; SameSite=Strict', text)
        assert.equal(200, (ask(m, port, '/', '-H', 'Cookie: dutch_master=' .. token)))
        stop(c)
        m:finish()
    end)

    it('can be had on a unix socket that only its user may use', function()
        local m = start(1)
        local path = m:path 'web.sock'
        for _ = 1, 2 do -- the second time over what the first one left
            local c = cli.start(m, { 'web', '--listen', 'unix:' .. path })
            c:await_output 'unix:/'
            assert.equal('600', ('%o'):format(bit.band(uv.fs_stat(path).mode, tonumber('777', 8))))
            local answer = cli.run(m, { '-s', '--unix-socket', path, 'http://anything/metrics' }, { program = 'curl' })
            assert.equal(0, answer.code)
            stop(c)
        end
        m:finish()
    end)

    it('says what is wrong with an address', function()
        local m = start(1)
        for _, address in ipairs { 'here', '127.0.0.1', '127.0.0.1:99999', 'unix:x' } do
            local c = cli.run(m, { 'web', '--listen', address })
            assert.equal(2, c.code)
            assert.matches('expected host:port or unix:/path, found "' .. address:gsub('%p', '%%%0'), c.err)
        end
        local c, port = start_web(m)
        local second = cli.run(m, { 'web', '--listen', '127.0.0.1:' .. port })
        assert.equal(1, second.code)
        assert.matches('127.0.0.1:' .. port .. ': .*in use', second.err)
        stop(c)
        m:finish()
    end)

    it('sends an open page nothing twice, neither while nobody writes nor when another master follows', function()
        local m = start(1, true)
        local c, port = start_web(m)
        m:wait_until(function()
            return #read_events(select(2, ask(m, port, '/events', '--max-time', '1'))).init.lines == 1
        end, 'the line')
        local open = cli.start(m, { '-sN', ('http://127.0.0.1:%d/events'):format(port) }, { program = 'curl' })
        open:await_output 'event: init.*event: status'
        wait.let_run(4000)
        local seen = read_events(open.out)
        assert.same({ 1, 0, 0 }, { #seen.init.lines, seen.line or 0, seen.record or 0 })
        uv.kill(m:process_pid(), 'sigkill')
        open:await_output 'event: record\n[^\n]*this one has taken over'
        assert.is_nil(read_events(open.out).line)
        open:kill 'sigterm'
        open:wait()
        stop(c)
        m:finish()
    end)

    it('shows a browser what there is, live, and what a worker wrote stays text', function()
        if not versions.binary '22' then
            return pending 'Node 22 is not installed, see spec/support/install-node'
        end
        local m = start(2)
        local c, port = start_web(m)
        local page = browser.open(('http://127.0.0.1:%d/'):format(port), versions.binary '22')
        local results = page:run {
            { width = 1280, scheme = 'light' },
            { wait = "document.querySelectorAll('#workers tr').length === 2" },
            { wait = "document.querySelectorAll('#lines div').length === 2" },
            { eval = "document.getElementById('state').textContent" },
            { eval = "[...document.querySelectorAll('#lines div')].map((d) => d.textContent.slice(12)).sort()[0]" },
            { eval = "document.querySelectorAll('img').length + document.querySelectorAll('#lines script').length" },
            { width = 360, scheme = 'dark' },
            { eval = 'document.documentElement.scrollWidth <= 360' },
            { eval = 'getComputedStyle(document.body).backgroundColor' },
            { key = 'l' },
            { wait = "/Cluster ready/.test(document.getElementById('lines').textContent)" },
            { key = '/' },
            { eval = 'document.activeElement.id' },
        }
        assert.equal('steady', results[1])
        assert.matches('worker 1<img src=x onerror="document.title=1"><script>alert%(1%)</script> worker 1', results[2])
        assert.same({ 0, true, 'rgb(16, 20, 26)', 'filter' }, { results[3], results[4], results[5], results[6] })
        -- A restart as it happens, its verdict and the exits.
        assert.equal(0, cli.run(m, { 'restart', '--wait' }).code)
        results = page:run {
            { wait = "/generation 2/.test(document.getElementById('restart-text').textContent) && "
                .. "/is done/.test(document.getElementById('restart-text').textContent)" },
            { wait = "document.querySelectorAll('#exits details').length === 2" },
            { eval = "[...document.querySelectorAll('#exits details')].map((d) => d.textContent)" },
        }
        table.sort(results[1])
        assert.matches('^Worker 1 .* left as it should.*A new worker had taken its place', results[1][1])
        -- All that can be used is reached by the keyboard, and is seen to be.
        local steps, reached = { { width = 1280 }, { eval = 'document.activeElement.blur()' } }, {}
        for _ = 1, 15 do
            steps[#steps + 1] = { key = 'Tab' }
            steps[#steps + 1] = { eval = "getComputedStyle(document.activeElement).outlineStyle + ' ' + "
                .. '(document.activeElement.id || document.activeElement.tagName)' }
        end
        for _, text in ipairs { unpack(page:run(steps), 2) } do
            reached[text] = true
        end
        for _, text in ipairs { 'A', 'BUTTON', 'SUMMARY', 'tab-events', 'filter', 'pause', 'lines' } do
            assert.is_true(reached['solid ' .. text], text)
        end
        -- The master goes and says nothing: so does the page.
        page:run { { wait = "document.getElementById('state').textContent === 'steady'" } }
        m:signal 'SIGTERM'
        page:run { { wait = "document.getElementById('state').textContent === 'not running'" } }
        page:close()
        stop(c)
        m:finish()
    end)
end)
