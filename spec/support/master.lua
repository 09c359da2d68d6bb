-- The real binary as a child of the specs, and everything one can ask about it from outside: its log,
-- its processes, its files, its exit. Built on luv alone, so that it does not rest on the code under
-- test. Longer than 400 lines: one object, and one process, which all e2e specs ask the same questions.
--
--     local m = master.start { script = [[require('dutch-master').start { worker = 'app.lua' }]],
--                              files = { ['app.lua'] = '...' } }
--     m:await 'Cluster ready'
--     m:signal 'SIGUSR2'
--     m:await 'Restart complete'
--     m:finish { code = 0 }
--
-- with `after_each(master.cleanup)`, which ends what a failed spec has left behind.

local uv = require 'luv'
local cjson = require 'cjson'
local files = require 'spec.support.files'
local load = require 'spec.support.load'
local pair = require 'spec.support.pair'
local wait = require 'spec.support.wait'

local M = {}
local Master = {}
Master.__index = Master

M.wait_until = wait.wait_until

local running = {} -- every master that was not finished
local baseline -- the descriptors before the first of them
local count = 0
local START_MS, EXIT_MS = 30000, 40000 -- a machine that does much else as well starts Node in seconds
local KEEPER = os.getenv 'DM_KEEPER' ~= '0' -- 0: no master gets a keeper, unless the spec says so
local SANITIZED = os.getenv 'DM_SANITIZE' ~= nil

--- The build that is tested.
function M.binary()
    return uv.fs_realpath((os.getenv 'DM_BUILD' or 'build') .. '/dutch-master')
end

-- Files

local function write_file(path, content)
    local text = type(content) == 'table' and content.text or content
    local mode = type(content) == 'table' and content.mode or (text:sub(1, 2) == '#!' and '755' or '644')
    local dir = path:match '^(.*)/'
    os.execute(("mkdir -p '%s'"):format(dir))
    local file = assert(io.open(path .. '.new', 'w'))
    file:write(text)
    file:close()
    assert(uv.fs_chmod(path .. '.new', tonumber(mode, 8)))
    assert(uv.fs_rename(path .. '.new', path))
end

local function list(dir)
    local names = {}
    local scan = uv.fs_scandir(dir)
    while scan do
        local name = uv.fs_scandir_next(scan)
        if not name then
            break
        end
        names[#names + 1] = name
    end
    return names
end

--- A new empty directory; removed by M.cleanup().
local temp_dirs = {}
function M.temp_dir()
    local dir = assert(uv.fs_mkdtemp((os.getenv 'TMPDIR' or '/tmp') .. '/dm-spec-XXXXXX'))
    temp_dirs[#temp_dirs + 1] = dir
    return dir
end

-- Processes

local function process_state(pid)
    local stat = files.read(('/proc/%d/stat'):format(pid))
    if stat then
        return stat:match '%) (%a) (%d+)' -- t is a letter too: stopped by a tracer, such as a leak checker's
    end
end

local function is_alive(pid)
    local state = process_state(pid)
    return state ~= nil and state ~= 'Z' and state ~= 'X'
end

-- Number -> what it is. Reading the directory takes one itself, which is gone afterwards.
local function descriptors()
    local open = {}
    for _, name in ipairs(list '/proc/self/fd') do
        open[name] = uv.fs_readlink('/proc/self/fd/' .. name)
    end
    return open
end

local function new_descriptors(before)
    local found = {}
    for name, what in pairs(descriptors()) do
        if before[name] == nil then
            found[#found + 1] = name .. ' ' .. what
        end
    end
    return found
end

-- libuv makes descriptors of its own at the first child and pipe; later ones are then comparable.
local warm
local function warm_up()
    if not warm then
        uv.new_pipe(false):close()
        local process, message
        process, message = uv.spawn('true', {}, function()
            process:close()
            warm = true
        end)
        assert(process, 'cannot run true: ' .. tostring(message))
        wait.wait_until(function() return warm end, { what = 'true' })
    end
end

-- Starting

local function environment(self, more)
    local env = uv.os_environ()
    for name in pairs(env) do
        if name:match '^LISTEN_' or name:match '^DUTCH_MASTER_[PWSG]' or name:match '^NODE_CHANNEL'
            or name == 'NODE_UNIQUE_ID' or name == 'NOTIFY_SOCKET' then
            env[name] = nil
        end
    end
    env.DM_SPEC_ID = self.id
    env.DUTCH_MASTER_RUNTIME_DIR = self.dir .. '/run'
    if SANITIZED then
        -- handle_segv: specs kill workers by SIGSEGV, which must then be what the master sees.
        env.ASAN_OPTIONS = 'log_path=' .. self.dir .. '/sanitizer:detect_leaks=1:handle_segv=0:verify_asan_link_order=0'
        env.UBSAN_OPTIONS = 'print_stacktrace=1:log_path=' .. self.dir .. '/sanitizer'
        env.LSAN_OPTIONS = 'suppressions=' .. uv.cwd() .. '/spec/support/lsan.supp:print_suppressions=0'
    end
    for name, value in pairs(more or {}) do
        env[name] = value or nil
    end
    local result = {}
    for name, value in pairs(env) do
        result[#result + 1] = name .. '=' .. value
    end
    return result
end

local function command(self, options)
    local words = {}
    for _, word in ipairs(options.wrap or {}) do
        words[#words + 1] = word
    end
    words[#words + 1] = options.binary or M.binary()
    for _, word in ipairs(options.before or {}) do
        words[#words + 1] = word
    end
    if options.script ~= false then
        words[#words + 1] = options.script_path or self.script
    end
    local keeper = options.keeper
    if keeper == false or keeper == nil and not KEEPER and options.script ~= false and not options.before then
        words[#words + 1] = '--no-keeper'
    end
    for _, word in ipairs(options.args or {}) do
        words[#words + 1] = word
    end
    if options.close_fds then
        local closing = {}
        for _, fd in ipairs(options.close_fds) do
            closing[#closing + 1] = fd == 0 and '<&-' or (fd .. '>&-')
        end
        words = { 'sh', '-c', 'exec "$0" "$@" ' .. table.concat(closing, ' '), unpack(words) }
    end
    return words
end

local function lines_of(pipe, on_line, on_end)
    local rest = ''
    pipe:read_start(function(_, data)
        if not data then
            if rest ~= '' then
                on_line(rest)
            end
            pipe:close()
            return on_end()
        end
        rest = rest .. data
        local first = 1
        local newline = rest:find('\n', 1, true)
        while newline do
            on_line(rest:sub(first, newline - 1))
            first = newline + 1
            newline = rest:find('\n', first, true)
        end
        rest = rest:sub(first)
    end)
end

-- A record of the master, or nil. A worker that writes no newline, or writes it later, shares its line with the next
-- record: before is what stood there.
local function record_in(line)
    local at = line:find('{"name":', 1, true) or 1
    local ok, record = pcall(cjson.decode, line:sub(at))
    if ok and type(record) == 'table' and record.msg then
        return record, line:sub(1, at - 1)
    end
end

function Master:read_output(out, err)
    lines_of(out, function(line)
        local record, before = record_in(line)
        if record then
            record.index, record.arrived = #self.log + 1, uv.hrtime()
            self.log[record.index] = record
        end
        -- What the workers print, or what the command line says.
        if not record or before ~= '' then
            self.output[#self.output + 1] = before or line
        end
    end, function()
        self.out_ended = true
    end)
    lines_of(err, function(line)
        self.stderr = self.stderr .. line .. '\n'
    end, function()
        self.err_ended = true
    end)
end

--- Starts `dutch-master master.lua`. options:
---   script     text of master.lua; false: no script argument at all
---   files      { name = text, or { text=, mode='755' } }, beside it; '#!' makes a file executable
---   before, args  words before and after the script's path; keeper  false for a master that nobody keeps
---   env        { NAME = value, or false to remove it }
---   wrap       words in front of the binary, such as { 'strace', '-f', '-o', path }
---   cwd        directory, else the one of the script; close_fds { 0, 1, 2 }; binary another program
--- The result has .dir, .app (the script's directory), .script, .pid, .log, .output (other lines of
--- stdout), .stderr.
function M.start(options)
    warm_up()
    collectgarbage()
    count = count + 1
    local self = setmetatable({
        id = ('%d.%d.%d'):format(uv.os_getpid(), count, math.random(1, 1e9)),
        log = {},
        output = {},
        stderr = '',
        wrapped = options.wrap ~= nil,
    }, Master)
    self.dir = assert(uv.fs_mkdtemp((os.getenv 'TMPDIR' or '/tmp') .. '/dm-spec-XXXXXX'))
    self.app = self.dir .. '/app'
    self.script = self.app .. '/master.lua'
    assert(uv.fs_mkdir(self.dir .. '/run', tonumber('700', 8)))
    assert(uv.fs_mkdir(self.app, tonumber('755', 8)))
    assert(uv.fs_chmod(self.dir, tonumber('755', 8)))
    if options.script then
        write_file(self.script, options.script)
    end
    for name, content in pairs(options.files or {}) do
        write_file(self.app .. '/' .. name, content)
    end
    if next(running) == nil then
        baseline = descriptors()
    end
    local out, err = uv.new_pipe(false), uv.new_pipe(false)
    local words = command(self, options)
    local file = table.remove(words, 1)
    local process, pid = uv.spawn(file, {
        args = words,
        env = environment(self, options.env),
        cwd = options.cwd or self.app,
        stdio = { nil, out, err },
    }, function(code, signal)
        self.ended = { code = signal == 0 and code or nil, signal = signal ~= 0 and M.signal_name(signal) or nil }
        self.process:close()
    end)
    assert(process, ('cannot start %s: %s'):format(file, tostring(pid)))
    self.process, self.pid = process, pid
    self:read_output(out, err)
    running[self] = true
    return self
end

--- 15 -> 'SIGTERM'
function M.signal_name(number)
    for name, value in pairs(uv.constants) do
        if value == number and name:match '^SIG%u+' then
            return name
        end
    end
    return 'signal ' .. number
end

-- Asking

--- All that is known, for the message of a failure.
function Master:dump()
    local parts = { ('--- %s, %s'):format(self.dir, self.ended and cjson.encode(self.ended) or 'running') }
    for _, record in ipairs(self.log) do
        local copy = {}
        for key, value in pairs(record) do
            if key ~= 'index' and key ~= 'arrived' and key ~= 'v' and key ~= 'hostname' and key ~= 'name' and key ~= 'pid' then
                copy[key] = value
            end
        end
        parts[#parts + 1] = cjson.encode(copy)
    end
    if #self.output > 0 then
        parts[#parts + 1] = '--- other output\n' .. table.concat(self.output, '\n', math.max(1, #self.output - 50))
    end
    if self.stderr ~= '' then
        parts[#parts + 1] = '--- stderr\n' .. self.stderr:sub(-8000)
    end
    for _, pid in ipairs(self:tree()) do
        local words = files.or_empty(('/proc/%d/cmdline'):format(pid)):gsub('%z', ' ')
        parts[#parts + 1] = ('--- alive: %d %s %s'):format(pid, process_state(pid) or '?', words)
    end
    return table.concat(parts, '\n')
end

local function matches(record, what)
    if type(what) == 'string' then
        return record.msg == what
    elseif type(what) == 'function' then
        return what(record)
    end
    for key, value in pairs(what) do
        if record[key] ~= value then
            return false
        end
    end
    return true
end

--- The records that match: a message, a table of fields, or a predicate; all without an argument.
function Master:records(what, after)
    local found = {}
    for index = (after and (type(after) == 'table' and after.index or after) or 0) + 1, #self.log do
        if what == nil or matches(self.log[index], what) then
            found[#found + 1] = self.log[index]
        end
    end
    return found
end

--- When a record was written, in milliseconds of its day.
function M.ms_of(record)
    local h, min, s = record.time:match 'T(%d+):(%d+):([%d.]+)Z'
    return (h * 3600 + min * 60 + s) * 1000
end

--- A place in the log, to await something `after` it.
function Master:mark()
    return #self.log
end

--- Waits for a record and returns it. options: timeout (ms); count: the so-manieth of them; after: a
--- record or a mark, only later ones count. Fails with all that is known.
function Master:await(what, options)
    options = options or {}
    local wanted = options.count or 1
    local found
    wait.try(function()
        found = self:records(what, options.after)[wanted]
        return found or (self.ended and self.out_ended)
    end, { timeout = options.timeout or START_MS })
    if not found then
        local name = type(what) == 'string' and ("'%s'"):format(what)
            or type(what) == 'table' and cjson.encode(what) or 'a record'
        error(('%s did not come%s\n%s'):format(name, wanted > 1 and (' %d times'):format(wanted) or '', self:dump()), 2)
    end
    return found
end

--- Waits for a line of other output that matches the pattern; returns what string.match gives.
function Master:await_output(pattern, options)
    local result
    wait.try(function()
        for _, line in ipairs(self.output) do
            result = result or line:match(pattern)
        end
        return result or (self.ended and self.out_ended)
    end, options)
    if not result then
        error(("no output matched '%s'\n%s"):format(pattern, self:dump()), 2)
    end
    return result
end

--- Waits until predicate() is true; `what` names it in the failure.
function Master:wait_until(predicate, what, options)
    local result = wait.try(predicate, options)
    if not result then
        error(('timed out waiting for %s\n%s'):format(what or 'a condition', self:dump()), 2)
    end
    return result
end

--- The pid of the master itself, also behind a wrapper.
function Master:master_pid()
    if not self.wrapped then
        return self.pid
    end
    return self:await(function(record) return record.pid ~= nil end).pid
end

--- Sends a signal to the master.
function Master:signal(name)
    local ok, message = uv.kill(self:master_pid(), name:lower())
    if not ok then
        error(('cannot send %s: %s\n%s'):format(name, message, self:dump()), 2)
    end
end

--- The process that does its work, where it has a keeper: see pair.lua.
function Master:process_pid()
    return pair.master(self:master_pid())
end

--- Ends it, and its keeper with it, as a kill -9 of everything would.
function Master:kill()
    assert(pair.kill(self:master_pid()))
end

--- Replaces a file beside the script, atomically.
function Master:rewrite(name, content)
    write_file(self.app .. '/' .. name, content)
end

--- The path of a file beside the script.
function Master:path(name)
    return self.app .. '/' .. name
end

-- Ours by the variable that all of them inherit, but for those that cleared their environment: these
-- are found as children of one of ours.
function Master:is_ours(pid)
    local environ = files.read(('/proc/%d/environ'):format(pid))
    return environ ~= nil and ('\0' .. environ):find('\0DM_SPEC_ID=' .. self.id .. '\0', 1, true) ~= nil
end

--- Every living process of this master, itself included.
function Master:tree()
    local parents, ours = {}, {}
    for _, name in ipairs(list '/proc') do
        local pid = tonumber(name)
        local state, parent = nil, nil
        if pid then
            state, parent = process_state(pid)
        end
        if state and state ~= 'Z' and state ~= 'X' then
            parents[pid] = tonumber(parent)
            ours[pid] = self:is_ours(pid) or nil
        end
    end
    if not self.ended then
        ours[self.pid] = true
    end
    local grown = true
    while grown do
        grown = false
        for pid, parent in pairs(parents) do
            if not ours[pid] and ours[parent] then
                ours[pid], grown = true, true
            end
        end
    end
    local pids = {}
    for pid in pairs(ours) do
        pids[#pids + 1] = pid
    end
    table.sort(pids)
    return pids
end

--- The pids of workers that the log has named and that are alive.
function Master:workers()
    local seen, pids = {}, {}
    for _, record in ipairs(self.log) do
        local pid = record.workerPid
        if type(pid) == 'number' and not seen[pid] then
            seen[pid] = true
            if is_alive(pid) and self:is_ours(pid) then
                pids[#pids + 1] = pid
            end
        end
    end
    table.sort(pids)
    return pids
end

--- The tree without the processes of the script; keeper and master count as one.
function Master:family()
    local pids, own = {}, pair.master_of(self.pid)
    for _, pid in ipairs(self:tree()) do
        local words = files.or_empty(('/proc/%d/cmdline'):format(pid))
        if pid ~= own and not words:find('--script-process', 1, true) then
            pids[#pids + 1] = pid
        end
    end
    return pids
end

--- Waits for the exit: { code= } or { signal= 'SIG...' }.
function Master:exit(options)
    wait.try(function() return self.ended end, { timeout = options and options.timeout or EXIT_MS })
    if not self.ended then
        error('the master did not exit\n' .. self:dump(), 2)
    end
    return self.ended
end

-- The end

function Master:sanitizer_reports()
    local reports = {}
    for _, name in ipairs(list(self.dir)) do
        if name:match '^sanitizer' then
            reports[#reports + 1] = files.read(self.dir .. '/' .. name)
        end
    end
    return table.concat(reports, '\n')
end

local function kill_tree(self)
    wait.try(function()
        local pids = self:tree()
        for _, pid in ipairs(pids) do -- those too that were forked meanwhile
            uv.kill(pid, 'sigkill')
        end
        return self.ended and self.out_ended and self.err_ended and #pids == 0
    end)
end

local function dispose(self)
    running[self] = nil
    kill_tree(self)
    os.execute(("rm -rf '%s'"):format(self.dir))
end

local function problems(self, options)
    local found = {}
    local function check(ok, text, ...)
        if not ok then
            found[#found + 1] = text:format(...)
        end
    end
    local ended = self.ended
    if options.code or not options.signal then
        check(ended.code == (options.code or 0), 'expected exit code %d, got %s', options.code or 0,
            cjson.encode(ended))
    else
        check(ended.signal == options.signal, 'expected the end by %s, got %s', options.signal, cjson.encode(ended))
    end
    local left = self:tree()
    check(options.left or #left == 0, 'processes left: %s', table.concat(left, ' '))
    local left_files = list(self.dir .. '/run')
    check(options.files_left or #left_files == 0, 'files left in its runtime directory: %s', table.concat(left_files, ' '))
    local reports = self:sanitizer_reports()
    check(reports == '', 'sanitizer:\n%s', reports)
    for _, record in ipairs(self.log) do
        check(not record.msg:find('Internal error', 1, true), '%s: %s', record.msg, record.traceback)
    end
    return found
end

--- Stops the master by SIGTERM unless it has ended, and fails unless it left as it should: exit code
--- options.code (0) or options.signal, no process, no file, no sanitizer report, no descriptor here.
--- options.left and options.files_left allow those, for a master that was killed.
function Master:finish(options)
    options = options or {}
    if not self.ended then
        self:signal 'SIGTERM'
        self:exit(options)
    end
    -- Processes that were killed a moment ago are still on their way out.
    wait.try(function()
        return options.left or (#self:tree() == 0 and self.out_ended and self.err_ended)
    end, { timeout = 2000 })
    local found = problems(self, options)
    local dump = #found > 0 and self:dump()
    dispose(self)
    collectgarbage()
    wait.turn()
    local kept = next(running) == nil and new_descriptors(baseline) or {} -- others still have theirs
    if #kept > 0 then
        found[#found + 1] = 'descriptors that the spec did not have at the start: ' .. table.concat(kept, ', ')
    end
    if #found > 0 then
        error(table.concat(found, '\n') .. '\n' .. (dump or ''), 2)
    end
end

--- For after_each: ends and removes what is left of loads and masters that were not finished.
function M.cleanup()
    load.cleanup()
    for self in pairs(running) do
        dispose(self)
    end
    for _, dir in ipairs(temp_dirs) do
        os.execute(("rm -rf '%s'"):format(dir))
    end
    temp_dirs = {}
end

return M
