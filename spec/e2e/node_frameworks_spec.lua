-- Releases of all sorts in the frameworks that people use: the verdict of each restart, what the clients saw meanwhile.
-- Prints a table. No verdict may be wrong, no request fail.
local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local versions = require 'spec.support.node_versions'
local wait = require 'spec.support.wait'

local SOAK_MS = 600
-- A good release may take long on a busy machine; those that come to nothing need not.
local READY_S, SHORT_S = 60, 3

-- `how` is the release's way; begin(listen) calls listen(port) when that way is to listen.
local PRELUDE = [[
    const how = require('fs').readFileSync(__dirname + '/how', 'utf8')
    const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
    const begin = async (listen) => {
        if (how === 'fails at boot') throw new Error('not today')
        if (how === 'never listens') return setInterval(() => {}, 1000)
        if (how === 'slow good' || how === 'fails late') await pause(800)
        if (how === 'fails late') throw new Error('not today')
        await listen(Number(how === 'other port' ? process.env.OTHER : process.env.PORT))
        if (how === 'ready, then crashes') setTimeout(() => process.exit(3), 200)
    }
]]

local FRAMEWORKS = {
    { 'express', 'express5', [[
        const server = require('express')().get('/', (request, response) => response.send('works'))
        begin((port) => server.listen(port))
    ]] },
    { 'fastify', 'packages', [[
        const server = require('fastify')().get('/', async () => 'works')
        begin((port) => server.listen({ port, host: '0.0.0.0' }))
    ]] },
    { 'koa', 'packages', [[
        const Koa = require('koa')
        begin((port) => new Koa().use((context) => { context.body = 'works' }).listen(port))
    ]] },
    { 'hapi', 'frameworks', [[
        begin(async (port) => {
            const server = require('@hapi/hapi').server({ port, host: '0.0.0.0' })
            server.route({ method: 'GET', path: '/', handler: () => 'works' })
            await server.start()
        })
    ]] },
    { 'nest', 'frameworks', [[
        require('reflect-metadata')
        const { Module, Controller, Get } = require('@nestjs/common')
        class Works { get() { return 'works' } }
        Get('/')(Works.prototype, 'get', Object.getOwnPropertyDescriptor(Works.prototype, 'get'))
        Controller()(Works)
        class Root {}
        Module({ controllers: [Works] })(Root)
        begin(async (port) => {
            const server = await require('@nestjs/core').NestFactory.create(Root, { logger: false })
            server.enableShutdownHooks()
            await server.listen(port)
        })
    ]] },
    { 'next', 'frameworks', [[
        begin(async (port) => {
            const server = require('next')({ dev: false, dir: process.env.NEXT_APP })
            const handle = server.getRequestHandler()
            await server.prepare()
            require('http').createServer((request, response) => handle(request, response)).listen(port)
        })
    ]], path = '/api/works' },
    { 'socket.io', 'packages', [[
        const server = require('http').createServer((request, response) => response.end('works'))
        new (require('socket.io').Server)(server)
        begin((port) => server.listen(port))
    ]] },
}

local RELEASES = {
    { 'good', 'done' }, { 'slow good', 'done' }, { 'fails at boot', 'aborted' }, { 'fails late', 'aborted' },
    { 'other port', 'aborted', SHORT_S }, { 'never listens', 'aborted', SHORT_S }, { 'ready, then crashes', 'aborted' },
}

local function is_verdict(record)
    return record.msg == 'Restart complete' or record.msg:find '^Restart aborted' ~= nil
end

local function rows_of(framework, binary, rows)
    local name, modules, source = unpack(framework)
    local cache = versions.modules(modules)
    local m, port = app.start {
        binary = binary, workers = 1, modules = cache, files = { ['app.js'] = PRELUDE .. source, how = 'good' },
        env = { OTHER = tostring(http.free_port()), NODE_ENV = 'production', NEXT_TELEMETRY_DISABLED = '1',
            NEXT_APP = cache:match '^(.*)/[^/]*$' .. '/next-app' },
        plan = ('restartAttempts = 1, readyTimeout = %g, restartSoak = %g, stopTimeout = 8, killTimeout = 2,'):format(
            READY_S, SOAK_MS / 1000),
    }
    local file = assert(io.open(m.script))
    local script = file:read '*a'
    file:close()
    for _, release in ipairs(RELEASES) do
        local clients = load.start { port = port, path = framework.path, clients = 2, mode = 'keepalive', rate = 60,
            expect = 'works' }
        clients:await(2)
        m:rewrite('how', release[1])
        m:rewrite('master.lua', (script:gsub('readyTimeout = %d+', 'readyTimeout = ' .. (release[3] or READY_S))))
        local mark = m:mark()
        m:signal 'SIGUSR2'
        local verdict = m:await(is_verdict, { after = mark, timeout = 90000 })
        clients:await(clients.counts.total + 4)
        local counts = clients:stop()
        rows[#rows + 1] = { framework = name, release = release[1], wanted = release[2],
            verdict = verdict.msg == 'Restart complete' and 'done' or 'aborted', failed = counts.failed,
            slowest_ms = counts.max_ms, text = counts.text, reason = verdict.reason }
    end
    m:finish { code = 0 }
end

describe('releases of Node frameworks', function()
    after_each(master.cleanup)

    local binary = versions.binary '22'
    if not binary then
        return pending 'Node 22 is not installed, see spec/support/install-node'
    end

    it('get the verdict that is true, and cost nobody a request', function()
        local rows, list, missing = {}, {}, {}
        for i, framework in ipairs(FRAMEWORKS) do
            if os.getenv 'DM_SANITIZE' and i > 2 then
                break -- to our program all of them are the same
            end
            local cache = versions.modules(framework[2])
            if cache and (framework[1] ~= 'next' or uv.fs_stat(cache .. '/../next-app/.next/BUILD_ID')) then
                list[#list + 1] = { framework[1], function()
                    rows_of(framework, binary, rows)
                end }
            else
                missing[#missing + 1] = framework[1]
            end
        end
        wait.together(list, 4)
        table.sort(rows, function(a, b)
            return a.framework < b.framework
        end)
        print(('\n%-10s %-20s %-8s %6s %8s'):format('framework', 'release', 'verdict', 'failed', 'slowest'))
        for _, row in ipairs(rows) do
            print(('%-10s %-20s %-8s %6d %5d ms'):format(row.framework, row.release, row.verdict, row.failed, row.slowest_ms))
        end
        for _, row in ipairs(rows) do
            local what = row.framework .. ', ' .. row.release .. ': '
            assert.equal(what .. row.wanted, what .. row.verdict, row.reason)
            assert.equal(what .. 0, what .. row.failed, row.text)
        end
        assert.equal(#RELEASES * #list, #rows)
        if #missing > 0 then
            pending('not installed, see spec/support/install-node: ' .. table.concat(missing, ', '))
        end
    end)
end)
