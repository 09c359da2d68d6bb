-- What others wrote, the workers above all, is made printable before it reaches a terminal: in every verb that the help
-- text has, with and without --json, on a terminal and on none.

local uv = require 'luv'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'

-- A title, an erased line, a C1 control sequence, marks that turn the direction of writing, a byte that is no UTF-8.
local EVIL = '\27]0;title\7 \27[2K\8 \194\155 2J \226\128\174gnp\226\129\166\216\156 \155'

-- Talks to the master as a service does, and leaves a process of that name behind.
local APP = [[
use IO::Socket::UNIX; use POSIX;
my $evil = $ENV{EVIL};
$| = 1;
print STDOUT "$evil\n";
print STDERR "$evil\n";
if (-e 'bad') { exit 3 }
my $socket = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Peer => $ENV{NOTIFY_SOCKET}) or die;
$socket->send("READY=1\nSTATUS=$evil");
if (fork == 0) { POSIX::setsid(); $0 = "$evil"; sleep 1000; exit }
sleep 1000;
]]

local SCRIPT = [[
local dutch = require 'dutch-master'
local EVIL = dutch.environ 'EVIL'
local function veto()
    if io.open(dutch.directory .. '/veto') then return false, EVIL end
    dutch.chdir(dutch.directory)
end
dutch.start {
    worker = { 'perl', 'app.pl' }, ready = 'notify', numWorkers = 1, restartAttempts = 1, keepOutput = '64K',
    restartSoak = 0.1, stopTimeout = 2, killTimeout = 1, leftoverTimeout = 0, beforeFork = veto,
    args = { EVIL, io.open(dutch.directory .. '/more') and 'more' .. EVIL or 'less' },
    restartConcurrency = { canary = { soak = 0.1, judge = function() return false, EVIL end } },
    workerEnvironment = { EVIL = EVIL, [ 'A' .. EVIL ] = EVIL },
    onWorkerReady = function() dutch.log.warn({ deep = { EVIL, [EVIL] = EVIL }, flat = EVIL }, EVIL) end,
    onWorkerExit = function() error(EVIL) end,
}
]]

-- What each verb is tried with, in this order; `ends` of one that goes on until it is interrupted.
local LINES = {
    { 'check' }, { 'check', '--json' }, { 'plan' }, { 'plan', '--json' }, { 'status' }, { 'status', '--json' },
    { 'top', ends = 'q quit' }, { 'why' }, { 'why', '--all' }, { 'why', '--json' }, { 'events', '-n', '1000' },
    { 'events', '-n', '1000', '--json' }, { 'logs' }, { 'logs', '--json' }, { 'list' }, { 'list', '--json' },
    { 'metrics' }, { 'metrics', '--json' }, { 'reload' }, { 'scale', '1' }, { 'upgrade' }, { 'init', '--print' },
    { 'completion', 'bash' }, { 'restart' }, { 'restart', '--wait' }, { 'restart', '--wait', '--json' },
    { 'stop', '--wait' }, { 'status' }, { 'logs' },
}
-- Serves until it is stopped, and prints its address: what its page shows is in web_spec.
local ELSEWHERE = { web = true }

-- What we print ourselves.
local OURS = { '\27%[[%d;]*m', '\27%[[012]?[HJK]', '\27%[%?25[hl]', '\27%[%?1049[hl]', '\r', '\n', '\t' }

local function is_harmless(line, text)
    local left = text
    for _, sequence in ipairs(OURS) do
        left = left:gsub(sequence, '')
    end
    assert.is_nil(left:match '.?.?.?%c.?.?.?', line .. '\n' .. text)
    for _, raw in ipairs { '\194\155', '\226\128\174', '\226\129\166', '\216\156', '\155' } do
        assert.is_nil((text:find(raw, 1, true)), line .. '\n' .. text)
    end
end

describe('what a worker wrote', function()
    after_each(master.cleanup)

    it('cannot act on the terminal of whoever looks, by any verb', function()
        if os.execute 'command -v script >/dev/null && command -v perl >/dev/null' ~= 0 then
            return pending 'script or perl is not installed'
        end
        local m = master.start {
            script_path = EVIL .. '/master.lua', env = { EVIL = EVIL },
            files = { [EVIL .. '/master.lua'] = SCRIPT, [EVIL .. '/app.pl'] = APP },
        }
        m:await 'Cluster ready'
        local dir, fifo = m.app .. '/' .. EVIL, master.temp_dir() .. '/fifo'
        assert.equal(0, os.execute(("mkfifo '%s'"):format(fifo)))
        local tried, seen = { web = true }, {}
        local function try(line, on_terminal)
            local env = { DM = master.binary(), FIFO = fifo, SCRIPT = dir .. '/master.lua', EVIL = EVIL, TERM = 'xterm',
                LANG = 'C.UTF-8' }
            local words = line[1] == 'list' and '' or line[1] == 'init' and ' "$PWD"'
                or line[1] == 'completion' and '' or ' "$SCRIPT"'
            local command = (on_terminal and 'stty cols 150 rows 60; ' or '') .. 'exec "$DM" ' .. table.concat(line, ' ') .. words
            env.COMMAND = command
            -- `script` would send the end of its stdin on, as ^D: this one does not end.
            local shell = on_terminal and 'exec 3<>"$FIFO"; exec script -qec "$COMMAND" /dev/null <&3' or command
            local c = cli.start(m, { '-c', shell }, { program = 'sh', env = env, cwd = dir })
            if line.ends then
                local ok, why = pcall(c.await_output, c, line.ends)
                c:kill 'sigterm'
                assert(ok, tostring(why) .. '\n' .. c.out .. c.err)
            end
            c:wait()
            local text = c.out .. c.err
            is_harmless(command, text)
            if line[2] == '--json' or line[3] == '--json' then
                for one in c.out:gsub('\r', ''):gmatch '{[^\n]*' do
                    assert.is_table(cjson.decode(one))
                end
            end
            tried[line[1]] = true
            seen[line[1]] = seen[line[1]] or text:find('gnp', 1, true) ~= nil
        end
        for round = 1, 2 do
            local on_terminal = round == 2
            assert(io.open(dir .. '/bad', 'w')):close()
            try({ 'restart', '--wait' }, on_terminal) -- a release that fails: reports, rollbacks
            assert(os.remove(dir .. '/bad'))
            assert(io.open(dir .. '/veto', 'w')):close()
            try({ 'restart', '--wait' }, on_terminal)
            assert(os.remove(dir .. '/veto'))
            for _, line in ipairs(LINES) do
                if line[1] == 'plan' and not os.remove(dir .. '/more') then -- something that differs
                    assert(io.open(dir .. '/more', 'w')):close()
                end
                if on_terminal or line[1] ~= 'stop' and not line.ends then
                    try(line, on_terminal)
                end
            end
        end
        m:exit()
        for name in cli.run(nil, { '--help' }, { cwd = '/' }).out:gmatch '\n  (%l+) +%l' do
            assert.is_true(tried[name] or ELSEWHERE[name], name .. ' is not tried')
        end
        -- And it is shown, spelled out.
        for _, name in ipairs { 'check', 'plan', 'status', 'top', 'why', 'events', 'logs', 'list', 'metrics', 'restart' } do
            assert.is_true(seen[name], name .. ' has nothing of it')
        end
        uv.run 'nowait'
        m:finish { left = true }
    end)
end)
