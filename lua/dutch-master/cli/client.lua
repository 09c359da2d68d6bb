--- The verbs' side of the control socket: finds the master of a script, asks, and hands over what it says.

local absent = require 'dutch-master.cli.absent'
local cjson = require 'cjson.safe'
local claim = require 'dutch-master.control.claim'
local wire = require 'dutch-master.control.wire'
local format = require 'dutch-master.cli.format'
local masters = require 'dutch-master.cli.masters'
local Peer = require 'dutch-master.cli.peer'

local M = {}

local FAILED, USAGE, NOT_RUNNING, NOT_PERMITTED, TIMED_OUT = 1, 2, 3, 77, 124

--- Masters in a row that may die before they have said a word.
M.MOST_LOST = 20

--- Where the master of the script may listen, the likely place first. The master may have been started by a service
-- manager, without the XDG_RUNTIME_DIR of the shell that asks, or as the owner of the script when root asks.
local function places(ctx)
    local platform, name = ctx.platform, claim.name_for(ctx.script) .. '.sock'
    local found, seen = {}, {}
    local function add(dir)
        local path = dir and dir .. '/' .. name
        if not path or seen[path] then
            return
        end
        seen[path] = true
        local there, _, code = platform.stat(path)
        if there then
            found[#found + 1] = path
        elseif code == 'EACCES' then
            ctx.hidden_place = dir
        end
    end
    if ctx.options.socket then
        return { ctx.options.socket }
    end
    add((platform.runtime_dir()))
    -- One that this user may not use is no runtime directory, but tells that there may be a master.
    local chosen = platform.environ().DUTCH_MASTER_RUNTIME_DIR
    add(chosen ~= '' and chosen or nil)
    local owner = platform.stat(ctx.script)
    for _, uid in ipairs { platform.uid(), owner and owner.uid or platform.uid() } do
        for _, dir in ipairs(masters.of_user(platform, uid)) do
            add(dir)
        end
    end
    -- Root asks for services of users that may have another name than the owner of the script.
    if platform.uid() == 0 then
        for _, dir in ipairs(masters.services(platform)) do
            add(dir)
        end
    end
    return found
end

--- The plan that the script makes now, or nil.
function M.plan(ctx)
    local text = ctx.platform.stat(ctx.script) and ctx.platform.check and ctx.platform.check(ctx.script)
    local checked = text and cjson.decode(text)
    return type(checked) == 'table' and type(checked.plan) == 'table' and checked.plan or nil
end

--- The peer must be somebody whose answer counts: a socket in a directory that anybody may write to is nobody's word.
-- In /run only root can have made that of a service.
local function is_trusted(ctx, conn, path)
    local uid = conn:uid()
    local owner = ctx.platform.stat(ctx.script)
    if uid == nil or uid == 0 or uid == ctx.platform.uid() or (owner and owner.uid == uid) then
        return true
    end
    local service = ctx.platform.uid() == 0 and path:match '^(/run/dutch%-master%-[^/]+)/[^/]+$'
    local dir = service and ctx.platform.stat(service)
    return dir ~= nil and dir and dir.uid == uid
end

--- Nobody named a script and none is here: the only master there is, is meant.
-- -> conn, or nil and the sockets there are
local function only_one(ctx)
    local living = masters.living(ctx.platform)
    if #living == 1 then
        local only = living[1]
        ctx.script_name = absent.script_of(ctx.platform, only.conn:pid(), only.path) or only.path
        ctx.place = only.path
        return only.conn
    end
    local paths = {}
    for i, master in ipairs(living) do
        master.conn:close()
        paths[i] = master.path
    end
    return nil, paths
end

-- -> conn, or nil, message, code
local function connect_to(ctx, path)
    local conn, why, kind = ctx.platform.connect(path)
    if conn and not is_trusted(ctx, conn, path) then
        why, kind = ('%s is served by user %d'):format(path, conn:uid()), 'EPERM'
        conn:close()
        conn = nil
    end
    if conn then
        ctx.place = path
    end
    return conn, why, kind
end

local function connect(ctx)
    local message, code = nil, 'ENOENT'
    if ctx.picks and not ctx.names_script and not ctx.options.socket and not ctx.platform.stat(ctx.script) then
        local conn, several = only_one(ctx)
        if conn then
            return conn
        elseif several[1] then
            return nil, several, 'ESEVERAL'
        end
    end
    local function try(path)
        local conn, why, kind = connect_to(ctx, path)
        if not conn and kind ~= 'ENOENT' and kind ~= 'ECONNREFUSED' then
            message, code, ctx.refused_place = why, kind, path
        end
        return conn
    end
    for _, path in ipairs(places(ctx)) do
        local conn = try(path)
        if conn then
            return conn
        end
    end
    local plan = not ctx.options.socket and M.plan(ctx)
    local conn = plan and plan.control_socket and try(plan.control_socket)
    if conn then
        return conn
    end
    return nil, message, code
end

--- Says why it fails. -> exit code, FAILED if none is given
function M.fail(ctx, message, code)
    ctx.err('dutch-master: ' .. message .. '\n')
    return code or FAILED
end

--- Says what came of it: `value` as a line of JSON where that is wanted, else `text`. -> exit code
function M.tell(ctx, value, text)
    ctx.out(ctx.options.json and wire.encode(value) .. '\n' or text)
    return 0
end

-- Several masters, and none was named: says which there are.
local function name_choices(ctx, verb)
    masters.ask(ctx.platform, { verb = 'status' }, function(found)
        local lines, troubled = {}, {}
        for _, master in ipairs(found) do
            if master.status then
                lines[#lines + 1] = ('  dutch-master %s %s\n'):format(verb, format.visible(master.status.script))
            elseif master.problem == 'hangs' then
                troubled[#troubled + 1] = absent.note(ctx, master)
            end
        end
        ctx.err(('dutch-master: there is no ./master.lua, and several masters run: which one?\n%s%s')
            :format(table.concat(lines), table.concat(troubled)))
        M.finish(ctx, USAGE)
    end)
end

--- Ends the program, once.
function M.finish(ctx, code)
    if not ctx.finished then
        ctx.finished = true
        ctx.platform.stop(code)
    end
end

--- Verbs after which it matters whether the master took notice.
local CHANGES = { restart = true, reload = true, scale = true, stop = true, upgrade = true }

--- The master that was asked `verb` says nothing.
function M.say_silent(ctx, verb)
    ctx.err('dutch-master: ' .. absent.silent(ctx.platform, ctx.script_name, ctx.master_pid, CHANGES[verb]))
end

--- The master that was asked `verb` has hung up. -> exit code
function M.say_gone(ctx, verb, reason)
    ctx.err('dutch-master: ' .. absent.gone(ctx.script_name, ctx.master_pid, CHANGES[verb], reason))
    return FAILED
end

-- Neither a script was named nor is one here.
local function no_script(ctx, verb)
    return ('there is no %s%s\n  Name the script: dutch-master %s /path/to/master.lua%s'):format(ctx.script,
        ctx.picks and ', and no master ' .. (ctx.platform.uid() == 0 and 'runs' or 'of this user runs') or '', verb,
        ctx.picks and '' or '\n  (`dutch-master list` shows those that run)')
end

local function no_master(ctx, request, message, code)
    if code == 'ESEVERAL' then
        return name_choices(ctx, ctx.verb or request.verb)
    end
    if code == 'EACCES' or code == 'EPERM' then
        return M.fail(ctx, ('%s: the master belongs to %s (%s)\n  Ask as that user, or as root.'):format(
            ctx.script_name, absent.owner(ctx.platform, ctx.refused_place), message), NOT_PERMITTED)
    elseif not message and ctx.hidden_place and not ctx.options.socket then
        -- It must not pass for "not running": whoever asks would start it, and take that for a deploy.
        local told = '%s: this user cannot see whether it runs: %s belongs to %s\n  Ask as that user, or as root.'
        return M.fail(ctx, told:format(ctx.script, ctx.hidden_place, absent.owner(ctx.platform, ctx.hidden_place)),
            NOT_PERMITTED)
    elseif message then
        return M.fail(ctx, ('%s: %s'):format(ctx.script_name, message))
    end
    if ctx.options.json then
        ctx.out(wire.encode { running = false, script = ctx.script } .. '\n')
    end
    local told = ('%s: not running (start it with `dutch-master %s`)'):format(ctx.script, ctx.script_name)
    if ctx.options.socket then
        told = ctx.options.socket .. ': no master listens there'
    elseif not ctx.platform.stat(ctx.script) then
        told = not ctx.names_script and no_script(ctx, ctx.verb or request.verb)
            or ctx.script .. ': not running, and there is no such file'
    end
    return M.fail(ctx, told, NOT_RUNNING)
end

--- By this the next master knows that it is the same request. Clients of several pid namespaces may ask one master, so
-- it is random.
function M.key(ctx)
    local random = ctx.platform.read_file('/proc/sys/kernel/random/uuid', 64)
    return random and random:match '%S+' or ('%d-%.0f'):format(ctx.platform.pid(), ctx.platform.now())
end

--- One connection for many questions: see peer.lua. on_lost(reason) when the master hangs up.
-- -> peer, or nil, exit code (nil: the loop must run, and ends by itself)
function M.peer(ctx, verb, on_lost)
    local conn, message, code = connect(ctx)
    if not conn then
        return nil, no_master(ctx, { verb = verb }, message, code)
    end
    ctx.master_pid = conn:pid()
    return Peer.new(ctx.platform, conn, on_lost)
end

--- The same, with the master that follows one that died. -> peer, or nil: none does
function M.next_peer(ctx, on_lost)
    local conn = connect_to(ctx, ctx.place)
    if conn then
        ctx.master_pid = conn:pid()
        return Peer.new(ctx.platform, conn, on_lost)
    end
end

--- A question was refused. -> exit code
function M.refused(ctx, verb, error)
    if error.code == 'EPERM' then
        return M.fail(ctx, ('%s: not permitted: %s'):format(ctx.script_name, format.visible(error.message)),
            NOT_PERMITTED)
    end
    return M.fail(ctx, ('%s: %s'):format(verb, format.block(error.message)))
end

--- Asks `request`. on.event(message), on.done(message) -> exit code, or nil to go on; on.failed(error) -> exit code, or
-- nil: it is said as it is.
-- A master that is kept may die meanwhile: another one follows, and is asked the same; what must not be done twice has
-- a `key`. on.lost(reason) -> exit code, or nil: so it is. on.gone(reason) -> exit code, where no other master follows.
-- The first word must come within the time of a Peer, of the next master within on.again_ms. The rest may take its
-- time, unless on.timeout_ms is given, for the whole, with on.timed_out() -> exit code.
-- Returns an exit code; or nil and a function that asks once more, and the loop must run.
function M.ask(ctx, request, on)
    local heard, lost = false, 0
    local peer, code, whole, lose
    local function leave(exit_code)
        if exit_code then
            M.finish(ctx, exit_code)
        end
    end
    local function silent()
        M.say_silent(ctx, request.verb)
        M.finish(ctx, TIMED_OUT)
    end
    local function ask()
        peer:ask(request, {
            timeout_ms = lost > 0 and on.again_ms or nil,
            silent = silent,
            event = function(answer)
                heard, lost = true, 0
                return on.event and on.event(answer)
            end,
            done = function(answer, error)
                heard, lost = true, 0
                if answer then
                    return leave(on.done(answer))
                end
                local told = error.code ~= 'EPERM' and on.failed and on.failed(error)
                M.finish(ctx, told or M.refused(ctx, request.verb, error))
            end,
        })
    end
    function lose(reason)
        if ctx.finished then
            return
        end
        local told = on.lost and on.lost(reason)
        if not told then
            lost = lost + 1
            peer = lost <= M.MOST_LOST and M.next_peer(ctx, lose)
            if peer then
                return ask()
            end
            told = on.gone and on.gone(reason) or M.say_gone(ctx, request.verb, reason)
        end
        M.finish(ctx, told)
    end
    peer, code = M.peer(ctx, request.verb, lose)
    if not peer then
        return code
    end
    if on.timeout_ms then
        whole = ctx.platform.timer(function()
            if not heard then
                return silent()
            end
            leave(on.timed_out())
        end)
        whole:start(on.timeout_ms)
    end
    ask()
    return nil, ask
end

return M
