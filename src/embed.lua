-- Build time: writes the Lua files given as one C file, after a look at their syntax. The text, not bytecode:
-- string.dump orders constant tables by their hash, which differs from run to run, and two builds of one tree must be
-- the same.
-- usage: luajit embed.lua ROOT OUTPUT FILE...
-- A file is known by its path below ROOT, without ".lua": see src/lua/embedded_table.h.

local root, output = arg[1], arg[2]
local names, out = {}, {}
for i = 3, #arg do
    names[#names + 1] = assert(arg[i]:match('^' .. root:gsub('%p', '%%%0') .. '/(.+)%.lua$'), arg[i])
end
table.sort(names)

out[#out + 1] = '#include "lua/embedded_table.h"'
for index, name in ipairs(names) do
    local file = assert(io.open(root .. '/' .. name .. '.lua', 'rb'))
    local source = file:read('*a')
    file:close()
    assert(loadstring(source, '@lua/' .. name .. '.lua'))
    local bytes = {}
    for i = 1, #source do
        bytes[i] = source:byte(i) .. (i % 24 == 0 and ',\n' or ',')
    end
    out[#out + 1] = ('static const unsigned char m%d[] = {%s};'):format(index, table.concat(bytes))
end
out[#out + 1] = 'const struct dm_embedded dm_embedded[] = {'
for index, name in ipairs(names) do
    out[#out + 1] = ('    {"%s", m%d, sizeof m%d},'):format(name, index, index)
end
out[#out + 1] = '    {0, 0, 0},\n};'

local file = assert(io.open(output, 'wb'))
file:write(table.concat(out, '\n'), '\n')
file:close()
