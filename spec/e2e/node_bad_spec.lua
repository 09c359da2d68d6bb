-- Node workers that cannot start: each reason told apart, in words. The boot fails by it: the words are on stderr too.
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'

local function start(options)
    local lines = {}
    for name, value in pairs(options.plan) do
        lines[#lines + 1] = ('%s = %s,'):format(name, value)
    end
    return master.start {
        script = ([[
            local dutch = require 'dutch-master'
            dutch.start { numWorkers = 1, readyTimeout = 5, restartAttempts = 1, %s }
        ]]):format(table.concat(lines, '\n')),
        files = options.files,
    }
end

local function only(binary)
    return ("{ '%s' }"):format(binary)
end

-- The boot has failed, with this reason (a pattern) in the log and on stderr.
local function failed(m, reason)
    m:exit()
    local fatal = m:records { level = 60 }
    assert.equal(1, #fatal, m:dump())
    for _, text in ipairs { fatal[1].msg, m.stderr } do
        assert.matches('Boot failed: worker of slot 1 failed 1 time, and none was ever ready: ' .. reason, text)
    end
    m:finish { code = 1 }
end

describe('a cluster of a Node app that cannot start', function()
    after_each(master.cleanup)
    it('says that there is no node', function()
        local m = start { files = { ['app.js'] = '' }, plan = {
            worker = "'app.js'", workerEnvironment = "{ PATH = '/nowhere:/usr/none' }",
        } }
        local record = m:await(function(each) return each.msg:find 'could not be started' end)
        assert.equal('exec', record.step)
        assert.equal('ENOENT', record.code)
        assert.matches('node', record.msg)
        failed(m, 'could not be started: node: not found in PATH %(/nowhere:/usr/none%)')
    end)

    versions.it('says that the script is missing, or unreadable as a file', function(_, binary)
        for _, worker in ipairs { "'missing.js'", "'dir.js'" } do
            local m = start {
                files = { ['dir.js/x'] = '' }, plan = { worker = worker, interpreter = only(binary) },
            }
            local record = m:await(function(each) return each.msg:find 'could not be started' end)
            assert.equal('script', record.step)
            assert.matches(worker:match '%a+%.js', record.msg)
            failed(m, 'could not be started: the worker: ' .. worker:match '%a+%.js')
        end
    end)

    versions.it('says that the directory is gone', function(_, binary)
        local m = start { files = { ['app.js'] = '' }, plan = {
            worker = "'app.js'", interpreter = only(binary),
            beforeFork = "function() dutch.chdir '/no/such/release' end",
        } }
        local record = m:await(function(each)
            return each.level >= 40 and each.msg:find('/no/such/release', 1, true)
        end)
        assert.is_truthy(record)
        failed(m, 'could not be started: its directory: /no/such/release')
    end)

    versions.it('does not take "online" for readiness of an app with a syntax error', function(_, binary)
        local m = start { files = { ['app.js'] = 'this is no JavaScript' }, plan = {
            worker = "'app.js'", interpreter = only(binary), readyTimeout = '30',
        } }
        local exited = m:await 'Worker exited'
        assert.equal(1, exited.code)
        assert.equal(0, #m:records 'Worker listening')
        assert.equal(0, #m:records 'Cluster ready')
        failed(m, 'exited with code 1')
        assert.matches('the last words of worker 1 %(pid %d+%):\n.*SyntaxError', m.stderr)
    end)

    versions.it('suspects a launcher when an app never asks for its socket', function(_, binary)
        local m = start { files = {
            ['launcher.js'] = "require('child_process').spawn(process.execPath, ['app.js'], { stdio: 'inherit' })",
            ['app.js'] = "require('http').createServer().listen(0)",
        }, plan = { worker = "'launcher.js'", interpreter = only(binary) } }
        local record = m:await(function(each) return each.msg:find 'was not ready in time' end)
        assert.matches('launcher', record.msg)
        failed(m, 'was not ready within 5 s')
    end, { at_once = #versions.all })

    -- A launcher that is Node itself takes the channel away from the app, which then binds its port by itself.
    it('suspects npm start', function()
        if os.execute 'command -v npm >/dev/null && command -v node >/dev/null' ~= 0 then
            pending 'needs npm and node'
            return
        end
        local npm = assert(io.popen('command -v npm')):read '*l'
        local m = start { files = {
            ['package.json'] = '{ "name": "x", "version": "1.0.0", "private": true, "scripts": { "start": "node app.js" } }',
            ['app.js'] = [[
                require('http').createServer().listen(0, '127.0.0.1', () => console.log('the app listens by itself'))
            ]],
        }, plan = {
            worker = ("'%s'"):format(npm), kind = "'node'", args = "{ 'start' }", readyTimeout = '6',
            workerEnvironment = "{ npm_config_update_notifier = 'false', npm_config_cache = './npm' }",
        } }
        m:await_output('the app listens by itself', { timeout = 30000 })
        local record = m:await(function(each) return each.msg:find 'was not ready in time' end, { timeout = 30000 })
        assert.matches('it never asked for a socket', record.msg)
        assert.matches('npm start', record.msg)
        assert.equal(0, #m:records 'Worker listening')
        failed(m, 'was not ready within 6 s')
    end)
end)
