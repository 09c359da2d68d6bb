-- The installed unit under a real systemd: start, status, reload, ports, sockets, watchdog, stop, journal.

local machine = require 'spec.support.machine'

local UNIT = 'dutch-master@my-app'

local SCRIPT = [[
local dutch = require 'dutch-master'
dutch.start {
    worker = 'app.lua', restartSoak = 0.2, restartAttempts = 2, readyTimeout = 10, stopTimeout = 5, pinRelease = true,
    backoff = { first = 0.05, max = 0.2 },
    beforeFork = function() dutch.chdir '/srv/my-app/current' end,
}
]]

local APP = [[
local worker = require 'dutch-master.worker'
local server = assert(worker.listen '127.0.0.1:8000')
local body = 'release %s\n'
server:accept(function(connection)
    connection:read_start(function(_, data)
        if not data then return connection:is_closing() or connection:close() end
        connection:write(('HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %%d\r\n\r\n'):format(#body) .. body)
        connection:shutdown()
    end)
end)
]]

-- A sanitizer that looks for leaks traces the program at its end.
local STRICT = (os.getenv 'DM_SANITIZE' and 'SystemCallFilter=ptrace\n' or '') .. [[
CapabilityBoundingSet=
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
ProtectProc=invisible
ProcSubset=pid
PrivateUsers=yes
RemoveIPC=yes
UMask=0077
]]

-- Short, but no time for which a busy machine lets nothing of it run: a ping at each half of it.
local WATCHDOG = '[Service]\nWatchdogSec=5\n'

local BROKEN = 'error "DATABASE_URL is not set"'

describe('a real systemd', function()
    local there, why = machine.available()
    local m

    if not there then
        return it('runs the installed unit', function()
            pending(why)
        end)
    end

    after_each(function()
        local last = m
        m = nil
        machine.over(last)
    end)

    -- A new release, and `current` points to it.
    local function release(name, app, script)
        local dir = '/srv/my-app/releases/' .. name
        m:write(dir .. '/master.lua', script or SCRIPT)
        m:write(dir .. '/app.lua', app)
        m:must("ln -sfn '%s' /srv/my-app/current.new && mv -fT /srv/my-app/current.new /srv/my-app/current; "
            .. 'chown -R my-app: /srv/my-app', dir)
    end

    local function answer()
        return m:must 'curl -sS --max-time 5 http://127.0.0.1:8000/'
    end

    local function boot()
        local reason
        m, reason = machine.start()
        if not m then
            return reason
        end
        m:must 'useradd -m my-app && mkdir -p /srv/my-app/releases'
    end

    it('starts, reloads and stops the unit, each with its verdict', function()
        local reason = boot()
        if reason then
            return pending(reason)
        end
        release(1, APP:format '1')
        m:must('systemctl start %s', UNIT)
        assert.equal('release 1\n', answer())
        local unit = m:show(UNIT)
        assert.equal('2 of 2 workers serving, generation 1', unit.StatusText)
        assert.equal('continue', unit.OOMPolicy)
        assert.matches('path=/usr/local/bin/dutch%-master ', unit.ExecStart)
        for _, as in ipairs { '', 'runuser -u my-app -- ' } do
            assert.matches('steady, 2 of 2', m:must(as .. 'dutch-master status /srv/my-app/current/master.lua'))
        end
        local code, said = m:run 'runuser -u nobody -- dutch-master status /srv/my-app/current/master.lua'
        assert.equal(77, code, said)
        -- Root finds it whoever owns the script.
        m:must 'chown -R daemon: /srv/my-app'
        assert.matches('steady, 2 of 2', m:must 'dutch-master status /srv/my-app/current/master.lua')

        release(2, APP:format '2')
        m:must('systemctl reload %s', UNIT)
        assert.equal('release 2\n', answer())

        -- A release that fails, and one whose script is no Lua: the reload says so, the old workers serve.
        release(3, BROKEN)
        code, said = m:run('systemctl reload %s', UNIT)
        assert.is_true(code ~= 0, said)
        assert.equal('release 2\n', answer())
        unit = m:show(UNIT)
        assert.equal('active', unit.ActiveState)
        assert.matches('the last restart was aborted', unit.StatusText)
        release(4, APP:format '4', 'nonsense(')
        code, said = m:run('systemctl reload %s', UNIT)
        assert.is_true(code ~= 0, said)
        assert.equal('release 2\n', answer())
        assert.equal('active', m:show(UNIT).ActiveState)
        assert.matches('DATABASE_URL is not set', m:must('journalctl -u %s', UNIT))

        -- A crash loop is to be found by priority; the records are for people.
        m:must "cd /srv/my-app/releases/2 && cp app.lua kept && echo 'error \"out of luck\"' >app.lua && pkill -KILL -f lua-worker"
        m:await('Waiting before the next fork', 'journalctl -p err -o cat -u %s', UNIT)
        assert.falsy((m:must('journalctl -o cat -u %s', UNIT)):find '"msg":')
        m:must 'cd /srv/my-app/releases/2 && mv kept app.lua'
        m:await('steady, 2 of 2', 'dutch-master status /srv/my-app/current/master.lua')

        -- The master dies, or hangs: it is started again.
        release(2, APP:format '2')
        m:must('systemctl kill --kill-who=main -s KILL %s', UNIT)
        m:await('^1$', "systemctl show -p NRestarts --value %s | tr -d '\\n'", UNIT)
        m:await('^active', 'systemctl is-active %s', UNIT)
        assert.equal('release 2\n', answer())
        m:must('mkdir -p /run/systemd/system/%s.service.d', UNIT)
        m:write('/run/systemd/system/' .. UNIT .. '.service.d/short.conf', WATCHDOG)
        m:must('systemctl daemon-reload && systemctl restart %s', UNIT)
        local hung = m:show(UNIT).MainPID
        m:must('kill -STOP %s', hung)
        m:await('^watchdog$', [[journalctl -u %s -o cat | grep -o 'watchdog' | head -n 1 | tr -d '\n']], UNIT)
        m:await('^active', 'systemctl is-active %s', UNIT)
        assert.not_equal(hung, m:show(UNIT).MainPID)
        assert.equal('release 2\n', answer())

        -- With a keeper the death of a master is no end of the service: the same main process, and no start again.
        -- Nor do directives take it its powers that the unit does without, since some Node or Ruby may not start with them.
        m:write('/run/systemd/system/' .. UNIT .. '.service.d/short.conf', WATCHDOG .. STRICT)
        m:must('systemctl daemon-reload && systemctl restart %s', UNIT)
        unit = m:show(UNIT)
        assert.matches('clone', unit.SystemCallFilter)
        local keeper, restarts = unit.MainPID, unit.NRestarts
        assert.equal('dutch-keeper\n', m:must('cat /proc/%s/comm', keeper))
        for _, signal in ipairs { 'KILL', 'SEGV' } do
            local master_pid = m:must('pgrep -x -P %s dutch-master', keeper):match '%d+'
            m:must('kill -%s %s', signal, master_pid)
            m:await('^%d+', 'pgrep -x -P %s dutch-master | grep -vx %s', keeper, master_pid)
            m:await('steady, 2 of 2', 'dutch-master status /srv/my-app/current/master.lua')
            assert.equal('release 2\n', answer())
        end
        m:must('systemctl reload %s', UNIT)
        unit = m:show(UNIT)
        assert.same({ 'active', keeper, restarts }, { unit.ActiveState, unit.MainPID, unit.NRestarts })
        assert.equal('2 of 2 workers serving, generation 2', unit.StatusText)
        -- Another program in its place is none either, and what it says of itself arrives.
        m:must 'dutch-master upgrade /srv/my-app/current/master.lua'
        m:must('systemctl reload %s', UNIT)
        unit = m:show(UNIT)
        assert.same({ 'active', keeper, restarts }, { unit.ActiveState, unit.MainPID, unit.NRestarts })
        assert.equal('2 of 2 workers serving, generation 3', unit.StatusText)
        assert.equal('release 2\n', answer())
        -- One that hangs is not hidden: its pings stop.
        m:must('kill -STOP $(pgrep -x -P %s dutch-master)', keeper)
        m:await(('^%d$'):format(restarts + 1), "systemctl show -p NRestarts --value %s | tr -d '\\n'", UNIT)
        m:await('^active', 'systemctl is-active %s', UNIT)
        assert.equal('release 2\n', answer())

        -- The keeper is what systemd watches: its death is that of the service, which is started again.
        keeper = m:show(UNIT).MainPID
        m:must('kill -KILL %s', keeper)
        m:await(('^%d$'):format(restarts + 2), "systemctl show -p NRestarts --value %s | tr -d '\\n'", UNIT)
        m:await('^active', 'systemctl is-active %s', UNIT)
        assert.equal('release 2\n', answer())
        unit = m:show(UNIT)
        assert.not_equal(keeper, unit.MainPID)
        assert.equal('dutch-keeper\n', m:must('cat /proc/%s/comm', unit.MainPID))
        assert.equal('1\n', m:must "pgrep -c -x dutch-keeper")
        m:await('steady, 2 of 2', 'dutch-master status /srv/my-app/current/master.lua')

        m:must('systemctl stop %s', UNIT)
        unit = m:show(UNIT)
        assert.same({ 'inactive', 'success' }, { unit.ActiveState, unit.Result })
        assert.equal('', (m:must 'pgrep -u my-app || true'))
    end)

    it('fails a start that cannot succeed, and says why', function()
        local reason = boot()
        if reason then
            return pending(reason)
        end
        -- A script that is no Lua is not tried again.
        release(1, APP:format '1', 'nonsense(')
        local code, said = m:run('systemctl start %s', UNIT)
        assert.is_true(code ~= 0, said)
        local unit = m:show(UNIT)
        assert.same({ 'failed', '78', '0' }, { unit.ActiveState, unit.ExecMainStatus, unit.NRestarts })
        local _, status = m:run('systemctl status %s', UNIT)
        assert.matches('Status: "[^\n]*master.lua:1: ', status)
        assert.matches('dutch%-master%[%d+%]: dutch%-master: [^\n]*master.lua:1: ', status)

        -- A first release that is broken: as many attempts as restartAttempts, and no waiting for a timeout of systemd's.
        for number, case in ipairs {
            { BROKEN, 'exited with code 1', 'DATABASE_URL is not set', 10 },
            { "require 'dutch-master.worker'\nio.stderr:write 'waiting for the database\\n'", 'was not ready within 2 s',
                'waiting for the database', 2 },
        } do
            release('broken' .. number, case[1], (SCRIPT:gsub('readyTimeout = 10', 'readyTimeout = ' .. case[4])))
            m:run('systemctl reset-failed %s', UNIT)
            code, said = m:run('systemctl start %s', UNIT)
            assert.is_true(code ~= 0, said)
            unit = m:show(UNIT)
            assert.equal('1', unit.ExecMainStatus)
            assert.matches('^Boot failed: worker of slot %d failed 2 times, and none was ever ready: ' .. case[2],
                unit.StatusText)
            local journal = m:must('journalctl -p err -o cat -u %s', UNIT)
            assert.matches('Boot failed: [^\n]*' .. case[2], journal)
            assert.matches(case[3], (m:must('journalctl -o cat -u %s', UNIT)))
            m:run('systemctl stop %s', UNIT)
        end
        -- One that is slow is waited for beyond TimeoutStartSec, within its own readyTimeout.
        local limits = '/run/systemd/system/' .. UNIT .. '.service.d/short.conf'
        m:write(limits, '[Service]\nTimeoutStartSec=4\n')
        release('slow', "os.execute 'sleep 5'\n" .. APP:format 'slow')
        m:must('systemctl daemon-reload; systemctl reset-failed %s; systemctl start %s', UNIT, UNIT)
        assert.equal('release slow\n', answer())
        m:must("systemctl stop %s && rm '%s' && systemctl daemon-reload", UNIT, limits)

        -- An address that somebody else has.
        release(2, APP:format '2', (SCRIPT
            :gsub('worker = ', "listen = '127.0.0.1:8000', ready = { alive = 0.1 }, worker = ")
            :gsub("'app.lua'", "{ 'sleep', '1000' }")))
        m:must 'setsid socat TCP-LISTEN:8000,bind=127.0.0.1,reuseaddr /dev/null >/dev/null 2>&1 & echo $! >/run/holder'
        m:await(':8000', 'ss -ltn')
        m:run('systemctl reset-failed %s', UNIT)
        code, said = m:run('systemctl start %s', UNIT)
        assert.is_true(code ~= 0, said)
        assert.equal('71', m:show(UNIT).ExecMainStatus)
        _, status = m:run('systemctl status %s', UNIT)
        assert.matches('127.0.0.1:8000', status)
        m:must 'kill $(cat /run/holder)'
        m:run('systemctl stop %s; systemctl reset-failed %s', UNIT, UNIT)

        -- Sockets of a .socket unit are taken over, and stay while the unit is restarted.
        m:must 'mkdir -p /run/systemd/system/dutch-master@my-app.socket.d'
        m:write('/run/systemd/system/dutch-master@my-app.socket.d/port.conf',
            '[Socket]\nListenStream=\nListenStream=127.0.0.1:8000\n')
        release(3, APP:format '3')
        m:must('systemctl daemon-reload && systemctl start %s.socket', UNIT)
        assert.equal('release 3\n', answer()) -- this connection starts the service
        m:must [[(for i in $(seq 40); do curl -sS --max-time 20 127.0.0.1:8000 || echo failed; done; echo done) >/run/answers 2>&1 &]]
        m:must('systemctl restart %s', UNIT)
        m:await('^done', 'tail -n 1 /run/answers')
        local answers = m:must 'cat /run/answers'
        assert.falsy(answers:find 'curl: %(7%)', answers) -- refused
        assert.matches('release 3\ndone\n$', answers)
    end)
end)
