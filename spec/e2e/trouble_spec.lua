-- Each verb where nobody wants to be: on terminals of two sizes, with a master that hangs, dies while it is asked, or is
-- another user's. It ends in time, its exit code is the documented one, and it says what to do.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'

local NOBODY = 65534

-- Masters that share a runtime directory, as all of a user do.
local dir
local function start(workers, options)
    options = options or {}
    local m = master.start {
        script = ("require('dutch-master').start { worker = { 'sleep', '100000' }, numWorkers = %d, restartSoak = 0, "
            .. 'ready = { alive = 0.01 } }'):format(workers),
        files = { ['app.lua'] = apps.idle },
        env = not options.own and { DUTCH_MASTER_RUNTIME_DIR = dir } or nil, wrap = options.wrap,
    }
    m:await('Cluster ready', { timeout = 60000 })
    return m
end

local function options_of(more)
    more = more or {}
    more.env = { DUTCH_MASTER_RUNTIME_DIR = dir }
    more.cwd = more.cwd or dir
    return more
end

-- On a terminal of that size, without colours. -> code, what was printed, its longest line
local function on_terminal(words, columns, rows)
    local command = ("stty cols %d rows %d; exec '%s' %s"):format(columns, rows, master.binary(), words)
    local options = options_of { program = 'script' }
    options.env.TERM, options.env.NO_COLOR, options.env.LANG = 'xterm', '1', 'C.UTF-8'
    local c = cli.run(nil, { '-qec', command, '/dev/null' }, options)
    local text, longest = c.out:gsub('\r\27%[K[^\n]*\r\27%[K', ''):gsub('\r', ''), 0
    for line in text:gmatch '[^\n]+' do
        longest = math.max(longest, select(2, line:gsub('[^\128-\191]', '')))
    end
    return c.code, text, longest
end

local function words_of(line, script)
    local words = {}
    for word in line:gsub('SCRIPT', script):gmatch '%S+' do
        words[#words + 1] = word
    end
    return words
end

-- How many have one of the masters' sockets: those that listen, and those that are connected.
local function sockets()
    local file = io.open '/proc/net/unix'
    local _, count = file:read('*a'):gsub(dir:gsub('%p', '%%%0'), '')
    file:close()
    return count
end

-- Every verb that asks a master.
local ASKING = {
    'status SCRIPT', 'status --json SCRIPT', 'logs SCRIPT', 'logs --follow SCRIPT', 'why SCRIPT', 'events SCRIPT',
    'events --follow SCRIPT', 'metrics SCRIPT', 'plan SCRIPT', 'scale +1 SCRIPT', 'reload SCRIPT', 'restart SCRIPT',
    'restart --wait SCRIPT', 'restart --wait --timeout 60 SCRIPT', 'stop SCRIPT', 'stop --wait SCRIPT',
    'upgrade SCRIPT',
}
local CHANGING = { scale = true, reload = true, restart = true, stop = true, upgrade = true }

local function ask_all(m, lines, options)
    local asked = {}
    for i, line in ipairs(lines) do
        asked[i] = cli.start(nil, words_of(line, m.script), options_of(options))
        asked[i].line = line
    end
    return asked
end

describe('a verb', function()
    before_each(function()
        dir = master.temp_dir()
    end)
    after_each(master.cleanup)

    it('fits into the terminal, with no master, with five, and with 200 workers', function()
        local sizes = { { 80, 24 }, { 200, 50 } }
        local code, text, longest = on_terminal('list', 80, 24)
        assert.same({ 0, true }, { code, longest <= 80 }, text)
        code, text = on_terminal('status', 80, 24)
        assert.equal(3, code)
        assert.matches('Name the script: dutch%-master status /path/to/master.lua', text)
        local masters = {}
        for i = 1, 5 do
            masters[i] = start(i == 1 and 200 or 2)
        end
        local many, few = masters[1].script, masters[2].script
        for _, size in ipairs(sizes) do
            for _, line in ipairs {
                'help', 'list', 'status ' .. many, 'status ' .. few, 'why ' .. few, 'plan ' .. few,
                'restart --wait ' .. few, 'why ' .. few, 'why 1 ' .. few, 'logs ' .. few, 'stop --help',
            } do
                code, text, longest = on_terminal(line, unpack(size))
                assert.same({ 0, true }, { code, longest <= size[1] }, line .. '\n' .. text)
            end
            code, text = on_terminal('status', unpack(size))
            assert.equal(2, code)
            for _, m in ipairs(masters) do
                assert.truthy(text:find('dutch-master status ' .. m.script, 1, true), text)
            end
        end
        for _, m in ipairs(masters) do
            m:finish()
        end
    end)

    it('does not wait for a master that hangs, names it, and says what to do', function()
        local m, other = start(1), start(1)
        local pid = m:process_pid()
        uv.kill(pid, 'sigstop')
        local begun = uv.hrtime()
        local asked = ask_all(m, ASKING)
        local unnamed = cli.run(nil, { 'status' }, options_of())
        local listed = cli.run(nil, { 'list' }, options_of())
        local numbers = cli.run(nil, { 'metrics', '--all' }, options_of())
        for _, c in ipairs(asked) do
            c:wait()
            assert.same({ 124, '' }, { c.code, c.out }, c.line .. '\n' .. c.err)
            assert.truthy(c.err:find(('%s: the master (pid %d) does not answer\n'):format(m.script, pid), 1, true), c.err)
            assert.truthy(c.err:find(('`kill -CONT %d` lets it go on'):format(pid), 1, true), c.err)
            assert.equal(CHANGING[c.line:match '^%l+'] or nil, c.err:find 'may still do' and true, c.err)
        end
        -- Five seconds for the first word, and what it takes to run so many at once.
        assert.is_true(uv.hrtime() - begun < 25e9 * (tonumber(os.getenv 'DM_TIME_SCALE') or 1))
        local note = ('%s (pid %d): does not answer\n  It is stopped'):format(m.script, pid)
        assert.same({ 2, 1, 0 }, { unnamed.code, listed.code, numbers.code })
        assert.truthy(unnamed.err:find(note, 1, true), unnamed.err)
        assert.truthy(unnamed.err:find('dutch-master status ' .. other.script, 1, true), unnamed.err)
        assert.truthy(listed.out:find(note, 1, true), listed.out)
        assert.truthy(numbers.out:find(('dutch_master_up{script="%s"} 0\n'):format(m.script), 1, true), numbers.out)
        -- It goes on, and perhaps does what it was asked to do.
        uv.kill(pid, 'sigcont')
        m:wait_until(function()
            return m.ended or cli.run(nil, { 'status', m.script }, options_of()).code == 0
        end, 'the master to go on')
        m:finish()
        other:finish()
    end)

    it('says that the master died while it was asked, and what is not known', function()
        local m = start(1)
        uv.kill(m:process_pid(), 'sigstop')
        local before = sockets()
        local asked = ask_all(m, ASKING)
        m:wait_until(function() return sockets() >= before + #asked end, 'all to be connected')
        m:kill()
        for _, c in ipairs(asked) do
            c:wait()
            assert.same({ 1, '' }, { c.code, c.out }, c.line .. '\n' .. c.err)
            assert.truthy(c.err:find(m.script .. ': the master', 1, true), c.err)
            assert.matches(' went away', c.err)
        end
        m:wait_until(function() return m.ended end, 'its end')
        local c = cli.run(nil, { 'list' }, options_of())
        assert.equal(1, c.code)
        assert.matches('%.sock: dead\n  No master listens there', c.out)
        assert.equal(3, cli.run(nil, { 'status', m.script }, options_of()).code)
        for _, pid in ipairs(m:workers()) do
            uv.kill(pid, 'sigkill')
        end
        m:finish { signal = 'SIGKILL', left = true, files_left = true }
    end)

    it("says whose master it is, when it is another user's; root may ask", function()
        if uv.getuid() ~= 0 then
            return pending 'only root can be another user'
        end
        local m = start(1)
        assert(uv.fs_chmod(dir, tonumber('711', 8))) -- its socket can be seen there, and not be used
        for _, c in ipairs(ask_all(m, ASKING, { uid = NOBODY, gid = NOBODY, cwd = '/' })) do
            c:wait()
            assert.same({ 77, '' }, { c.code, c.out }, c.line .. '\n' .. c.err)
            assert.matches('belongs to user root.*\n  Ask as that user, or as root%.\n$', c.err)
        end
        local listed = cli.run(nil, { 'list' }, options_of { uid = NOBODY, gid = NOBODY, cwd = '/' })
        assert.equal(0, listed.code, listed.err)
        local words = ("TERM=xterm exec setpriv --reuid=%d --regid=%d --clear-groups '%s' top %s"):format(NOBODY, NOBODY,
            master.binary(), m.script)
        local top = cli.run(nil, { '-qec', words, '/dev/null' }, options_of { program = 'script', cwd = '/' })
        assert.equal(77, top.code, top.out)
        assert.matches('belongs to user root', top.out)
        m:finish()
        -- Root asks one of a user.
        local give = ('chown -R %d:%d "$DUTCH_MASTER_RUNTIME_DIR" "$DUTCH_MASTER_RUNTIME_DIR/../app"; '
            .. 'exec setpriv --reuid=%d --regid=%d --clear-groups "$0" "$@"'):format(NOBODY, NOBODY, NOBODY, NOBODY)
        m = start(1, { own = true, wrap = { 'sh', '-c', give } })
        dir = m.dir .. '/run'
        for _, line in ipairs { 'list', 'status', 'status SCRIPT', 'logs SCRIPT', 'why SCRIPT', 'metrics SCRIPT',
            'restart --wait SCRIPT' } do
            local c = cli.run(nil, words_of(line, m.script), options_of())
            assert.equal(0, c.code, line .. '\n' .. c.err)
        end
        m:finish()
    end)
end)
