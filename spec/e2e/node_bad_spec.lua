-- Node workers that cannot start: each reason told apart, in words.
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
            dutch.start { numWorkers = 1, readyTimeout = 3, restartAttempts = 1, %s }
        ]]):format(table.concat(lines, '\n')),
        files = options.files,
    }
end

versions.each(function(version, binary)
    describe('a cluster that cannot start on Node ' .. version, function()
        after_each(master.cleanup)
        local interpreter = ("{ '%s' }"):format(binary)

        it('says that there is no node', function()
            local m = start { files = { ['app.js'] = '' }, plan = {
                worker = "'app.js'", workerEnvironment = "{ PATH = '/nowhere:/usr/none' }",
            } }
            local record = m:await(function(each) return each.msg:find 'could not be started' end)
            assert.equal('exec', record.step)
            assert.equal('ENOENT', record.code)
            assert.matches('node', record.msg)
            m:finish()
        end)

        it('says that the script is missing, or unreadable as a file', function()
            for _, worker in ipairs { "'missing.js'", "'dir.js'" } do
                local m = start {
                    files = { ['dir.js/x'] = '' }, plan = { worker = worker, interpreter = interpreter },
                }
                local record = m:await(function(each) return each.msg:find 'could not be started' end)
                assert.equal('script', record.step)
                assert.matches(worker:match '%a+%.js', record.msg)
                m:finish()
            end
        end)

        it('says that the directory is gone', function()
            local m = start { files = { ['app.js'] = '' }, plan = {
                worker = "'app.js'", interpreter = interpreter,
                beforeFork = "function() dutch.chdir '/no/such/release' end",
            } }
            local record = m:await(function(each)
                return each.level >= 40 and each.msg:find('/no/such/release', 1, true)
            end)
            assert.is_truthy(record)
            m:finish()
        end)

        it('does not take "online" for readiness of an app with a syntax error', function()
            local m = start { files = { ['app.js'] = 'this is no JavaScript' }, plan = {
                worker = "'app.js'", interpreter = interpreter,
            } }
            local exited = m:await('Worker exited', { timeout = 5000 })
            assert.equal(1, exited.code)
            assert.equal(0, #m:records 'Worker listening')
            assert.equal(0, #m:records 'Cluster ready')
            m:finish()
        end)

        it('suspects a launcher when an app never asks for its socket', function()
            local m = start { files = {
                ['launcher.js'] = "require('child_process').spawn(process.execPath, ['app.js'], { stdio: 'inherit' })",
                ['app.js'] = "require('http').createServer().listen(0)",
            }, plan = { worker = "'launcher.js'", interpreter = interpreter } }
            local record = m:await(function(each) return each.msg:find 'was not ready in time' end)
            assert.matches('launcher', record.msg)
            m:finish()
        end)
    end)
end, { '16', '22', '26' })
