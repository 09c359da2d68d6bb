--- luajit without_steering.lua PROGRAM [ARGUMENTS...]: runs a program to which the kernel refuses steering.

local ffi = require 'ffi'

package.path = arg[0]:gsub('spec/support/[^/]*$', '?.lua;') .. package.path
require('spec.support.seccomp').refuse_steering()

ffi.cdef 'int execvp(const char *, const char *const *);'
local words = ffi.new('const char *[?]', #arg + 1)
for i = 1, #arg do
    words[i - 1] = arg[i]
end
ffi.C.execvp(arg[1], words)
os.exit(127)
