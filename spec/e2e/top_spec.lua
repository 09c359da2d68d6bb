-- `dutch-master top` on a real terminal: that of tmux, which is asked what is on its screen.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'
local pair = require 'spec.support.pair'
local wait = require 'spec.support.wait'

local function output(command)
    local pipe = io.popen(command .. ' 2>&1')
    local text = pipe:read '*a'
    pipe:close()
    return text
end

describe('top', function()
    if os.execute 'command -v tmux >/dev/null' ~= 0 then
        return it('is tried on a terminal', function()
            pending 'tmux is not installed'
        end)
    end

    local m, socket, dir

    local function tmux(command)
        return output(("tmux -f /dev/null -S '%s' %s"):format(socket, command))
    end

    local function screen(session)
        return tmux('capture-pane -p -t ' .. (session or 'top'))
    end

    local function await(pattern, session)
        local seen
        local found = wait.try(function()
            seen = screen(session)
            return seen:find(pattern)
        end)
        assert.truthy(found, pattern .. ' is not on the screen:\n' .. seen)
        return seen
    end

    before_each(function()
        m = master.start {
            script = "require('dutch-master').start { worker = 'app.lua', numWorkers = 3, restartSoak = 0 }",
            files = { ['app.lua'] = apps.idle },
        }
        m:await 'Cluster ready'
        -- Not in the directory of the master, which goes with it: the server of tmux must be told to end.
        dir = master.temp_dir()
        socket = dir .. '/tmux'
        -- The search for leaks never ends if the terminal hangs up in the middle of it: it is for status and its like.
        local command = ("trap : INT; export ASAN_OPTIONS=detect_leaks=0 DUTCH_MASTER_RUNTIME_DIR='%s/run'; "
            .. "echo before; %s top --interval 0.1 '%s'; "
            .. 'echo "exit $?"; stty -a | grep -o -- " -\\?icanon"; cat'):format(m.dir, master.binary(), m.script)
        local file = assert(io.open(dir .. '/command', 'w'))
        file:write(command)
        file:close()
        tmux(("new-session -d -s top -x 100 -y 24 'sh %s/command'"):format(dir))
    end)

    after_each(function()
        tmux 'kill-server'
        master.cleanup()
    end)

    it('shows the workers and the log, follows what happens, resizes, and leaves the terminal as it was', function()
        await 'steady, 3 of 3 workers serving'
        local seen = await 'Cluster ready'
        assert.matches('\n +1 +1 +%d+ +running', seen)
        assert.matches('q quit  sort:', seen)
        m:signal 'SIGUSR2'
        await 'generation 2'
        await 'Worker exited  code=0 generation=1'
        -- A smaller terminal is filled exactly, by whole lines.
        tmux 'resize-window -t top -x 60 -y 10'
        wait.wait_until(function()
            local lines = {}
            for line in screen():gmatch '[^\n]+' do
                lines[#lines + 1] = line
            end
            return lines[1]:find '^steady' and lines[#lines]:find '^%[by slot%]  q quit' and #lines <= 10
        end, { what = 'a smaller screen' })
        tmux 'send-keys -t top c'
        await '%[by CPU%]  q quit'
        -- And ones on which little can be seen: whose state it is, the first workers, and how to leave.
        for _, size in ipairs { { 40, 10 }, { 20, 5 } } do
            tmux(('resize-window -t top -x %d -y %d'):format(unpack(size)))
            wait.wait_until(function()
                local lines = {}
                for line in screen():gmatch '[^\n]+' do
                    lines[#lines + 1] = line
                    if #line > size[1] + 2 then -- bytes; a mark of what is left out has three
                        return false
                    end
                end
                return lines[1] and lines[1]:find '^steady' and lines[2]:find 'STATE' and lines[3]:find 'running'
                    and lines[#lines]:find '^%[by CPU%]' and #lines <= size[2]
            end, { what = ('a screen of %d x %d'):format(unpack(size)) })
        end
        -- In 80 columns a release is still known by its name, and no line is longer than the screen.
        tmux 'resize-window -t top -x 80 -y 24'
        await '\nSLOT +ID +PID +STATE +GEN +UP +CPU%% +RSS +Q +RST +RELEASE\n'
        await '[/…][^\n]-pec%-%w+/app\n'
        tmux 'resize-window -t top -x 200 -y 50'
        await('\nSLOT +WORKER [^\n]* RESTARTS +RELEASE\n[^\n]+  ' .. m.app:gsub('%-', '%%-') .. '\n')
        tmux 'send-keys -t top q'
        seen = await 'exit 0'
        assert.matches('before', seen)
        await ' icanon'
        assert.falsy(seen:find('q quit', 1, true))
        m:finish()
    end)

    it('says that the master went away, and shows the one that comes after it', function()
        await 'steady'
        m:signal 'SIGTERM'
        m:exit()
        local seen = await 'the master went away [%d.]+s ago, waiting for it'
        assert.falsy(seen:find('running', 1, true))
        assert.matches('Cluster shutdown cleanly', seen) -- the last that was heard
        await 'the master went away [1-9][%d.]*s ago'
        local second = cli.start(m, { 'master.lua' })
        second:await_output 'Cluster ready'
        seen = await 'steady, 3 of 3 workers serving, generation 1'
        assert.matches('keeper: pid ' .. second.pid .. ', master: pid ' .. pair.master(second.pid), seen)
        -- Killed or frozen, without a goodbye.
        second:kill()
        await 'the master went away'
        m:wait_until(function() return #m:tree() == 0 end, 'the workers to leave')
        local third = cli.start(m, { 'master.lua' })
        await('keeper: pid ' .. third.pid)
        uv.kill(pair.master(third.pid), 'sigstop')
        await 'the master stopped answering [%d.]+s ago, waiting for it'
        uv.kill(pair.master(third.pid), 'sigcont')
        await 'steady, 3 of 3 workers serving'
        tmux 'send-keys -t top q'
        await 'exit 0'
        await ' icanon'
        assert.equal(0, cli.run(m, { 'stop', '--wait' }).code)
        third:wait()
        m:finish { files_left = false }
    end)

    it('says once that the master is of another user', function()
        if uv.getuid() ~= 0 then
            return pending 'only root can be two users'
        end
        local run = m.dir .. '/run'
        local sock = run .. '/' .. output(("ls '%s' | grep 'sock$'"):format(run)):match '[^\n]+'
        assert(uv.fs_chmod(run, tonumber('755', 8)) and uv.fs_chmod(sock, tonumber('666', 8)))
        tmux(([[new-session -d -s other -x 250 -y 24 "setpriv --reuid=65534 --regid=65534 --clear-groups ]]
            .. [[%s top --socket=%s %s; echo \"exit \$?\"; cat"]]):format(master.binary(), sock, m.script))
        local seen
        assert.is_true(wait.try(function()
            seen = tmux 'capture-pane -p -t other'
            return seen:find 'exit 77' ~= nil
        end), seen)
        assert.matches('^dutch%-master: [^\n]* not permitted: only the user of the master and root may ask\nexit 77\n', seen)
        assert(uv.fs_chmod(run, tonumber('700', 8)))
        m:finish()
    end)

    it('is stopped by ^Z, which gives the shell its terminal, and goes on with fg', function()
        -- A shell with job control, as people have.
        tmux(([[new-session -d -s jobs -x 100 -y 24 "env PS1='ready> ' ASAN_OPTIONS=detect_leaks=0 ]]
            .. [[DUTCH_MASTER_RUNTIME_DIR='%s/run' bash --norc --noprofile -i"]]):format(m.dir))
        local function send(keys)
            tmux('send-keys -t jobs ' .. keys)
        end
        await('ready>', 'jobs')
        send(([["%s top --interval 0.1 '%s'" Enter]]):format(master.binary(), m.script))
        await('q quit', 'jobs')
        for _, key in ipairs { 'c', 's' } do
            send 'C-z'
            await('Stopped.*\nready>', 'jobs')
            send [["stty -a | grep -o -- ' -\\?icanon'" Enter]]
            await('\n icanon\nready>', 'jobs')
            send [["clear; fg" Enter]]
            await('steady, 3 of 3 workers serving', 'jobs')
            send(key) -- it reads keys again, and draws
            await(key == 'c' and '%[by CPU%]' or '%[by slot%]', 'jobs')
        end
        send 'q'
        send [["echo \"exit \$?\"" Enter]]
        local seen = await('\nexit 0\nready>', 'jobs')
        assert.falsy(seen:find('q quit', 1, true))
        tmux 'send-keys -t top q'
        await 'exit 0'
        m:finish()
    end)

    it('leaves the terminal as it was when it is interrupted or terminated', function()
        await 'steady'
        tmux 'send-keys -t top C-c'
        await 'exit 0'
        await ' icanon'
        uv.run 'nowait'
        m:finish()
    end)
end)
