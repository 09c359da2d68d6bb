local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local p = require 'spec.support.process'
local sys = require 'spec.support.sys'

local SIGXFSZ = 25

describe('sink', function()
    local fds, sink

    before_each(function()
        fds = sys.count_fds()
    end)

    after_each(function()
        if sink then sink:close() end
        sink = nil
        loop.close()
        assert.equal(fds, sys.count_fds())
    end)

    local function line(i)
        return ('%06d %s\n'):format(i, ('x'):rep(90))
    end

    -- Reads until the sink has nothing more to say, checks that each line is whole and in order.
    local function read_lines(fd, expected)
        sys.set_nonblocking(fd)
        local parts, count = {}, 0
        sys.await(function()
            local data = sys.read(fd)
            if data then
                parts[#parts + 1] = data
                count = count + select(2, data:gsub('\n', ''))
            end
            return count >= expected
        end, expected .. ' lines')
        local numbers, text = {}, table.concat(parts)
        for number, rest in text:gmatch('(%d+) ([^\n]*)\n') do
            assert.equal(90, #rest)
            numbers[#numbers + 1] = tonumber(number)
        end
        for i = 2, #numbers do
            assert.is_true(numbers[i] > numbers[i - 1])
        end
        return numbers, text
    end

    -- How often this process gave the processor away by itself: in a system call that waits, not because others want it.
    local function blocked()
        return tonumber(p.read('/proc/self/status'):match '\nvoluntary_ctxt_switches:%s*(%d+)')
    end

    -- Writes far more than the buffer holds to something that is not read.
    local function overfill(total)
        local accepted = 0
        local before = blocked()
        for i = 1, total do
            local ok, _, code = sink:write(line(i))
            if ok then accepted = accepted + 1 else assert.equal('ENOBUFS', code) end
        end
        assert.is_true(blocked() - before < 20)
        assert.is_true(accepted < total)
        return accepted
    end

    local function check_slow_reader(r, w)
        local flags = sys.flags(w)
        local drained
        sink = assert(core.sink(w))
        sink:on_drain(function()
            drained = sink:lost()
        end)
        local accepted = overfill(20000)
        assert.is_nil(drained)
        assert.equal(flags, sys.flags(w))
        local numbers = read_lines(r, accepted)
        assert.equal(accepted, #numbers)
        assert.equal(accepted, numbers[accepted])
        sys.await(function()
            return drained
        end, 'on_drain')
        assert.equal(20000 - accepted, drained)
        assert.equal(0, sink:lost())
        assert.is_true(sink:write(line(20001)))
        assert.same({ 20001 }, read_lines(r, 1))
        assert.equal(flags, sys.flags(w))
        sys.close(r)
        sys.close(w)
    end

    it('writes lines to a pipe and leaves its flags alone', function()
        local r, w = sys.pipe()
        sink = assert(core.sink(w))
        assert.is_true(sink:write(line(1)))
        assert.equal(line(1), sys.read(r))
        assert.equal(0, bit.band(sys.flags(w), sys.O_NONBLOCK))
        assert.is_false(sink:is_tty())
        sys.close(r)
        sys.close(w)
    end)

    it('is not blocked by a pipe nobody reads, drops whole lines and counts them', function()
        check_slow_reader(sys.pipe())
    end)

    it('has room for grave records that a flood of others cannot take', function()
        local r, w = sys.pipe()
        sink = assert(core.sink(w))
        local accepted = overfill(20000)
        assert.is_true(sink:write(line(20001), true))
        assert.is_nil((sink:write(line(20002))))
        local numbers = read_lines(r, accepted + 1)
        assert.equal(20001, numbers[accepted + 1])
        -- That room is bounded too.
        local grave = 0
        while sink:write(line(grave), true) do
            grave = grave + 1
            assert.is_true(grave < 1000000)
        end
        sys.close(r)
        sys.close(w)
    end)

    it('is not blocked by a socket nobody reads', function()
        check_slow_reader(sys.socketpair())
    end)

    it('is not blocked by a pipe that it may not open a second time', function()
        local r, w = sys.pipe()
        local old = sys.limit('nofile', math.max(r, w) + 1)
        -- Fill the gaps, so that opening /proc/self/fd/N fails.
        local fillers = {}
        while true do
            local fd = sys.C.open('/dev/null', 0)
            if fd < 0 then break end
            fillers[#fillers + 1] = fd
        end
        local held = sys.count_fds()
        sink = assert(core.sink(w))
        assert.equal(held, sys.count_fds())
        sys.limit('nofile', old)
        for _, fd in ipairs(fillers) do
            sys.close(fd)
        end
        check_slow_reader(r, w)
        sink:close()
    end)

    it('is not blocked by a terminal that was stopped', function()
        local master, slave = sys.pty()
        assert.equal(0, os.execute(('stty -F /proc/%d/fd/%d raw -echo'):format(sys.C.getpid(), slave)))
        sink = assert(core.sink(slave))
        assert.is_true(sink:is_tty())
        local flags = sys.flags(slave)
        local start = sys.now()
        for i = 1, 2000 do
            assert.is_true(sink:write(line(i)))
        end
        assert.is_true(sys.now() - start < 1000)
        assert.equal(flags, sys.flags(slave))
        sys.set_nonblocking(master)
        local text = ''
        sys.await(function()
            text = text .. (sys.read(master) or '')
            return text:find('002000 x+\r?\n')
        end, 'the last line')
        sys.close(slave)
        sys.close(master)
    end)

    it('survives a reader that closed, and loses only what was written meanwhile', function()
        local dir, remove = sys.temp_dir()
        local path = dir .. '/fifo'
        assert.equal(0, sys.C.mkfifo(path, 384))
        local reader = sys.open(path, sys.O_RDONLY + sys.O_NONBLOCK)
        sink = assert(core.sink(path))
        local drained
        sink:on_drain(function()
            drained = sink:lost()
        end)
        assert.is_true(sink:write(line(1)))
        assert.equal(line(1), sys.read(reader))
        sys.close(reader)
        local ok, _, code = sink:write(line(2))
        assert.is_nil(ok)
        assert.equal('EPIPE', code)
        sink:write(line(3))
        assert.is_nil(drained)
        reader = sys.open(path, sys.O_RDONLY + sys.O_NONBLOCK)
        assert.is_true(sink:write(line(4)))
        assert.equal(line(4), sys.read(reader))
        assert.equal(2, drained)
        sys.close(reader)
        remove()
    end)

    it('drops what is buffered when the reader closes', function()
        local r, w = sys.pipe()
        sink = assert(core.sink(w))
        for i = 1, 2000 do
            sink:write(line(i))
        end
        sys.close(r)
        local lost = 0
        sys.await(function()
            lost = lost + sink:lost()
            return lost > 1000
        end, 'the loss')
        assert.is_true(sink:flush(0))
        sys.close(w)
    end)

    it('keeps what a full disk refuses, up to the bound', function()
        sink = assert(core.sink('/dev/full'))
        assert.is_true(sink:write(line(1)))
        local _, _, code = sink:flush(100)
        assert.equal('ENOSPC', code)
        local accepted = overfill(20000)
        assert.is_true(accepted > 10000)
        assert.equal(20000 - accepted, sink:lost())
    end)

    it('completes a torn line once the disk has room', function()
        local dir, remove = sys.temp_dir()
        sys.ignore(SIGXFSZ)
        sink = assert(core.sink(dir .. '/log'))
        local old = sys.limit('fsize', 250)
        for i = 1, 5 do
            assert.is_true(sink:write(line(i)))
        end
        assert.equal(250, core.stat(dir .. '/log').size)
        sys.limit('fsize', old)
        assert.is_true(sink:write(line(6)))
        local expected = ''
        for i = 1, 6 do
            expected = expected .. line(i)
        end
        assert.equal(expected, sys.read_file(dir .. '/log'))
        assert.equal(0, sink:lost())
        remove()
    end)

    it('reopens its file after rotation: no line lost, both files valid', function()
        local dir, remove = sys.temp_dir()
        local path = dir .. '/log'
        sink = assert(core.sink(path))
        assert.equal(tonumber('640', 8), bit.band(core.stat(path).mode, tonumber('640', 8)))
        sink:write(line(1))
        os.rename(path, path .. '.1')
        sink:write(line(2))
        assert.is_true(sink:reopen())
        sink:write(line(3))
        assert.equal(line(1) .. line(2), sys.read_file(path .. '.1'))
        assert.equal(line(3), sys.read_file(path))
        remove()
    end)

    it('stays with the old file if the new one cannot be opened', function()
        local dir, remove = sys.temp_dir()
        local path = dir .. '/log'
        sink = assert(core.sink(path))
        os.rename(path, path .. '.1')
        sys.C.mkdir(path, 448)
        local ok, message, code = sink:reopen()
        assert.is_nil(ok)
        assert.equal('EISDIR', code)
        assert.is_string(message)
        sink:write(line(1))
        assert.equal(line(1), sys.read_file(path .. '.1'))
        remove()
    end)

    it('takes what waits, whole, to the new file', function()
        local dir, remove = sys.temp_dir()
        local path = dir .. '/log'
        sys.C.symlink('/dev/full', path)
        sink = assert(core.sink(path))
        sink:write(line(1))
        sink:write(line(2))
        os.remove(path)
        assert.is_true(sink:reopen())
        assert.equal(line(1) .. line(2), sys.read_file(path))
        remove()
    end)

    it('appends, and shares a file with its workers', function()
        local dir, remove = sys.temp_dir()
        local path = dir .. '/log'
        sys.write_file(path, 'old\n')
        sink = assert(core.sink(path))
        sink:write(line(1))
        assert.equal('old\n' .. line(1), sys.read_file(path))
        remove()
    end)

    it('costs nothing while nothing waits', function()
        local r, w = sys.pipe()
        sink = assert(core.sink(w))
        for i = 1, 2000 do
            sink:write(line(i))
        end
        read_lines(r, 2000)
        loop.run_once(10)
        local start = sys.now()
        loop.run_once(150)
        assert.is_true(sys.now() - start >= 140)
        sys.close(r)
        sys.close(w)
    end)

    it('flush waits for a slow reader, but not longer than told', function()
        local r, w = sys.pipe()
        sink = assert(core.sink(w))
        for i = 1, 2000 do
            sink:write(line(i))
        end
        local start = sys.now()
        local _, _, code = sink:flush(50)
        assert.equal('ETIMEDOUT', code)
        local took = sys.now() - start
        assert.is_true(took >= 45 and took < 1000)
        sys.close(r)
        sys.close(w)
    end)

    it('refuses what it cannot open', function()
        for target, expected in pairs { [999] = 'EBADF', ['/'] = 'EISDIR', ['log'] = 'EINVAL',
            ['/nowhere/log'] = 'ENOENT' } do
            local s, message, code = core.sink(target)
            assert.is_nil(s)
            assert.is_string(message)
            assert.equal(expected, code)
        end
        assert.has_error(function()
            core.sink({})
        end)
    end)

    it('answers after close', function()
        local r, w = sys.pipe()
        sink = assert(core.sink(w))
        sink:close()
        sink:close()
        assert.same({ nil, 'closed', 'EBADF' }, { sink:write(line(1)) })
        assert.equal(0, sink:lost())
        sys.close(r)
        sys.close(w)
    end)

    it('may be closed in on_drain', function()
        local r, w = sys.pipe()
        sink = assert(core.sink(w))
        local closed
        sink:on_drain(function()
            sink:close()
            closed = true
        end)
        local accepted = overfill(20000)
        read_lines(r, accepted)
        sys.await(function()
            return closed
        end, 'on_drain')
        sys.close(r)
        sys.close(w)
    end)
end)
