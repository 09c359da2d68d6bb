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
end)
