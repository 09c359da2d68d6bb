-- examples/express, as it is in the tree, on Express 4 and 5.
local uv = require 'luv'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local versions = require 'spec.support.node_versions'

local function read(name)
    local file = assert(io.open('examples/express/' .. name))
    local text = file:read '*a'
    file:close()
    return text
end

local function port_is_free(port)
    local handle = uv.new_tcp()
    local free = handle:bind('::', port) and handle:listen(1, function() end)
    handle:close()
    uv.run 'nowait'
    return free
end

local PORT = 8000 -- the app has it written in it, that is the point of it

-- An old and a new one for each, and the one of the sanitized run; node_apps_spec has all of them.
local versions_of = { express4 = { '16', '24' }, express5 = { '18', '22', '26' } }

for _, express in ipairs { 'express4', 'express5' } do
    versions.each(function(version, binary)
        local modules = versions.modules(express)
        if not modules then
            pending(('examples/express (%s is not installed, see spec/support/install-node)'):format(express))
            return
        end
        describe(('examples/express with %s on Node %s'):format(express, version), function()
            after_each(master.cleanup)
            local node_dir = binary:match '^(.*)/'

            it('serves, rolls to the release that `current` names, and stops', function()
                if not port_is_free(PORT) then
                    pending('port 8000 is taken')
                    return
                end
                local m = master.start {
                    script = read 'master.lua',
                    files = {
                        ['releases/1/app.js'] = read 'app.js',
                        ['releases/2/app.js'] = (read 'app.js'):gsub('Hello world', 'Hello again'),
                    },
                    env = { PATH = node_dir .. ':' .. os.getenv 'PATH', RELEASES = false },
                    wrap = { 'sh', '-c', 'export RELEASES="$PWD/releases"; exec "$0" "$@"' },
                }
                assert(uv.fs_symlink(modules, m:path 'releases/node_modules'))
                assert(uv.fs_symlink('1', m:path 'releases/current'))
                local ready = m:await('Cluster ready', { timeout = 20000 })
                assert.equal('express-example', ready.name)
                local status, body = http.get { port = PORT }
                assert.equal(200, status)
                assert.equal('Hello world', body)
                local clients = load.start { port = PORT, mode = 'keepalive', clients = 8 }
                clients:await(20)
                assert(uv.fs_symlink('2', m:path 'releases/next'))
                assert(uv.fs_rename(m:path 'releases/next', m:path 'releases/current'))
                app.roll(m)
                local counts = clients:stop()
                assert.equal(0, counts.failed, counts.text)
                for _ = 1, 5 do
                    assert.equal('Hello again', select(2, http.get { port = PORT }))
                end
                m:finish { code = 0 }
            end)
        end)
    end, versions_of[express])

    local modules = versions.modules(express)
    if modules then
        describe(('examples/express with %s'):format(express), function()
            after_each(master.cleanup)

            versions.it('replaces the worker that met an error it did not expect, and answers 500', function(_, binary)
                local m, port = app.start {
                    binary = binary, files = { ['app-restart.js'] = read 'app-restart.js' }, worker = 'app-restart.js',
                    modules = modules,
                }
                for i, path in ipairs { '/now', '/later' } do
                    assert.equal(500, (http.get { port = port, path = path }))
                    m:await('Worker dying', { count = i })
                    m:await('Worker exited', { count = i })
                    assert.equal(200, (http.get { port = port }))
                end
                assert.equal(4, #m:records 'Worker listening')
                m:finish { code = 0 }
            end, { versions = { '22' } })
        end)
    end
end
