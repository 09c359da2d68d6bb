local core = require 'dutch-master.core'
local linux = require 'dutch-master.linux'
local stdlib = require 'posix.stdlib'
local unistd = require 'posix.unistd'
local p = require 'spec.support.process'

--- A tree with these files ("path" = "text"), removed afterwards.
local function with_tree(files, run)
    local root = os.tmpname()
    os.remove(root)
    for path, text in pairs(files) do
        local directory = (root .. path):match '^(.*)/'
        os.execute('mkdir -p ' .. directory)
        local file = assert(io.open(root .. path, 'w'))
        file:write(text)
        file:close()
    end
    local ok, message = pcall(run, root)
    os.execute('rm -rf ' .. root)
    if not ok then
        error(message, 0)
    end
end

describe('system information', function()
    p.leaves_nothing()

    it('knows users and groups', function()
        local root = core.getuser 'root'
        assert.are.equal(0, root.uid)
        assert.are.equal(0, root.gid)
        assert.are.equal('/root', root.dir)
        assert.are.equal(0, root.groups[1])
        local nobody = core.getuser(65534)
        assert.are.equal('nobody', nobody.name)
        assert.are.equal(65534, core.getgroup 'nogroup')
        assert.are.equal(0, core.getgroup(0))
        assert.are.same({ nil, "there is no user 'no-such-user'", 'ENOENT' }, { core.getuser 'no-such-user' })
        assert.are.same({ nil, "there is no group 'no-such-group'", 'ENOENT' }, { core.getgroup 'no-such-group' })
        assert.is_nil((core.getuser(123456789)))
    end)

    it('knows this process', function()
        assert.are.equal(unistd.getpid(), core.pid())
        assert.are.equal(unistd.geteuid(), core.uid())
        assert.is_true(#core.hostname() > 0)
        assert.are.equal(stdlib.getenv 'PATH', core.environ().PATH)
        local executable = core.executable()
        assert.is_true(executable == '/proc/self/exe' or executable == unistd.readlink '/proc/self/exe')
        local own = linux.proc_stat(core.pid())
        assert.is_true(own.rss_kb > 1000 and own.starttime > 0 and own.cpu_ms >= 0 and own.runnable)
        assert.is_nil(linux.proc_stat(0))
        assert.is_nil(linux.proc_stat(2 ^ 22 + 1))
    end)

    it('sees whether a process sleeps in its event loop', function()
        assert.is_nil(core.idle(2 ^ 22 + 1))
        if core.idle(core.pid()) ~= false then
            pending 'this kernel does not say where a process sleeps'
            return
        end
        local loop = p.spawn { '/usr/bin/luajit', '-e',
            'local uv = require "luv" uv.new_timer():start(20000, 0, function() end) uv.run()' }
        local other = p.spawn { '/bin/sleep', '20' }
        p.await(function()
            return core.idle(loop.child:pid()) and not linux.proc_stat(other.child:pid()).runnable
        end, 5000, 'both to sleep')
        assert.is_false(core.idle(other.child:pid()))
        assert.is_false(linux.proc_stat(loop.child:pid()).stopped)
        loop.child:signal 'SIGSTOP'
        p.await(function()
            return linux.proc_stat(loop.child:pid()).stopped
        end, 5000, 'one to be stopped')
        assert.is_false(core.idle(loop.child:pid()))
        loop.child:signal 'SIGKILL'
        other.child:signal 'SIGKILL'
        p.exit_of(loop)
        p.exit_of(other)
    end)

    it('gives the first of several variables of one name, and no variable without a name', function()
        local output = p.output_of { p.runner, 'spec/support/print_environ.lua',
            env = { 'A=1', '=x', 'A=2', 'B=', 'C' } }
        assert.are.equal('1\t\tnil\n', output)
    end)

    it('keeps the logical path of the working directory while it is true', function()
        local here = unistd.getcwd()
        local pwd = stdlib.getenv 'PWD'
        with_tree({ ['/real/file'] = '' }, function(root)
            unistd.link(root .. '/real', root .. '/current', true)
            unistd.chdir(root .. '/current')
            stdlib.setenv('PWD', root .. '/current')
            local logical = core.cwd()
            stdlib.setenv('PWD', '/somewhere/else')
            local physical = core.cwd()
            stdlib.setenv('PWD', 'real')
            local relative = core.cwd()
            os.execute('rm -rf ' .. root .. '/real')
            local gone = { core.cwd() }
            unistd.chdir(here)
            stdlib.setenv('PWD', pwd)
            assert.are.equal(root .. '/current', logical)
            assert.are.equal(root .. '/real', physical)
            assert.are.equal(root .. '/real', relative)
            assert.are.equal('ENOENT', gone[3])
        end)
    end)

    describe('cpus', function()
        local all = core.cpus '/no/such/root'

        it('are those of the affinity mask', function()
            local output = p.output_of { p.runner, 'spec/support/print_cpus.lua', cpus = { 0 } }
            assert.are.equal('1\n', output)
            assert.is_true(all >= 1)
        end)

        for name, case in pairs {
            ['version 2, half a CPU'] = { 1, { ['/proc/self/cgroup'] = '0::/a/b\n',
                ['/sys/fs/cgroup/a/b/cpu.max'] = '50000 100000\n' } },
            ['version 2, above it'] = { 1, { ['/proc/self/cgroup'] = '0::/a/b\n',
                ['/sys/fs/cgroup/a/b/cpu.max'] = 'max 100000\n', ['/sys/fs/cgroup/a/cpu.max'] = '100000 100000\n' } },
            ['version 2, at the root of a container'] = { 1, { ['/proc/self/cgroup'] = '0::/\n',
                ['/sys/fs/cgroup/cpu.max'] = '10000 100000\n' } },
            ['version 2, more than there is'] = { all, { ['/proc/self/cgroup'] = '0::/\n',
                ['/sys/fs/cgroup/cpu.max'] = '99900000 100000\n' } },
            ['version 2, no bound'] = { all, { ['/proc/self/cgroup'] = '0::/\n',
                ['/sys/fs/cgroup/cpu.max'] = 'max 100000\n' } },
            ['version 1'] = { 1, { ['/proc/self/cgroup'] = '5:cpuset:/x\n4:cpuacct,cpu:/y\n',
                ['/sys/fs/cgroup/cpu/y/cpu.cfs_quota_us'] = '100000\n',
                ['/sys/fs/cgroup/cpu/y/cpu.cfs_period_us'] = '100000\n' } },
            ['version 1, no bound'] = { all, { ['/proc/self/cgroup'] = '4:cpuacct,cpu:/y\n',
                ['/sys/fs/cgroup/cpu/y/cpu.cfs_quota_us'] = '-1\n',
                ['/sys/fs/cgroup/cpu/y/cpu.cfs_period_us'] = '100000\n' } },
            ['nonsense'] = { all, { ['/proc/self/cgroup'] = 'x\n0:\n::\n0::/\n',
                ['/sys/fs/cgroup/cpu.max'] = '-5 0 x\n' } },
        } do
            it('are capped by the quota of cgroups, ' .. name, function()
                with_tree(case[2], function(root)
                    assert.are.equal(case[1], core.cpus(root))
                end)
            end)
        end
    end)
end)

