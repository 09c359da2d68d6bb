local core = require 'dutch-master.core'
local linux = require 'dutch-master.linux'
local loop = require 'spec.loop'
local stat = require 'posix.sys.stat'
local unistd = require 'posix.unistd'
local fcntl = require 'posix.fcntl'
local p = require 'spec.support.process'

--- A directory for the files of a spec, removed with what is in it.
local function with_directory(run)
    local path = os.tmpname()
    os.remove(path)
    assert(stat.mkdir(path, 493)) -- 0755: read by other users, too
    local ok, message = pcall(run, path)
    os.execute('rm -rf ' .. path)
    if not ok then
        error(message, 0)
    end
end

local function write(path, text, mode)
    local file = assert(io.open(path, 'w'))
    file:write(text)
    file:close()
    stat.chmod(path, mode or 420)
end

--- The failed step of a spawn.
local function failure_of(opts)
    local record = p.spawn(opts)
    local status = p.exit_of(record)
    assert.are.same({ 'exit' }, record.events)
    assert.is_nil(status.code)
    assert.is_nil(status.signal)
    return assert(status.failed), status
end

local function lines_of(opts)
    local lines = {}
    for line in p.output_of(opts):gmatch '[^\n]+' do
        lines[#lines + 1] = line
    end
    return lines
end

-- LeakSanitizer cannot look at a process that strace does.
local traced = { 'PATH=/usr/bin:/bin', 'ASAN_OPTIONS=detect_leaks=0' }

describe('spawn', function()
    p.leaves_nothing()

    describe('names the step that failed:', function()
        it('chdir', function()
            local failed = failure_of { '/bin/true', cwd = '/no/such/directory' }
            assert.are.equal('chdir', failed.step)
            assert.are.equal('ENOENT', failed.code)
            assert.are.equal('/no/such/directory', failed.path)
            assert.are.equal('chdir: /no/such/directory: no such file or directory', failed.message)
        end)

        it('chdir to a file', function()
            assert.are.equal('ENOTDIR', failure_of({ '/bin/true', cwd = '/etc/passwd' }).code)
        end)

        it('exec of a file that is not there', function()
            local failed = failure_of { '/no/such/program' }
            assert.are.equal('exec', failed.step)
            assert.are.equal('ENOENT', failed.code)
            assert.are.equal('/no/such/program', failed.path)
        end)

        it('exec of a name that is in no directory of the search path', function()
            local failed = failure_of { 'no-such-program', search_path = '/usr/bin:/bin:' }
            assert.are.equal('exec', failed.step)
            assert.are.equal('ENOENT', failed.code)
            assert.are.equal('no-such-program', failed.path)
        end)

        it('exec of a file that is not executable', function()
            with_directory(function(dir)
                write(dir .. '/plain', '#!/bin/sh\n', 420)
                local failed = failure_of { dir .. '/plain' }
                assert.are.equal('exec', failed.step)
                assert.are.equal('EACCES', failed.code)
            end)
        end)

        it('exec of a text file without #!', function()
            with_directory(function(dir)
                write(dir .. '/text', 'echo hello\n', 493)
                assert.are.equal('ENOEXEC', failure_of({ dir .. '/text' }).code)
            end)
        end)

        it('the interpreter of a script', function()
            with_directory(function(dir)
                write(dir .. '/script', '#! /no/such/interpreter -x\n', 493)
                local failed = failure_of { './script', cwd = dir }
                assert.are.equal('interpreter', failed.step)
                assert.are.equal('ENOENT', failed.code)
                assert.are.equal('/no/such/interpreter', failed.path)
            end)
        end)

        it('the loader of an ELF file', function()
            with_directory(function(dir)
                local image = assert(p.read '/bin/true')
                local at = assert(image:find('/lib64/ld-linux-x86-64.so.2', 1, true))
                write(dir .. '/strange', image:sub(1, at - 1) .. '/nib64' .. image:sub(at + 6), 493)
                local failed = failure_of { dir .. '/strange' }
                assert.are.equal('interpreter', failed.step)
                assert.are.equal('/nib64/ld-linux-x86-64.so.2', failed.path)
            end)
        end)

        it('a script that is missing, seen from cwd', function()
            local failed = failure_of { '/bin/true', cwd = '/etc', must_read = 'no-app.js' }
            assert.are.equal('script', failed.step)
            assert.are.equal('ENOENT', failed.code)
            assert.are.equal('no-app.js', failed.path)
            assert.are.equal(0, p.exit_of(p.spawn { '/bin/true', cwd = '/etc', must_read = 'passwd' }).code)
        end)

        it('a script that is a directory, a pipe, or not readable for the user', function()
            with_directory(function(dir)
                assert.are.equal('EISDIR', failure_of({ '/bin/true', must_read = dir }).code)
                assert(stat.mkfifo(dir .. '/pipe', 420))
                assert.are.equal('EINVAL', failure_of({ '/bin/true', must_read = dir .. '/pipe' }).code)
                write(dir .. '/secret', '', 384)
                local failed = failure_of { '/bin/true', must_read = dir .. '/secret', uid = 65534 }
                assert.are.equal('script', failed.step)
                assert.are.equal('EACCES', failed.code)
            end)
        end)

        it('limits and affinity', function()
            local failed = failure_of { '/bin/true', limits = { { name = 'nofile', soft = 20, hard = 10 } } }
            assert.are.equal('limits', failed.step)
            assert.are.equal('EINVAL', failed.code)
            failed = failure_of { '/bin/true', cpus = { 1000 } }
            assert.are.equal('affinity', failed.step)
        end)

        it('descriptors', function()
            local failed = failure_of { '/bin/true', fds = { 9999 } }
            assert.are.equal('descriptors', failed.step)
            assert.are.equal('EBADF', failed.code)
        end)
    end)

    it('refuses what makes no sense, before it makes anything', function()
        for _, opts in ipairs {
            {},
            { file = '/bin/true', argv = {} },
            { file = '/bin/true', argv = { 'a\0b' } },
            { file = '/bin/true', argv = { 'a' }, env = { 1 } },
            { file = '/bin/true', argv = { 'a' }, umask = 1.5 },
            { file = '/bin/true', argv = { 'a' }, limits = { { name = 'no-such', soft = 1, hard = 1 } } },
            { file = '/bin/true', argv = { 'a' }, fds = { -1 } },
            { file = '/bin/true', argv = { 'a' }, on_exit = 'x' },
        } do
            assert.has_error(function() core.spawn(opts) end)
        end
        assert.are.equal(0, loop.children())
    end)

    it('tells a child that was killed before exec from one whose program ran', function()
        with_directory(function(dir)
            local before, after = 0, 0
            for _ = 1, 200 do
                local record = p.spawn { '/bin/sleep', '100', cwd = dir }
                record.child:signal 'SIGKILL'
                local status = p.exit_of(record)
                assert.are.equal('SIGKILL', status.signal)
                assert.is_nil(status.failed)
                if record.execs == 0 then
                    before = before + 1
                else
                    after = after + 1
                end
            end
            assert.is_true(before > 0)
            assert.are.equal(200, before + after)
        end)
    end)

    it('reports exec for a program that is gone at once', function()
        for _ = 1, 50 do
            local record = p.spawn { '/bin/true' }
            p.exit_of(record)
            assert.are.same({ 'exec', 'exit' }, record.events)
        end
        local record = p.sh 'kill -9 $$'
        p.exit_of(record)
        assert.are.same({ 'exec', 'exit' }, record.events)
    end)

    it('gives the child the descriptors meant for it and no other', function()
        local leak = assert(fcntl.open('/dev/zero', fcntl.O_RDWR))
        local lines = lines_of { '/bin/ls', '-l', '/proc/self/fd' }
        unistd.close(leak)
        local numbers = {}
        for _, line in ipairs(lines) do
            local number, target = line:match ' (%d+) %-> (.*)$'
            if number and not target:match '^/proc/' then
                numbers[#numbers + 1] = number
            end
        end
        assert.are.same({ '0', '1', '2' }, numbers)
    end)

    it('places descriptors from 3 on, also where these are among the numbers to be placed', function()
        with_directory(function(dir)
            local fds, expected = {}, {}
            for i = 1, 24 do
                write(dir .. '/' .. i, i .. ' ')
                table.insert(fds, 1, (assert(fcntl.open(dir .. '/' .. i, fcntl.O_RDONLY))))
                table.insert(expected, 1, i .. ' ')
            end
            assert.is_true(fds[#fds] < 3 + #fds, 'sources and targets do not overlap')
            local script = 'i=3; while [ $i -lt 27 ]; do cat /proc/self/fd/$i; i=$((i + 1)); done; ls /proc/self/fd'
            local output = p.output_of { '/bin/sh', '-c', script, fds = fds }
            local _, last = output:find(table.concat(expected), 1, true)
            assert.is_number(last, output)
            local _, count = output:sub(last):gsub('%d+\n', '')
            assert.are.equal(3 + 24 + 1, count) -- and the one by which ls reads the directory
            for _, fd in ipairs(fds) do
                unistd.close(fd)
            end
        end)
    end)

    it('gives LISTEN_PID and WATCHDOG_PID the pid that the program has', function()
        local record
        local output
        output, record = p.output_of {
            '/bin/sh', '-c', 'echo $$ $LISTEN_PID $LISTEN_FDS',
            env = { 'LISTEN_FDS=1' },
            listen_pid = true,
        }
        assert.are.equal(('%d %d 1\n'):format(record.pid, record.pid), output)
        for _, listen_pid in ipairs { true, false } do
            output, record = p.output_of {
                '/bin/sh', '-c', 'echo ${LISTEN_PID-none} $WATCHDOG_PID',
                env = {}, listen_pid = listen_pid, watchdog_pid = true,
            }
            assert.are.equal(('%s %d\n'):format(listen_pid and record.pid or 'none', record.pid), output)
        end
    end)

    it('starts the program with default signals, an empty mask and its own group', function()
        local output, record = p.output_of { '/bin/cat', '/proc/self/status', '/proc/self/stat' }
        assert.are.equal('0000000000000000', output:match 'SigBlk:%s*(%x+)')
        assert.are.equal('0000000000000000', output:match 'SigIgn:%s*(%x+)')
        assert.are.equal('0000000000000000', output:match 'SigCgt:%s*(%x+)')
        assert.are.equal(tostring(record.pid), output:match '%(cat%) %a %d+ (%d+)')
    end)

    it('sets environment, directory and umask, and nothing of the master\'s', function()
        local output = p.output_of { '/bin/sh', '-c', 'pwd; umask; env | sort', cwd = '/usr', umask = 63,
            env = { 'A=1', 'B=x y' } }
        assert.are.equal('/usr\n0077\nA=1\nB=x y\nPWD=/usr\n', (output:gsub('_=[^\n]*\n', '')))
    end)

    it('changes user, group and groups, for good', function()
        local output = p.output_of { '/bin/cat', '/proc/self/status', uid = 65534, gid = 65533, groups = { 7, 8 } }
        assert.are.equal('65534 65534 65534 65534', (output:match 'Uid:%s*([^\n]*)':gsub('%s+', ' ')))
        assert.are.equal('65533 65533 65533 65533', (output:match 'Gid:%s*([^\n]*)':gsub('%s+', ' ')))
        assert.are.equal('7 8', (output:match 'Groups:%s*([^\n]*)':gsub('%s+$', '')))
        assert.are.equal('0000000000000000', output:match 'CapEff:%s*(%x+)')
    end)

    it('drops the supplementary groups of root if only a user is given', function()
        local output = p.output_of { '/bin/cat', '/proc/self/status', uid = 65534 }
        assert.are.equal('', (output:match 'Groups:([^\n]*)':gsub('%s+', '')))
    end)

    it('reports a change of user that is not permitted', function()
        local output = p.output_of { '/usr/bin/setpriv', '--reuid=65534', '--regid=65534', '--clear-groups',
            p.runner, 'spec/support/spawn_as.lua' }
        assert.are.equal('uid EPERM\ngid EPERM\ngroups EPERM\nnice EACCES\n', output)
    end)

    it('has room for many descriptors itself, and gives children the limit it was started with', function()
        local output = p.output_of { '/bin/sh', '-c', 'ulimit -Sn 64; exec "$@"', 'sh', '/proc/' .. core.pid() .. '/exe',
            'spec/support/many_descriptors.lua' }
        assert.are.equal('64 own, interpreter named', output:match '[^\n]+')
    end)

    it('sets limits, niceness and affinity', function()
        local output = p.output_of {
            '/bin/sh', '-c', 'ulimit -n; ulimit -Hn; ulimit -c; nice; grep Cpus_allowed_list /proc/self/status',
            limits = {
                { name = 'nofile', soft = 33, hard = 44 },
                { name = 'core', soft = 0, hard = 'unlimited' },
            },
            nice = 7,
            cpus = { 0 },
        }
        assert.are.equal('33\n44\n0\n7\nCpus_allowed_list:\t0\n', output)
    end)

    it('searches a name in the search path, past what is not executable', function()
        with_directory(function(dir)
            stat.mkdir(dir .. '/a', 493)
            stat.mkdir(dir .. '/b', 493)
            write(dir .. '/a/tool', '#!/bin/sh\necho a', 420)
            write(dir .. '/b/tool', '#!/bin/sh\necho b', 493)
            assert.are.equal('b\n', p.output_of { 'tool', search_path = dir .. '/a:' .. dir .. '/b' })
        end)
    end)

    it('is not held up by an exec that is slow', function()
        with_directory(function(dir)
            -- What an interpreter, a network file system or an automounter does for longer: strace
            -- makes the child's execve take 1.5 s, and prints how long the loop of its parent stood.
            local output = p.output_of { '/usr/bin/strace', '-qq', '-f', '-o', dir .. '/trace',
                '-e', 'trace=execve', '-e', 'inject=execve:delay_enter=1500000', p.runner,
                'spec/support/spawn_slow.lua', env = traced }
            local stood, took = output:match '^(%d+) (%d+)\n$'
            assert(stood, output)
            assert.is_true(tonumber(stood) < 700, output)
            assert.is_true(tonumber(took) >= 1400, output)
        end)
    end)

    it('reports a fork that fails, and leaks nothing', function()
        local output = p.output_of { '/usr/bin/strace', '-qq', '-f', '-o', '/dev/null',
            '-e', 'trace=clone', '-e', 'inject=clone:error=EAGAIN', p.runner, 'spec/support/spawn_again.lua',
            env = traced }
        assert.are.equal('nil\tspawn: resource temporarily unavailable\tEAGAIN\n0\t0\n', output)
    end)

    it('reports that no descriptor is left, and leaks nothing', function()
        local resource = require 'posix.sys.resource'
        local limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        local _, used = p.descriptors()
        local soft = limit.rlim_cur
        for more = 1, 8 do
            limit.rlim_cur = used + more
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            local record = p.spawn { '/bin/true', channel = true, capture_stderr = true }
            limit.rlim_cur = soft
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            if record.child then
                p.exit_of(record)
            else
                assert.are.equal('EMFILE', record.code)
            end
            p.step()
        end
    end)

    it('tries beforehand whether user, limits and the rest may be set, and leaves nothing', function()
        local function try(fields)
            fields.file, fields.argv = 'no such program', { 'x' }
            local ok, failed = core.rehearse(fields)
            return ok or ('%s %s %s'):format(failed.step, failed.path or '-', failed.code)
        end
        assert.is_true(try {})
        assert.is_true(try { umask = 0, limits = { { name = 'core', soft = 0, hard = 0 } } })
        assert.equal('affinity - EINVAL', try { cpus = { 1000 } })
        assert.equal('limits nofile EINVAL', try { limits = { { name = 'nofile', soft = 10, hard = 5 } } })
        if unistd.geteuid() ~= 0 then
            assert.equal('uid - EPERM', try { uid = 0, gid = unistd.getgid() })
        else
            assert.is_true(try { uid = 65534, gid = 65534, groups = { 65534 } })
            assert.equal(0, unistd.geteuid())
        end
        assert.are.equal(0, loop.children())
    end)

    it('kills a child and its whole group with its master only if asked', function()
        local output = p.output_of { p.runner, 'spec/support/spawn_orphans.lua' }
        local pids = { output:match '^(%d+) (%d+) (%d+) (%d+)\n$' }
        assert(#pids == 4, output)
        for i = 1, 3 do
            p.await(function() return not linux.proc_stat(tonumber(pids[i])) end, 5000, 'the death of number ' .. i)
        end
        assert.is_table(linux.proc_stat(tonumber(pids[4])))
        -- The watcher goes as well.
        p.await(function() return #core.adopted() == 1 end)
        assert.are.same({ tonumber(pids[4]) }, core.adopted())
        core.kill_adopted()
    end)
end)
