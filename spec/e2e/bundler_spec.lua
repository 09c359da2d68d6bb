-- A master that was started by `bundle exec` in a release that is pruned: the script of examples/capistrano, and the
-- real Bundler.

local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local master = require 'spec.support.master'

local CLEARED = 'workerEnvironment = {%s-BUNDLE_GEMFILE[^\n]*\n%s*},'

describe('a master that bundle exec started', function()
    after_each(master.cleanup)

    it('outlives the release that it was started in, by the workerEnvironment of the example', function()
        for _, program in ipairs { 'bundle', 'puma' } do
            if os.execute('command -v ' .. program .. ' >/dev/null') ~= 0 then
                return pending(program .. ' is not installed')
            end
        end
        local port, releases = http.free_port(), master.temp_dir()
        local file = assert(io.open 'examples/capistrano/master.lua')
        local script = file:read '*a'
        file:close()
        local count
        script, count = script:gsub("worker = 'app.lua'", ([[
            worker = dutch.puma { command = { 'bundle', 'exec', 'puma' }, args = { '--quiet' } }, restartSoak = 0.2,
            listen = '127.0.0.1:%d']]):format(port))
        assert.equal(1, count)
        script, count = script:gsub('/srv/my%-app/current', releases .. '/current')
        assert.equal(2, count) -- one is in a comment
        script = script:gsub('numWorkers = 2', 'numWorkers = 1'):gsub('restartAttempts = 3', 'restartAttempts = 1')
        assert.truthy(script:find(CLEARED))

        local function write(path, text)
            local out = assert(io.open(releases .. '/' .. path, 'w'))
            out:write(text)
            out:close()
        end
        local function release(number, text)
            assert.equal(0, os.execute(("mkdir '%s/%d'"):format(releases, number)))
            write(number .. '/Gemfile', "gem 'puma'\n")
            write(number .. '/master.lua', text)
            write(number .. '/config.ru',
                ("run ->(env) { [200, { 'Content-Length' => '1' }, ['%d']] }\n"):format(number))
            assert.equal(0, os.execute(("cd '%s/%d' && bundle install --local --quiet >/dev/null 2>&1 && ln -sfn %d "
                .. '../current.new && mv -fT ../current.new ../current'):format(releases, number, number)))
        end

        release(1, script)
        local m = master.start {
            script_path = releases .. '/current/master.lua', cwd = releases .. '/1',
            wrap = { 'bundle', 'exec' }, env = { HOME = releases, PUMA_DEBUG = false },
        }
        m:await 'Cluster ready'
        assert.equal('1', (select(2, http.get { port = port })))
        local environ = assert(io.open(('/proc/%d/environ'):format(m.pid)))
        assert.truthy(('\0' .. environ:read '*a'):find('\0BUNDLE_GEMFILE=' .. releases .. '/1/Gemfile', 1, true))
        environ:close()

        release(2, script)
        assert.equal(0, os.execute(("rm -r '%s/1'"):format(releases)))
        local named = { '--wait', releases .. '/current/master.lua' }
        local c = cli.run(m, { 'restart', unpack(named) })
        assert.equal(0, c.code, c.out .. c.err .. m:dump())
        assert.equal('2', (select(2, http.get { port = port })))

        -- Without these lines every release fails from now on, and the verdict says what it lacks.
        release(3, (script:gsub(CLEARED, '')))
        c = cli.run(m, { 'restart', unpack(named) })
        assert.equal(10, c.code, c.out .. c.err)
        assert.matches(releases:gsub('%p', '%%%0') .. '/1/Gemfile', c.err)
        assert.equal('2', (select(2, http.get { port = port })))
        m:finish()
    end)
end)
