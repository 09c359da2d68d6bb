local core = require 'dutch-master.core'
local unistd = require 'posix.unistd'
local fcntl = require 'posix.fcntl'
local p = require 'spec.support.process'
local sys = require 'spec.support.sys'

--- A file to copy to: fd, and a function that gives what is in it and removes it.
local function target()
    local path = os.tmpname()
    local fd = assert(fcntl.open(path, fcntl.O_RDWR + fcntl.O_TRUNC))
    return fd, function()
        local text = p.read(path)
        unistd.close(fd)
        os.remove(path)
        return text
    end
end

local function captured(script, fd, opts)
    opts = opts or {}
    opts.capture_stderr, opts.stderr = true, fd
    return p.sh(script, opts)
end

local function drain(fd)
    local pieces = {}
    repeat
        local piece = unistd.read(fd, 65536)
        pieces[#pieces + 1] = piece
    until not piece or piece == ''
    return table.concat(pieces)
end

describe('captured output', function()
    p.leaves_nothing()

    it('is copied to its target, and its end kept', function()
        local fd, contents = target()
        local record = captured('echo one >&2; echo two >/dev/stderr; exit 1', fd)
        p.exit_of(record)
        assert.are.equal('one\ntwo\n', record.tail)
        assert.are.equal('one\ntwo\n', contents())
        assert.are.equal(0, record.status.stderr_lost)
    end)

    it('that has ended leaves its descriptor to nobody, whose channel would then be deaf', function()
        local fd, contents = target()
        local first = captured('echo over >&2; exec 2>&-; read x <&3', fd, { channel = true })
        p.await(function() return first.child:tail() == 'over\n' end)
        p.step() -- the end of its stderr comes with its last bytes, or after them
        local second = p.sh('read x <&3; echo heard >&3', { channel = true })
        first.child:close_channel()
        p.exit_of(first)
        second.child:send 'go'
        p.await(function() return second.lines[1] == 'heard' end)
        p.exit_of(second)
        contents()
    end)

    it('can be read while the child lives, not afterwards', function()
        local fd, contents = target()
        local record = captured('echo here >&2; read x <&3', fd, { channel = true })
        p.await(function() return record.child:tail() == 'here\n' end)
        record.child:close_channel()
        p.exit_of(record)
        assert.are.same({ nil, 'closed', 'EBADF' }, { record.child:tail() })
        contents()
    end)

    it('keeps the last 64 KiB of much more', function()
        local fd, contents = target()
        local record = captured('seq 1 200000 >&2', fd)
        p.exit_of(record)
        local all = contents()
        local expected = {}
        for i = 1, 200000 do
            expected[i] = i .. '\n'
        end
        expected = table.concat(expected)
        assert.are.equal(#expected - record.status.stderr_lost, #all)
        assert.is_true(expected == all)
        assert.are.equal(64 * 1024, #record.tail)
        assert.is_true(expected:sub(-64 * 1024) == record.tail)
    end)

    it('does not block on a target that is full, counts what is lost, and goes on', function()
        local out, into = unistd.pipe()
        fcntl.fcntl(out, fcntl.F_SETFL, fcntl.O_NONBLOCK)
        local record = captured('seq 1 200000 >&2; echo done >&3; read x <&3; echo last >&2', into, { channel = true })
        local longest = 0
        p.await(function()
            local start = core.now()
            p.step()
            longest = math.max(longest, core.now() - start)
            return #record.lines == 1
        end, 20000)
        assert.is_true(longest < 500 * p.patience, longest)
        -- Once read, what had been kept comes, and what follows.
        local text = drain(out)
        local quiet_since = core.now()
        while core.now() - quiet_since < 500 * p.patience do -- five times the interval of its attempts
            require('spec.loop').run_once(20)
            local more = drain(out)
            if more ~= '' then
                text, quiet_since = text .. more, core.now()
            end
        end
        assert.is_true(#text >= 200 * 1024, #text)
        record.child:send 'go'
        p.exit_of(record)
        text = text .. drain(out)
        assert.matches('\nlast\n$', text)
        assert.matches('^1\n2\n3\n', text)
        for line in text:sub(1, -6):gmatch '([^\n]*)\n' do
            assert.is_true(tostring(tonumber(line)) == line and tonumber(line) <= 200000, line)
        end
        local last = 0
        for line in text:sub(1, -6):gmatch '%d+' do
            assert.is_true(tonumber(line) > last, 'halves make up ' .. line)
            last = tonumber(line)
        end
        assert.are.equal(1288895 + 5, #text + record.status.stderr_lost)
        unistd.close(out)
        unistd.close(into)
    end)

    it('survives a target that nobody reads, and one that is full for good', function()
        local out, into = unistd.pipe()
        unistd.close(out)
        local record = captured('echo a >&2; echo b >&2; exit 3', into)
        assert.are.equal(3, p.exit_of(record).code)
        assert.are.equal('a\nb\n', record.tail)
        assert.are.equal(4, record.status.stderr_lost)
        unistd.close(into)
        local full = assert(fcntl.open('/dev/full', fcntl.O_WRONLY))
        record = captured('echo a >&2; exit 4', full)
        assert.are.equal(4, p.exit_of(record).code)
        assert.are.equal(2, record.status.stderr_lost)
        unistd.close(full)
    end)

    it('goes on into a file that had reached a limit, when that has room again', function()
        local fd, contents = target()
        sys.ignore(25) -- SIGXFSZ, as in main.c
        local record = captured('echo one >&2; read x <&3; echo two >&2; read x <&3; echo three >&2', fd,
            { channel = true })
        p.await(function() return record.child:tail() == 'one\n' end)
        local old = sys.limit('fsize', 4)
        record.child:send 'go'
        p.await(function() return record.child:tail() == 'one\ntwo\n' end)
        sys.limit('fsize', old)
        record.child:send 'go'
        p.exit_of(record)
        assert.are.equal('one\nthree\n', contents())
        assert.are.equal(4, record.status.stderr_lost)
    end)

    it('keeps the lines of several children whole', function()
        local fd, contents = target()
        local records = {}
        for i = 1, 4 do
            local script = 'i=0; while [ $i -lt 300 ]; do printf "%d " >&2; printf "line\\n" >&2; i=$((i+1)); done'
            records[i] = captured(script:format(i), fd)
        end
        for _, record in ipairs(records) do
            p.exit_of(record, 20000)
        end
        local count = 0
        for line in contents():gmatch '([^\n]*)\n' do
            count = count + 1
            assert.matches('^%d line$', line)
        end
        assert.are.equal(1200, count)
    end)

    it('delivers an unfinished last line, and pieces of an endless one', function()
        local fd, contents = target()
        local record = captured('head -c 10000 /dev/zero | tr "\\0" x >&2; printf end >&2', fd)
        p.exit_of(record)
        assert.are.equal(('x'):rep(10000) .. 'end', contents())
    end)

    it('does not let a grandchild that holds it delay the exit', function()
        local fd, contents = target()
        local record = captured('setsid -f sh -c "sleep 1000"; echo last >&2; exit 2', fd)
        local start = core.now()
        assert.are.equal(2, p.exit_of(record).code)
        assert.is_true(core.now() - start < 2000 * p.patience)
        assert.are.equal('last\n', contents())
    end)

    it('does not block on a terminal that nobody reads', function()
        local reader, terminal = sys.pty()
        local flags = sys.flags(terminal)
        local record = captured('seq 1 200000 >&2; echo done >&3; read x <&3; exit 3', terminal, { channel = true })
        p.await(function() return record.lines[1] end, 20000)
        record.child:close_channel()
        assert.are.equal(3, p.exit_of(record).code)
        assert.is_true(record.status.stderr_lost > 0)
        assert.are.equal(flags, sys.flags(terminal))
        sys.set_nonblocking(reader)
        assert.matches('^1\r\n2\r\n3\r\n', sys.read(reader))
        sys.close(terminal)
        sys.close(reader)
    end)

    it('is shown while it comes, stdout apart from stderr', function()
        local out, out_contents = target()
        local err, err_contents = target()
        local shown = { stdout = '', stderr = '' }
        local record = p.sh('echo one; echo two >&2; printf three', {
            capture_stdout = true, capture_stderr = true, stdout = out, stderr = err,
            on_output = function(_, stream, bytes)
                shown[stream] = shown[stream] .. bytes
            end,
        })
        p.exit_of(record)
        assert.are.same({ stdout = 'one\nthree', stderr = 'two\n' }, shown)
        assert.are.same({ 'one\nthree', 'two\n' }, { out_contents(), err_contents() })
        assert.are.equal('two\n', record.tail)
    end)

    it('that is stdout alone leaves stderr where it goes', function()
        local out, out_contents = target()
        local err, err_contents = target()
        local record = p.sh('echo one; echo two >&2', { capture_stdout = true, stdout = out, stderr = err })
        p.exit_of(record)
        assert.are.same({ 'one\n', 'two\n', '' }, { out_contents(), err_contents(), record.tail })
    end)

    it('does not change the target for others', function()
        local out, into = unistd.pipe()
        local record = captured('echo x >&2', into)
        p.exit_of(record)
        assert.are.equal(0, bit.band(fcntl.fcntl(into, fcntl.F_GETFL), fcntl.O_NONBLOCK))
        unistd.close(out)
        unistd.close(into)
    end)
end)
