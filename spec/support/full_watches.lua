--- Run by dm-spec in a process of its own: from some point on the kernel has no room for another watch (ENOSPC, see
-- fs.epoll.max_user_watches), at which libuv would abort(). Says what comes of that. usage: full_watches.lua

local core = require 'dutch-master.core'
local p = require 'spec.support.process'
local seccomp = require 'spec.support.seccomp'

local LINES, LINE = 3000, ('x'):rep(500)

local echo = p.sh('cat <&3 >&3', { channel = true })
local other = p.sh('read line <&3; exit 7', { channel = true })
local listener = core.listen(core.address '127.0.0.1:0', { reuseport = true })
local lane = listener:lane()
local watch = core.watch(error)
p.await(function() return echo.execs == 1 and other.execs == 1 end)

seccomp.refuse_watches()

-- What is new is refused, and leaves nothing.
local _, before = p.descriptors()
local refused = p.spawn { '/bin/true' }
assert(not refused.child and refused.code == 'ENOSPC', refused.code)
assert(not p.spawn({ '/bin/true', channel = true, capture_stderr = true }).child)
assert(select(3, watch:start { lane:fd() }) == 'ENOSPC')
local dial, _, code = core.dial('127.0.0.1:1', { on_data = error, on_end = error })
assert(not dial and code == 'ENOSPC', code)
assert(select(2, p.descriptors()) == before)

-- What was there goes on, also where it has to be watched for something else: for room to write.
for i = 1, LINES do
    assert(echo.child:send(LINE .. i))
end
p.await(function() return #echo.lines == LINES end, 30000, 'what was sent')
for i = 1, LINES do
    assert(echo.lines[i] == LINE .. i, i)
end
other.child:send 'go'
assert(p.exit_of(other).code == 7)
echo.child:signal 'SIGTERM'
assert(p.exit_of(echo).signal == 'SIGTERM')
watch:close()
listener:close()
print 'went on'
