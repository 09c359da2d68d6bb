local p = require 'spec.support.process'

describe('the memory of a child before it execs', function()
    p.leaves_nothing()

    it('costs no page of the heap, however large that is', function()
        if os.getenv 'DM_SANITIZE' then
            pending "the sanitizer's heap is another one"
            return
        end
        local function faults()
            local file = assert(io.open '/proc/self/stat')
            local count = file:read('*a'):match '%) %S+ %S+ %S+ %S+ %S+ %S+ %S+ (%d+)'
            file:close()
            return tonumber(count)
        end
        local ffi, memory, total = require 'ffi', {}, 4000
        for i = 1, total do
            memory[i] = ffi.new('char[4096]')
        end
        local record = p.spawn { '/bin/true' }
        local before = faults()
        for i = 1, total do
            memory[i][2048] = i % 100
        end
        assert.is_true(faults() - before < total / 4, faults() - before)
        assert.equal(total % 100, memory[total][2048])
        p.exit_of(record)
    end)

    it('has all that it needs: words, variables and pids of any number and length', function()
        local env, argv = { 'LAST=' .. ('x'):rep(100000) }, { 'sh', '-c', 'echo "$#" "${#LAST}" "$V500" '
            .. '"$LISTEN_PID" "$WATCHDOG_PID" "$$" "$1"', '-' }
        for i = 1, 500 do
            table.insert(env, 1, ('V%d=%d'):format(i, i))
            argv[#argv + 1] = ('word %d'):format(i)
        end
        local output = p.output_of { file = '/bin/sh', argv = argv, env = env, listen_pid = true, watchdog_pid = true }
        local pid = output:match '^500 100000 500 (%d+) '
        assert.equal(('500 100000 500 %s %s %s word 1\n'):format(pid, pid, pid), output)
    end)
end)
