--- luajit refusing.lua WHAT PROGRAM [ARGUMENTS...]: runs a program to which the kernel refuses something: steering, or
-- close_range as before Linux 5.11.

local ffi = require 'ffi'

package.path = arg[0]:gsub('spec/support/[^/]*$', '?.lua;') .. package.path
require('spec.support.seccomp')['refuse_' .. table.remove(arg, 1)]()

ffi.cdef 'int execvp(const char *, const char *const *);'
local words = ffi.new('const char *[?]', #arg + 1)
for i = 1, #arg do
    words[i - 1] = arg[i]
end
ffi.C.execvp(arg[1], words)
os.exit(127)
