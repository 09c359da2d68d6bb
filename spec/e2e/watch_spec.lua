-- `dutch-master master.lua --watch`: a restart on changes, with its verdict.

local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local master = require 'spec.support.master'

local function app(answer)
    return ([[require('dutch-master.http').serve(os.getenv 'LISTEN', function(_, response)
        response:send '%s' end)]]):format(answer)
end

local function start(port, args)
    local m = master.start {
        script = ([[require('dutch-master').start { worker = 'app.lua', numWorkers = 1, restartSoak = 0,
            backoff = { first = 0.05 }, workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]):format(port),
        files = { ['app.lua'] = app 'one', ['lib/x.lua'] = 'return 1' }, args = args,
    }
    m:await 'Cluster ready'
    return m
end

local function await_stderr(m, pattern)
    m:wait_until(function()
        return m.stderr:find(pattern)
    end, pattern .. ' on stderr')
end

describe('--watch', function()
    after_each(master.cleanup)

    it('restarts when something below the script has changed, once, and says what came of it', function()
        local port = http.free_port()
        local m = start(port, { '--watch' })
        for i = 1, 3 do
            m:rewrite('lib/x.lua', 'return ' .. i)
            m:rewrite('app.lua', app 'two')
        end
        await_stderr(m, 'Restart done %(generation 2, 1 of 1 replaced')
        assert.matches('dutch%-master: [^\n]+ has changed, restarting\n', m.stderr)
        assert.equal('two', (select(2, http.get { port = port })))
        -- What is written while it works, and what no app is made of, starts nothing.
        m:rewrite('app.log', 'x')
        m:rewrite('.hidden/file', 'x')
        m:rewrite('app.lua', "error 'a typing mistake'")
        await_stderr(m, 'Restart aborted: the old release goes on serving')
        assert.matches('a typing mistake', m.stderr)
        assert.equal('two', (select(2, http.get { port = port })))
        local _, count = m.stderr:gsub('has changed, restarting', '')
        assert.equal(2, count)
        m:finish()
    end)

    it('looks at the paths that are named alone, and refuses one that is not there', function()
        local port = http.free_port()
        local c = cli.run(nil, { '/dev/null', '--watch', '/nowhere/at/all' })
        assert.equal(2, c.code)
        assert.matches('%-%-watch: /nowhere/at/all: no such file or directory', c.err)
        local m = start(port, { '--watch', 'lib' })
        m:rewrite('app.lua', app 'two')
        m:rewrite('lib/x.lua', 'return 2')
        await_stderr(m, 'Restart done')
        assert.matches('x.lua[%w.]* has changed', m.stderr)
        m:finish()
    end)
end)
