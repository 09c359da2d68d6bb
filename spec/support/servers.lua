-- The servers that presets know, each with a small app or configuration that answers "works", and how a release of it
-- fails: what the specs of presets start. An app behaves by its release, which is the content of the file `how`.
-- Nothing named here may be a device: some of them remove their pid file, log or socket when they end.

local fastcgi = require 'spec.support.fastcgi'

local M = {}

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
    if how == 'fails at a request':
        raise Exception('not today')
    start_response('200 OK', [('Content-Length', '5')])
    return [b'works']
]] }
local ASGI = { ['app.py'] = PYTHON .. [[
async def application(scope, receive, send):
    assert scope['type'] == 'http'
    if how == 'fails at a request':
        raise Exception('not today')
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
run ->(env) {
    raise 'not today' if how == 'fails at a request'
    [200, { 'Content-Length' => '5' }, ['works']]
}
]=] }

-- Releases of an app, and of a configuration: the verdict of each. Where a page is asked for, `fails at a request`.
local DONE, ABORTED = 'done', 'aborted'
local OF_APPS = {
    { 'good', DONE }, { 'slow good', DONE }, { 'fails at boot', ABORTED }, { 'fails late', ABORTED },
    { 'fails at a request', ABORTED }, { 'other port', ABORTED }, { 'never listens', ABORTED },
    { 'ready, then crashes', ABORTED },
}
local OF_CONFIGS = { { 'good', DONE }, { 'fails at boot', ABORTED }, { 'fails at a request', ABORTED },
    { 'other port', ABORTED } }
local OF_FASTCGI = { { 'good', DONE }, { 'fails at boot', ABORTED }, { 'other port', ABORTED } }

-- What begins as it should, or not.
local function nonsense(how, text)
    return how == 'fails at boot' and text or ''
end

local function nginx(how, address, other)
    return { ['nginx.conf'] = ('pid nginx.pid;\nerror_log stderr;\nworker_processes 1;\nevents {}\n%shttp {\n'
        .. 'access_log off;\nserver { listen %s; location / { return %s; } }\n}\n'):format(nonsense(how, 'nonsense;\n'),
        how == 'other port' and other or address, how == 'fails at a request' and '500' or '200 "works"') }
end

local function haproxy(how, _, other)
    return { ['haproxy.cfg'] = ('global\n  hard-stop-after 10s\n%sdefaults\n  mode http\n  timeout client 10s\n'
        .. '  timeout server 10s\n  timeout connect 10s\nfrontend web\n  bind %s\n'
        .. '  http-request return status %d content-type text/plain string works\n'):format(nonsense(how, '  nonsense\n'),
        how == 'other port' and other or 'fd@${DUTCH_FD_1}', how == 'fails at a request' and 500 or 200) }
end

-- Debian's php-fpm. At a unix path it would take the path with it when it ends, but for the slash.
local function php_fpm(how, address, other)
    return { ['index.php'] = '<?php echo "works";', ['fpm.conf'] = ('[global]\nerror_log = fpm.log\n'
        .. 'process_control_timeout = 10s\n[www]\nuser = www-data\npm = static\npm.max_children = 2\n%s'
        .. 'listen = %s\n'):format(nonsense(how, 'nonsense = 1\n'),
        how == 'other port' and other or (address:gsub('^unix:(.*)', '%1/'))) }
end

local PHP_FPM = "dutch.phpfpm { command = 'php-fpm8.2', config = dutch.directory .. '/fpm.conf',"
    .. " args = { '--prefix', dutch.directory } }"

-- worker: of the script; elsewhere: a command that listens on OTHER, by a shell that stays, as people write it;
-- files: a table, or function(how, address, other address) -> table; leaves: files of its own that it may leave.
local LIST = {
    { 'gunicorn', files = WSGI, worker = "dutch.gunicorn { app = 'app:application' }",
        elsewhere = 'gunicorn -b OTHER app:application' },
    { 'uvicorn', files = ASGI,
        worker = "dutch.uvicorn { app = 'app:application', args = { '--lifespan', 'off', '--app-dir', dutch.directory } }",
        elsewhere = 'uvicorn --port ${0##*:} --lifespan off --app-dir . app:application' },
    { 'hypercorn', files = ASGI, worker = "dutch.hypercorn { app = 'app:application' }",
        elsewhere = 'hypercorn -b OTHER app:application' },
    { 'puma', files = RACK, worker = "dutch.puma { args = { '--quiet' } }", elsewhere = 'puma -b tcp://OTHER' },
    { 'unicorn', files = RACK, worker = 'dutch.unicorn {}', elsewhere = 'unicorn -l OTHER' },
    { 'uwsgi', files = WSGI,
        worker = "dutch.uwsgi { app = 'app:application', args = { '--plugin', 'python3', '--disable-logging',"
            .. " '--enable-threads' } }",
        elsewhere = 'uwsgi --master --die-on-term --plugin python3 --http-socket OTHER --module app:application' },
    { 'nginx', files = nginx, releases = OF_CONFIGS,
        worker = "dutch.nginx { config = dutch.directory .. '/nginx.conf', args = { '-p', dutch.directory } }" },
    { 'haproxy', files = haproxy, releases = OF_CONFIGS,
        worker = "dutch.haproxy { config = dutch.directory .. '/haproxy.cfg' }" },
    { 'php-fpm', program = 'php-fpm8.2', files = php_fpm, releases = OF_FASTCGI, protocol = fastcgi, worker = PHP_FPM,
        leaves = { 'fpm.log' } },
    { 'php-fpm, unix', program = 'php-fpm8.2', files = php_fpm, protocol = fastcgi, worker = PHP_FPM, unix = true,
        leaves = { 'fpm.log' } },
}

--- What a release of a server needs. @return name -> text
function M.files(server, how, address, other)
    local files = { how = how }
    local given = type(server.files) == 'function' and server.files(how, address, other) or server.files
    for name, text in pairs(given) do
        files[name] = text
    end
    return files
end

--- What the script says as `worker`.
function M.worker(server, how, other)
    if how == 'other port' and server.elsewhere then
        return ("{ 'sh', '-c', '%s; exit $?', '%s' }"):format(server.elsewhere:gsub('OTHER', '$0'), other)
    end
    return server.worker
end

--- The releases of a server: list of { how, verdict }.
function M.releases(server)
    return server.releases or OF_APPS
end

--- Those that are here. Under a sanitizer the first two: to our program all of them are the same.
-- @return list of servers, names of those that are not installed
function M.installed()
    local found, missing = {}, {}
    for i, server in ipairs(LIST) do
        if os.getenv 'DM_SANITIZE' and i > 2 then
            break
        elseif os.execute('command -v ' .. (server.program or server[1]) .. ' >/dev/null') == 0 then
            found[#found + 1] = server
        else
            missing[#missing + 1] = server[1]
        end
    end
    return found, missing
end

return M
