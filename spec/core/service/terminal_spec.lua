local core = require 'dutch-master.core'
local sys = require 'spec.support.sys'

describe('terminal', function()
    local program = core.realpath '/proc/self/exe'
    local dir, remove

    before_each(function()
        dir, remove = sys.temp_dir()
    end)

    after_each(function()
        remove()
    end)

    -- Runs the Lua text on a terminal of its own, in a session of its own; what the terminal showed.
    local function on_terminal(input, text)
        sys.write_file(dir .. '/run.lua', [[
            local core = require 'dutch-master.core'
            local loop = require 'spec.loop'
        ]] .. text)
        local pipe = io.popen(('%s | timeout 20 script -qec "%s %s/run.lua" /dev/null'):format(input, program, dir))
        local shown = pipe:read('*a')
        pipe:close()
        return (shown:gsub('\r\n', '\n'))
    end

    it('knows a terminal and its size', function()
        local master, slave = sys.pty()
        assert.is_true(core.isatty(slave))
        assert.equal(0, os.execute(('stty -F /proc/%d/fd/%d cols 132 rows 43'):format(sys.C.getpid(), slave)))
        assert.same({ 132, 43 }, { core.tty_size(slave) })
        local r, w = sys.pipe()
        assert.is_false(core.isatty(r))
        assert.equal('ENOTTY', select(3, core.tty_size(w)))
        for _, fd in ipairs { master, slave, r, w } do
            sys.close(fd)
        end
    end)

    it('writes all of it, and says when nobody reads', function()
        sys.write_file(dir .. '/run.lua', [[
            local core = require 'dutch-master.core'
            local ok, _, code = core.write_stdout(('x'):rep(1000000))
            core.write_stderr(tostring(ok or code) .. '\n')
        ]])
        local pipe = io.popen(('%s %s/run.lua 2>%s/err | wc -c'):format(program, dir, dir))
        assert.equal(1000000, pipe:read('*n'))
        pipe:close()
        assert.equal('true\n', sys.read_file(dir .. '/err'))
        pipe = io.popen(('{ %s %s/run.lua; } 2>%s/err | true; cat %s/err'):format(program, dir, dir, dir))
        pipe:read('*a')
        pipe:close()
        sys.await(function()
            return sys.read_file(dir .. '/err') == 'EPIPE\n'
        end, 'EPIPE')
    end)

    it('reads keys one by one without echo, and restores the terminal', function()
        -- The keys are typed when the terminal is ready for them, and it is not hung up before they were read.
        assert.equal(0, sys.C.mkfifo(dir .. '/ready', 384))
        assert.equal(0, sys.C.mkfifo(dir .. '/done', 384))
        local shown = on_terminal(('(read x < %s/ready; printf abq; read x < %s/done)'):format(dir, dir), ([[
            assert(core.tty_raw(true))
            io.open('%s/ready', 'w'):close()
            local keys = ''
            assert(core.read_tty(function(bytes) keys = keys .. tostring(bytes) end))
            repeat loop.run_once(1000) until keys:find('q')
            io.open('%s/done', 'w'):close()
            core.read_tty(nil)
            assert(core.tty_raw(false))
            core.write_stdout('keys ' .. keys .. '\n')
            os.execute('stty -a')
        ]]):format(dir, dir))
        assert.truthy(shown:find('keys abq\n', 1, true))
        assert.is_nil(shown:find('^abq'))
        assert.truthy(shown:find(' icanon', 1, true))
        assert.truthy(shown:find(' echo ', 1, true))
    end)

    it('restores the terminal at exit, if nobody did before', function()
        local shown = on_terminal('true', "assert(core.tty_raw(true)) os.execute('stty -a')")
        assert.truthy(shown:find('-icanon', 1, true))
        assert.truthy(shown:find('-echo ', 1, true))
        sys.write_file(dir .. '/raw.lua', "require('dutch-master.core').tty_raw(true)")
        local pipe = io.popen(('timeout 20 script -qec "%s %s/raw.lua; stty -a" /dev/null </dev/null')
            :format(program, dir))
        shown = pipe:read('*a')
        pipe:close()
        assert.truthy(shown:find(' icanon', 1, true))
    end)

    it('says so where there is no terminal', function()
        sys.write_file(dir .. '/run.lua', [[
            local core = require 'dutch-master.core'
            print(select(3, core.tty_raw(true)), select(3, core.read_tty(print)), core.tty_raw(false))
        ]])
        local pipe = io.popen(('setsid -w %s %s/run.lua'):format(program, dir))
        assert.equal('ENXIO ENXIO true', (pipe:read('*l'):gsub('%s+', ' ')))
        pipe:close()
    end)
end)
