-- Releases of all sorts in the servers that presets know: the verdict of each restart, what the clients saw meanwhile.
-- Prints a table. No verdict may be wrong; but for one that crashes with requests in hand, no request may fail.
local fastcgi = require 'spec.support.fastcgi'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

-- A good release may take long on a busy machine; those that come to nothing need not.
local READY_S, SHORT_S = 60, 3

-- What an app does while it is loaded, by its release, which is the content of the file `how`.
local PYTHON = [[
import os, signal, threading
how = open('how').read()
rest = threading.Event().wait
if how == 'fails at boot':
    raise Exception('not today')
elif how == 'never listens':
    rest(1000)
elif how == 'slow good' or how == 'fails late':
    rest(1.5 if how == "fails late" else 1)
if how == 'fails late':
    raise Exception('not today')
def crash():
    rest(0.3)
    os.killpg(0, signal.SIGKILL)
if how == 'ready, then crashes':
    threading.Thread(target=crash, daemon=True).start()
]]
local WSGI = { ['app.py'] = PYTHON .. [[
def application(environ, start_response):
    start_response('200 OK', [('Content-Length', '5')])
    return [b'works']
]] }
local ASGI = { ['app.py'] = PYTHON .. [[
async def application(scope, receive, send):
    assert scope['type'] == 'http'
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', b'5')]})
    await send({'type': 'http.response.body', 'body': b'works'})
]] }
local RACK = { ['config.ru'] = [=[
how = File.read('how')
raise 'not today' if how == 'fails at boot'
sleep 1000 if how == 'never listens'
sleep 1 if how == 'slow good'
if how == 'fails late'
    sleep 1.5
    raise 'not today'
end
if how == 'ready, then crashes'
    Thread.new { sleep 0.3; Process.kill('KILL', -Process.getpgrp) }
end
run ->(env) { [200, { 'Content-Length' => '5' }, ['works']] }
]=] }

-- Those of an app: what its code does. Those of a configuration: what it says.
local OF_APPS = {
    { 'good', 'done' }, { 'slow good', 'done' }, { 'fails at boot', 'aborted' }, { 'fails late', 'aborted' },
    { 'other port', 'aborted' }, { 'never listens', 'aborted' }, { 'ready, then crashes', 'aborted' },
}
local OF_CONFIGS = { { 'good', 'done' }, { 'fails at boot', 'aborted' }, { 'other port', 'aborted' } }

-- worker: of the script; elsewhere: a command that listens on OTHER, by a shell that stays, as people write it;
-- configure(how, port, other) -> files
local SERVERS = {
    { 'gunicorn', files = WSGI, worker = "dutch.gunicorn { app = 'app:application' }",
        elsewhere = 'gunicorn -b 127.0.0.1:OTHER app:application' },
    { 'uvicorn', files = ASGI,
        worker = "dutch.uvicorn { app = 'app:application', args = { '--lifespan', 'off', '--app-dir', dutch.directory } }",
        elsewhere = 'uvicorn --port OTHER --lifespan off --app-dir . app:application' },
    { 'hypercorn', files = ASGI, worker = "dutch.hypercorn { app = 'app:application' }",
        elsewhere = 'hypercorn -b 127.0.0.1:OTHER app:application' },
    { 'puma', files = RACK, worker = "dutch.puma { args = { '--quiet' } }", elsewhere = 'puma -b tcp://127.0.0.1:OTHER' },
    { 'unicorn', files = RACK, worker = 'dutch.unicorn {}', elsewhere = 'unicorn -l 127.0.0.1:OTHER' },
    { 'uwsgi', files = WSGI,
        worker = "dutch.uwsgi { app = 'app:application', args = { '--plugin', 'python3', '--disable-logging',"
            .. " '--enable-threads' } }",
        elsewhere = 'uwsgi --master --die-on-term --plugin python3 --http-socket 127.0.0.1:OTHER --module app:application' },
    { 'nginx', releases = OF_CONFIGS,
        worker = "dutch.nginx { config = dutch.directory .. '/nginx.conf', args = { '-p', dutch.directory } }",
        configure = function(how, port, other)
            return { ['nginx.conf'] = ('pid nginx.pid;\nerror_log stderr;\nworker_processes 1;\nevents {}\n%shttp {\n'
                .. 'access_log off;\nserver { listen 127.0.0.1:%d; location / { return 200 "works"; } }\n}\n'):format(
                how == 'fails at boot' and 'nonsense;\n' or '', how == 'other port' and other or port) }
        end },
    { 'php-fpm', program = 'php-fpm8.2', releases = OF_CONFIGS, protocol = fastcgi,
        worker = "dutch.phpfpm { command = 'php-fpm8.2', config = dutch.directory .. '/fpm.conf',"
            .. " args = { '--prefix', dutch.directory } }",
        configure = function(how, port, other)
            return { ['index.php'] = '<?php echo "works";', ['fpm.conf'] = ('[global]\nerror_log = fpm.log\n'
                .. 'process_control_timeout = 10s\n[www]\nuser = www-data\npm = static\npm.max_children = 2\n%s'
                .. 'listen = 127.0.0.1:%d\n'):format(how == 'fails at boot' and 'nonsense = 1\n' or '',
                how == 'other port' and other or port) }
        end },
}

local function script_of(server, how, port, other, ready_s)
    local worker = server.worker
    if how == 'other port' and server.elsewhere then
        worker = ("{ 'sh', '-c', '%s; exit $?' }"):format(server.elsewhere:gsub('OTHER', other))
    end
    return ([[local dutch = require 'dutch-master'
        dutch.start { worker = %s, numWorkers = 1, listen = '127.0.0.1:%d', restartAttempts = 1, readyTimeout = %g,
            restartSoak = 0.8, stopTimeout = 6, killTimeout = 2, workerOutput = dutch.directory .. '/output' }]])
        :format(worker, port, ready_s)
end

local function is_verdict(record)
    return record.msg == 'Restart complete' or record.msg:find '^Restart aborted' ~= nil
end

local function rows_of(server, rows)
    local port, other = http.free_port(), http.free_port()
    local function files_of(how)
        local files = { how = how }
        for name, text in pairs(server.configure and server.configure(how, port, other) or server.files) do
            files[name] = text
        end
        return files
    end
    local m = master.start { script = script_of(server, 'good', port, other, READY_S), files = files_of 'good',
        env = { TMPDIR = master.temp_dir(), PYTHONDONTWRITEBYTECODE = '1' } }
    m:await('Cluster ready', { timeout = 60000 })
    for i, release in ipairs(server.releases or OF_APPS) do
        local how = release[1]
        local clients = load.start { port = port, clients = 2, rate = 60, expect = 'works', timeout = 20000,
            protocol = server.protocol, path = server.protocol and m.app .. '/index.php' }
        clients:await(2)
        for name, text in pairs(files_of(how)) do
            m:rewrite(name, text)
        end
        local in_vain = how == 'other port' or how == 'never listens' or server[1] == 'unicorn' and release[2] ~= 'done'
        m:rewrite('master.lua', script_of(server, how, port, other, in_vain and SHORT_S or READY_S))
        local mark = m:mark()
        m:signal 'SIGUSR2'
        local verdict = m:await(is_verdict, { after = mark, timeout = 90000 })
        clients:await(clients.counts.total + 4)
        local counts = clients:stop()
        rows[#rows + 1] = { number = i, server = server[1], release = how, wanted = release[2],
            verdict = verdict.msg == 'Restart complete' and 'done' or 'aborted', failed = counts.failed,
            slowest_ms = counts.max_ms, text = counts.text, reason = verdict.reason or '', address = '127.0.0.1:' .. port }
        if release[2] == 'done' then
            m:await({ msg = 'Worker exited', generation = verdict.generation - 1 }, { timeout = 30000 })
        end
    end
    m:finish { code = 0 }
end

describe('releases in servers', function()
    after_each(master.cleanup)

    it('get the verdict that is true, and cost nobody a request', function()
        local rows, list, missing = {}, {}, {}
        for i, server in ipairs(SERVERS) do
            if os.getenv 'DM_SANITIZE' and i > 2 then
                break -- to our program all of them are the same
            elseif os.execute('command -v ' .. (server.program or server[1]) .. ' >/dev/null') == 0 then
                list[#list + 1] = { server[1], function()
                    rows_of(server, rows)
                end }
            else
                missing[#missing + 1] = server[1]
            end
        end
        wait.together(list, 4)
        table.sort(rows, function(a, b)
            return a.server < b.server or a.server == b.server and a.number < b.number
        end)
        print(('\n%-10s %-20s %-8s %6s %8s'):format('server', 'release', 'verdict', 'failed', 'slowest'))
        for _, row in ipairs(rows) do
            print(('%-10s %-20s %-8s %6d %5d ms'):format(row.server, row.release, row.verdict, row.failed, row.slowest_ms))
        end
        for _, row in ipairs(rows) do
            local what = row.server .. ', ' .. row.release .. ': '
            assert.equal(what .. row.wanted, what .. row.verdict, row.reason)
            -- What a crash has in hand is lost with it, and what waits for that release alone.
            assert.is_true(row.failed <= (row.release == 'ready, then crashes' and 2 or 0), what .. row.text)
            if row.release == 'other port' and not row.reason:find 'exited with' then
                assert.matches('nobody accepted a connection at ' .. row.address, row.reason, 1, true)
                assert.matches('ready = { port = n }', row.reason, 1, true)
            end
        end
        if #missing > 0 then
            pending('not installed: ' .. table.concat(missing, ', '))
        end
    end)
end)
