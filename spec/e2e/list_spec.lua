-- Every master of a machine at one look: `list`, and the verbs that pick the only one there is.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'

local SCRIPT = "require('dutch-master').start { worker = 'app.lua', numWorkers = %d }"

-- Masters that share a runtime directory, as all of a user do.
local dir
local function start(workers)
    local m = master.start {
        script = SCRIPT:format(workers), files = { ['app.lua'] = apps.idle },
        env = { DUTCH_MASTER_RUNTIME_DIR = dir },
    }
    m:await 'Cluster ready'
    return m
end

local function run(words, options)
    options = options or {}
    options.cwd = options.cwd or dir
    options.env = options.env or {}
    options.env.DUTCH_MASTER_RUNTIME_DIR = dir
    return cli.run(nil, words, options)
end

local function listed()
    local c = run { 'list', '--json' }
    local all = {}
    for line in c.out:gmatch '[^\n]+' do
        all[#all + 1] = cjson.decode(line)
    end
    return all, c.code
end

describe('list', function()
    before_each(function()
        dir = master.temp_dir()
    end)
    after_each(master.cleanup)

    it('says that there is none', function()
        local c = run { 'list' }
        assert.same({ 0, uv.getuid() == 0 and 'No master runs here.\n'
            or 'No master of this user runs here. Root sees those of all users: sudo dutch-master list\n' }, { c.code, c.out })
        assert.equal(3, run({ 'status' }).code)
    end)

    it('shows each master in a line, those that hang or are dead too, and never waits for them', function()
        local well, hung, dead = start(1), start(2), start(1)
        local c = run { 'list' }
        assert.equal(0, c.code, c.err)
        for m, workers in pairs { [well] = '1/1', [hung] = '2/2', [dead] = '1/1' } do
            local line = c.out:match('[^\n]*' .. m.script:gsub('%p', '%%%0'))
            assert.matches('steady +' .. workers .. ' +1 +' .. m.pid .. ' ', line)
        end
        local stuck = hung:process_pid()
        uv.kill(stuck, 'sigstop')
        dead:kill()
        for _, pid in ipairs(dead:workers()) do
            uv.kill(pid, 'sigkill')
        end
        dead:wait_until(function() return dead.ended end, 'its end')
        local all, code = listed()
        assert.equal(1, code)
        local found = {}
        for _, item in ipairs(all) do
            found[item.running and 'running' or item.problem] = item
        end
        assert.equal(3, #all)
        assert.same({ well.script, 1, 1, 'steady' },
            { found.running.script, found.running.wanted, found.running.serving, found.running.state })
        assert.equal(stuck, found.hangs.pid)
        assert.matches('%.sock$', found.dead.socket)
        c = run { 'list' }
        assert.matches('/master.lua %(pid ' .. stuck .. '%): does not answer\n', c.out)
        assert.matches('%.sock: dead\n  No master listens there', c.out)
        uv.kill(stuck, 'sigcont')
        dead:finish { signal = 'SIGKILL', left = true, files_left = true }
        well:finish()
        hung:finish()
    end)

    it("says that a master is another user's", function()
        if uv.getuid() ~= 0 then
            return pending 'only root can be another user'
        end
        local m = start(1)
        assert(uv.fs_chmod(dir, tonumber('777', 8)))
        local c = run({ 'list', '--json' }, { uid = 65534, gid = 65534 })
        assert.equal(0, c.code, c.err)
        assert.equal('foreign', cjson.decode(c.out).problem)
        assert(uv.fs_chmod(dir, tonumber('700', 8)))
        m:finish()
    end)

    it('goes on with --watch', function()
        local m = start(1)
        local c = cli.start(nil, { 'list', '--watch' }, { cwd = dir, env = { DUTCH_MASTER_RUNTIME_DIR = dir } })
        c:await_output 'steady.*steady'
        c:kill 'sigint'
        assert.equal('SIGINT', master.signal_name(c:wait().signal))
        m:finish()
    end)
end)

describe('without a script', function()
    before_each(function()
        dir = master.temp_dir()
    end)
    after_each(master.cleanup)

    it('verbs that look take the only master, or name the choices; others take none', function()
        local one = start(1)
        for _, words in ipairs { { 'status' }, { 'why' }, { 'events' }, { 'logs' } } do
            local c = run(words)
            assert.equal(0, c.code, words[1] .. ': ' .. c.err)
        end
        assert.matches(one.script:gsub('%p', '%%%0'), run({ 'status' }).out)
        assert.equal(3, run({ 'restart' }).code)
        assert.equal(3, run({ 'stop' }).code)
        local two = start(1)
        local c = run { 'status' }
        assert.equal(2, c.code)
        assert.truthy(c.err:find('dutch-master status ' .. one.script, 1, true), c.err)
        assert.truthy(c.err:find('dutch-master status ' .. two.script, 1, true), c.err)
        one:finish()
        two:finish()
    end)
end)
