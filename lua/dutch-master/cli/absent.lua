--- absent.lua: what is said of a master that cannot be asked: it hangs, it has gone, it is another user's.
-- Whoever reads this has trouble: which master it is, what becomes of its workers, and what to do.

local arguments = require 'dutch-master.cli.arguments'
local claim = require 'dutch-master.control.claim'
local format = require 'dutch-master.cli.format'

local M = {}

local function of_process(platform, pid, name)
    local known = pid and pid > 0 and platform.read_file
    return known and platform.read_file(('/proc/%d/%s'):format(pid, name), 65536) or nil
end

--- The script of the master `pid`: the word of its command line after which its socket is named.
function M.script_of(platform, pid, socket)
    local words = of_process(platform, pid, 'cmdline')
    local base = words and { cwd = function() return platform.readlink(('/proc/%d/cwd'):format(pid)) end }
    for word in (words or ''):gmatch '%Z+' do
        local path = arguments.absolute(base, word)
        if path and path ~= '/' and socket:match '[^/]+$' == claim.name_for(path) .. '.sock' then
            return path
        end
    end
end

--- What keeps it from answering, as far as the kernel can tell, and what to do.
local function reason(platform, pid)
    local state = (of_process(platform, pid, 'stat') or ''):match '^%d+ %(.*%) (%a)'
    if state == 'T' or state == 't' then
        return ('It is stopped, by a signal or a debugger: `kill -CONT %d` lets it go on.'):format(pid)
    elseif state == 'Z' or state == 'X' then
        return 'It has ended.'
    elseif state == 'D' then
        return 'It waits for a disk or a network file system, and cannot be killed meanwhile.'
    elseif state then
        return ('Its loop is busy or stuck (state %s). If it stays so, `kill -9 %d` ends it.'):format(state, pid)
    end
    return 'Its process cannot be seen from here.'
end

local function named(pid)
    return pid and pid > 0 and (' (pid %d)'):format(pid) or ''
end

--- It is connected, and says nothing. `changes`: it was asked to do something. -> text
function M.silent(platform, name, pid, changes)
    return ('%s: the master%s does not answer\n  %s\n  Its workers serve on.%s\n'):format(format.visible(name),
        named(pid), reason(platform, pid), changes and ' What it was asked to do it may still do, later.' or '')
end

--- It was connected, and is gone. why: what the connection died of, or nil
function M.gone(name, pid, changes, why)
    return ('%s: the master%s went away without an answer%s\n  %s`dutch-master list` shows what runs now.\n'):format(
        format.visible(name), named(pid), why and (' (%s)'):format(why) or '',
        changes and 'Whether it did what it was asked to do is not known. ' or '')
end

--- "user web (33)"
function M.user(platform, uid)
    local account = platform.getuser(uid)
    return account and ('user %s'):format(format.visible(account.name)) or ('user %d'):format(uid)
end

--- The owner of a file, or of its directory if the file cannot be seen. -> as M.user, or "another user"
function M.owner(platform, path)
    local there = platform.stat(path) or platform.stat(path:match '^(.+)/[^/]*$' or '/')
    return there and M.user(platform, there.uid) or 'another user'
end

--- Of one that masters.ask has found in trouble: { path, pid, script, problem, message } -> its lines, for `list`
function M.note(ctx, found)
    local platform, name = ctx.platform, format.visible(found.script or found.path)
    local function red(text)
        return ctx.paint('red', text)
    end
    if found.problem == 'hangs' then
        return ('%s%s: %s\n  %s\n'):format(name, named(found.pid), red 'does not answer', reason(platform, found.pid))
    elseif found.problem == 'foreign' then
        return ('%s: %s\n'):format(name, ctx.paint('dim', 'belongs to ' .. M.owner(platform, found.path)))
    elseif found.problem == 'failed' then
        return ('%s%s: %s\n'):format(name, named(found.pid), red('refused: ' .. format.visible(found.message)))
    end
    return ('%s: %s\n  No master listens there. Start its master again, or remove the file.\n'):format(name, red 'dead')
end

return M
