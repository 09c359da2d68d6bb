--- Run by dm-spec in a process of its own: a child that is to die with us, and whose start fails behind the fork. Its
-- number may be another group's soon, so whoever kills the others at our death must not know it any more.

local ffi = require 'ffi'
local files = require 'spec.support.files'
local p = require 'spec.support.process'
local seccomp = require 'spec.support.seccomp'

-- The memory that we share with the watcher: a table of groups (deathwatch.c), all of it.
local function groups()
    local text = files.or_empty '/proc/self/maps'
    local first, last = text:match '(%x+)%-(%x+) rw%-s %x+ %x+:%x+ %d+ +/dev/zero'
    first, last = tonumber(first, 16), tonumber(last, 16)
    local list, table_ = {}, ffi.cast('const int *', ffi.cast('uintptr_t', first))
    for i = 0, (last - first) / 4 - 1 do
        list[#list + 1] = table_[i] ~= 0 and table_[i] or nil
    end
    return list
end

local lives = p.sh('read x <&3', { channel = true, die_with_master = true })
p.await(function() return lives.execs == 1 end)
assert(#groups() == 1 and groups()[1] == lives.pid)
seccomp.refuse_watches()
local refused = p.spawn { '/bin/true', die_with_master = true }
assert(not refused.child and refused.code == 'ENOSPC', refused.code)
assert(#groups() == 1, 'the group of the child that was given up is to be killed')
lives.child:send 'go'
p.exit_of(lives)
assert(#groups() == 0)
