-- Examples that have no spec of their own.

local http = require 'spec.support.http'
local master = require 'spec.support.master'
local read = require('spec.support.files').text

-- A Dockerfile as instructions with their arguments; lines that go on are joined.
local function instructions(text)
    local list = {}
    text = (text .. '\n'):gsub('\\\n%s*', '')
    for line in text:gmatch '([^\n]*)\n' do
        if line ~= '' and not line:find '^#' then
            local name, rest = line:match '^(%u+) (.+)$'
            assert.is_string(name, line)
            list[#list + 1] = { name, rest }
        end
    end
    return list
end

local KNOWN = { FROM = true, COPY = true, WORKDIR = true, RUN = true, USER = true, EXPOSE = true, HEALTHCHECK = true,
    ENTRYPOINT = true }

describe('examples', function()
    after_each(master.cleanup)

    it('docker: Dockerfiles whose instructions, shell and files are right', function()
        for _, kind in ipairs { 'node', 'lua' } do
            local last, stages = {}, 0
            for _, entry in ipairs(instructions(read('examples/docker/' .. kind .. '/Dockerfile'))) do
                local name, rest = entry[1], entry[2]
                assert.is_true(KNOWN[name], name)
                last[name] = rest
                stages = stages + (name == 'FROM' and 1 or 0)
                if name == 'RUN' then
                    local file = os.tmpname()
                    local out = assert(io.open(file, 'w'))
                    out:write(rest)
                    out:close()
                    assert.equal(0, os.execute('sh -n ' .. file), rest)
                    os.remove(file)
                elseif name == 'COPY' and not rest:find '%-%-from' then
                    local source = rest:match '^(%S+)'
                    assert.is_truthy(source == '.' or os.rename(source, source), source)
                end
            end
            assert.equal(2, stages)
            assert.equal('["dutch-master", "/app/master.lua"]', last.ENTRYPOINT)
            assert.matches('CMD %["dutch%-master", "status", "/app/master.lua"%]$', last.HEALTHCHECK)
            assert.is_string(last.USER)
        end
        -- A clone that was built in has a build for another machine, and hundreds of megabytes of caches.
        for _, name in ipairs { 'build*', 'spec/.cache', '**/node_modules' } do
            assert.truthy(('\n' .. read '.dockerignore'):find('\n' .. name .. '\n', 1, true), name)
        end
    end)

    it('sticky: a client comes back to its worker', function()
        if not pcall(require, 'http.server') then
            return pending 'lua-http is not installed'
        end
        local port = http.free_port()
        local m = master.start {
            script = read 'examples/sticky/master.lua', files = { ['app.lua'] = read 'examples/sticky/app.lua' },
            env = { PORT = tostring(port) },
        }
        m:await 'Cluster ready'
        local first
        for i = 1, 20 do
            local _, body = http.get { port = port }
            local worker, visit = body:match '^worker (%d+), visit (%d+)'
            first = first or worker
            assert.same({ first, tostring(i) }, { worker, visit })
        end
        m:finish()
    end)

    it('without lua-http say which package is missing', function()
        local m = master.start {
            script = [[require('dutch-master').start { worker = 'app.lua', numWorkers = 1,
                workerEnvironment = { LUA_PATH = '/nowhere/?.lua', LUA_CPATH = '/nowhere/?.so' } }]],
            files = { ['app.lua'] = "require('dutch-master.http').serve(1, function() end)" },
        }
        local exited = m:await 'Worker exited'
        assert.equal(1, exited.code)
        master.wait_until(function()
            return m.stderr:find('needs lua-http (on Debian: apt-get install lua-http)', 1, true)
        end, { what = 'the name of the package' })
        assert.is_nil(m.stderr:find('no field package.preload', 1, true))
        pcall(m.signal, m, 'SIGTERM') -- a boot in which nothing is ever ready may have ended by itself
        m:finish { code = m:exit().code }
    end)
end)
