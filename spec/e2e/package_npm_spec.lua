-- The npm package: its command runs in a fresh directory, with nothing of ours beside it.

local uv = require 'luv'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local master = require 'spec.support.master'

local LIMIT = { timeout = 180000 } -- it is compiled anew

local function must(text, options)
    options = options or {}
    options.program = 'sh'
    local c = cli.start(nil, { '-ec', text }, options):wait(LIMIT)
    assert.equal(0, c.code, text .. '\n' .. c.out .. c.err)
    return c.out
end

describe('the npm package', function()
    after_each(master.cleanup)
    if os.getenv 'DM_SANITIZE' then
        return pending 'is made of a build without sanitizers'
    end

    it('has a command that needs nothing else installed', function()
        local dir = master.temp_dir()
        must(("src/package/npm/pack '%s/build' '%s/out'"):format(dir, dir), { cwd = uv.cwd() })
        must(("src/package/npm/pack '%s/elsewhere/again' '%s/again'"):format(dir, dir), { cwd = uv.cwd() })
        must(("cmp '%s'/out/*.tgz '%s'/again/*.tgz"):format(dir, dir)) -- the same tree, the same package
        local linked = must(("ldd '%s/build/dutch-master'"):format(dir))
        assert.falsy(linked:find 'luajit' or linked:find 'libuv' or linked:find 'libluv')
        must(([[
            mkdir '%s/project' && cd '%s/project'
            echo '{"name":"shop","private":true,"scripts":{"start":"node server.js"}}' > package.json
            npm install --silent --no-audit --no-fund --offline '%s'/out/*.tgz
        ]]):format(dir, dir, dir))
        local project = dir .. '/project'
        local binary = project .. '/node_modules/.bin/dutch-master'
        assert.matches('^dutch%-master [%d.]+ %(commit ', must(binary .. ' --version'))
        local file = assert(io.open(project .. '/server.js', 'w'))
        file:write "require('http').createServer((q, r) => r.end('ok')).listen(process.env.PORT, '127.0.0.1');\n"
        file:close()
        must(binary .. ' init', { cwd = project })
        local script = io.open(project .. '/master.lua'):read '*a'
        local port = http.free_port()
        local m = master.start {
            binary = binary, script = script, env = { PORT = tostring(port) },
            files = { ['server.js'] = io.open(project .. '/server.js'):read '*a' },
        }
        m:await('Cluster ready', { timeout = 20000 })
        local _, body = http.get { port = port }
        assert.equal('ok', body)
        -- The preload that lets keep-alive connections leave is found beside the program.
        local words = io.open(('/proc/%d/cmdline'):format(m:workers()[1])):read '*a'
        assert.matches('node_modules/dutch%-master/share/dutch%-master/drain.cjs', words)
        m:finish()
    end)
end)
