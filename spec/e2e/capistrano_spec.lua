-- A deploy as Capistrano does it: Debian's capistrano, an sshd of the spec's own on 127.0.0.1, a git repository on disk
-- and the files of examples/capistrano as they are.
-- Longer than 400 lines: the servers and the repository, which nothing else needs, are more than half of it.

local uv = require 'luv'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local files = require 'spec.support.files'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local read = files.text
local EXAMPLE = 'examples/capistrano'

local function available()
    for _, program in ipairs { 'cap', '/usr/sbin/sshd', 'ssh-keygen', 'git' } do
        if os.execute('command -v ' .. program .. ' >/dev/null') ~= 0 then
            return false, program .. ' is not installed'
        end
    end
    return pcall(require, 'http.server')
end

local function shell(command, ...)
    command = command:format(...)
    local pipe = io.popen('{ ' .. command .. '; } 2>&1; echo "exit $?"')
    local said = pipe:read '*a'
    pipe:close()
    assert(said:match 'exit 0\n$', command .. '\n' .. said)
end

-- A server is a directory with a HOME, a runtime directory and an sshd of its own: two of them are two machines for
-- Capistrano, though both are this one.
local Server = {}
Server.__index = Server

local function new_server(site, host)
    local self = setmetatable({
        site = site, host = host, dir = site.dir .. '/' .. host, port = http.free_port(), ssh_port = http.free_port(),
    }, Server)
    self.deploys = self.dir .. '/deploys'
    self.script = self.deploys .. '/current/master.lua'
    self.log = self.dir .. '/log'
    shell("mkdir -m 700 '%s' '%s/run'", self.dir, self.dir)
    -- What a service manager does: starts it apart from the session, and waits until it is ready.
    files.write(self.dir .. '/start', ([[#!/bin/sh
cd /
PORT=%d setsid '%s' '%s' > '%s' 2>&1 < /dev/null &
until grep -q 'Cluster ready' '%s'; do sleep 0.1; done
]]):format(self.port, master.binary(), self.script, self.log, self.log))
    shell("chmod +x '%s/start'", self.dir)
    return self
end

-- HOME also keeps what the user's shell would read from it out of the spec.
function Server:start_sshd()
    files.write(self.dir .. '/sshd', ([[
ListenAddress %s:%d
HostKey %s/ssh/host
AuthorizedKeysFile %s/ssh/authorized
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv HOME=%s DUTCH_MASTER_RUNTIME_DIR=%s/run
]]):format(self.host, self.ssh_port, self.site.dir, self.site.dir, self.dir, self.dir))
    -- As root sshd wants its own empty directory, which its package makes at boot.
    os.execute '[ "$(id -u)" != 0 ] || mkdir -p -m 755 /run/sshd'
    self.sshd = uv.spawn('/usr/sbin/sshd', { args = { '-D', '-e', '-f', self.dir .. '/sshd' } }, function()
        self.sshd:close()
        self.sshd_ended = true
    end)
    wait.wait_until(function()
        local connected
        local probe = uv.new_tcp()
        probe:connect(self.host, self.ssh_port, function(err)
            connected = not err
            probe:close()
        end)
        wait.try(function() return connected ~= nil end)
        return connected
    end, { what = 'sshd' })
end

--- A line of config/deploy/spec.rb.
function Server:line()
    return ([[server '%s', user: '%s', roles: %%w[app], ssh_options: {
  port: %d, keys: ['%s/ssh/user'], keys_only: true, auth_methods: %%w[publickey], verify_host_key: :never,
  config: false, use_agent: false, user_known_hosts_file: '/dev/null'
}
]]):format(self.host, uv.os_get_passwd().username, self.ssh_port, self.site.dir)
end

function Server:run(...)
    return cli.run({ app = '/', dir = self.dir }, { ..., self.script })
end

function Server:status()
    local c = cli.run({ app = '/', dir = self.dir }, { 'status', self.script, '--json' })
    return c.code == 0 and cjson.decode(c.out)
end

--- The workers that serve, by slot. Others are leaving, after a restart for as long as their clients take.
function Server:serving()
    local found = {}
    for _, worker in ipairs(self:status().workers) do
        if worker.state == 'running' or worker.state == 'retiring' then
            found[#found + 1] = worker
        end
    end
    return found
end

function Server:pids()
    local pids = {}
    for i, worker in ipairs(self:serving()) do
        pids[i] = worker.pid
    end
    return pids
end

--- The commit of the release that answers.
function Server:revision()
    local _, body = http.get { port = self.port }
    return (body or ''):match '^release (%x+)'
end

--- Fails unless both workers run the release that `current` points to.
function Server:runs_current()
    local workers = self:serving()
    assert.equal(2, #workers)
    for _, worker in ipairs(workers) do
        assert.equal(self:current(), worker.release)
    end
end

function Server:current()
    return uv.fs_realpath(self.deploys .. '/current')
end

--- The log's records of these messages.
function Server:records(msg)
    local found = {}
    for line in read(self.log):gmatch '[^\n]+' do
        local ok, record = pcall(cjson.decode, line)
        if ok and record.msg == msg then
            found[#found + 1] = record
        end
    end
    return found
end

function Server:close()
    self:run('stop', '--wait')
    if self.sshd and not self.sshd_ended then
        self.sshd:kill 'sigterm'
        wait.wait_until(function() return self.sshd_ended end, { what = 'the end of sshd' })
    end
end

-- One directory holds all: dir/{ssh,repo,app} and one for each server.
local Site = {}
Site.__index = Site

local function new_site(...)
    local self = setmetatable({ dir = master.temp_dir(), servers = {} }, Site)
    shell("mkdir -m 700 '%s/ssh' '%s/home'", self.dir, self.dir)
    for _, key in ipairs { 'host', 'user' } do
        shell("ssh-keygen -q -t rsa -b 2048 -m PEM -N '' -f '%s/ssh/%s'", self.dir, key)
    end
    shell("cp '%s/ssh/user.pub' '%s/ssh/authorized'", self.dir, self.dir)
    for i, host in ipairs { ... } do
        self.servers[i] = new_server(self, host)
        self.servers[i]:start_sshd()
    end
    self:make_repository()
    return self
end

--- The application's repository, with Capistrano's files beside the application's. The path is the same on all servers,
--- as it is in life.
function Site:make_repository()
    local app = self.dir .. '/app'
    shell("cp -r %s '%s'", EXAMPLE, app)
    self:edit_script(function(text) return text end)
    local lines = {}
    for i, server in ipairs(self.servers) do
        lines[i] = server:line()
    end
    files.write(app .. '/config/deploy/spec.rb', ([[
set :repo_url, '%s/app/.git'
set :deploy_to, '~/deploys'
set :dutch_master, '%s'
set :dutch_master_timeout, 30
set :dutch_master_start, 'exec ~/start'
set :local_user, 'spec'
%s]]):format(self.dir, master.binary(), table.concat(lines)))
    shell("cd '%s' && git init -q -b master && git config user.name spec && git config user.email spec@localhost", app)
    self:commit 'release 1'
end

--- master.lua of the example, for our paths.
function Site:edit_script(change)
    local text, count = read(EXAMPLE .. '/master.lua'):gsub("dutch%.chdir '/srv/my%-app/current'",
        "dutch.chdir(dutch.environ().HOME .. '/deploys/current')")
    assert(count == 1)
    files.write(self.dir .. '/app/master.lua', change(text))
end

function Site:commit(message)
    shell("cd '%s/app' && git add -A && git commit -q --allow-empty -m '%s'", self.dir, message)
    local pipe = io.popen(("git -C '%s/app' rev-parse HEAD"):format(self.dir))
    local revision = pipe:read '*l'
    pipe:close()
    return revision
end

--- cap spec TASK; `env` besides.
function Site:cap(task, env)
    local all = { HOME = self.dir .. '/home', SSH_AUTH_SOCK = false }
    for name, value in pairs(env or {}) do
        all[name] = value
    end
    return cli.run({ app = self.dir .. '/app', dir = self.dir }, { 'spec', task }, {
        program = 'cap', timeout = 120000, env = all,
    })
end

--- Runs fn while clients of all servers ask without a pause. None may fail; a few at least have been answered.
function Site:under_load(expect, fn)
    local clients = {}
    for i, server in ipairs(self.servers) do
        clients[i] = load.start { port = server.port, clients = 4, expect = expect }
        clients[i]:await(20)
    end
    fn()
    for _, client in ipairs(clients) do
        local counts = client:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.is_true(counts.ok > 100, counts.text)
    end
end

function Site:close()
    for _, server in ipairs(self.servers) do
        server:close()
    end
end

describe('Capistrano', function()
    local there, why = available()
    if not there then
        return it('deploys', function()
            pending(tostring(why))
        end)
    end

    local site

    after_each(function()
        if site then
            site:close()
            site = nil
        end
        master.cleanup()
    end)

    local function deployed(task, env)
        local c = site:cap(task, env)
        assert.equal(0, c.code, c.out .. c.err)
        return c.out .. c.err
    end

    local function failed(task)
        local c = site:cap(task)
        assert.is_true(c.code ~= 0, c.out)
        return c.out .. c.err
    end

    it('deploys, deploys under load, is failed by a broken release, and rolls back', function()
        site = new_site '127.0.0.1'
        local server = site.servers[1]

        -- The first one starts the master.
        local first = site:commit 'release 1'
        deployed 'deploy'
        assert.equal(first, server:revision())
        assert.equal(1, server:status().generation)
        local pid = server:status().pid

        -- The second one is rolled under load; a hook edited in its script is in force.
        files.write(site.dir .. '/app/NEWS', 'second\n')
        site:edit_script(function(text)
            return (text:gsub("onRestart = function%(verdict%)", "%0 dutch.log.info('an edited hook')"))
        end)
        local second = site:commit 'release 2'
        site:under_load('^release %x+', function()
            assert.matches('Restart done', deployed 'deploy')
        end)
        assert.equal(second, server:revision())
        assert.equal(1, #server:records 'an edited hook')
        local release_2 = server:current()
        server:runs_current()

        -- The third one is broken: cap fails and says how; the second release serves, also after a crash.
        files.write(site.dir .. '/app/app.lua', 'io.stderr:write("Error: column users.age does not exist\\n") os.exit(1)\n')
        site:commit 'release 3'
        site:under_load(second, function()
            local said = failed 'deploy'
            assert.matches('exited with code 1', said)
            assert.matches('column users.age does not exist', said)
        end)
        assert.equal(release_2, server:current())
        assert.equal(second, server:revision())
        local killed = server:pids()[1]
        uv.kill(killed, 'sigkill')
        wait.wait_until(function()
            local pids = server:pids()
            return #pids == 2 and pids[1] ~= killed
        end, { what = 'the replacement' })
        server:runs_current()

        -- The fourth one is good, and is rolled back; the hook of the fourth is gone again in what is rolled back to.
        shell("cd '%s/app' && git checkout -q %s -- app.lua", site.dir, second)
        site:edit_script(function(text)
            return (text:gsub("onRestart = function%(verdict%)", "%0 dutch.log.info('edited again')"))
        end)
        local fourth = site:commit 'release 4'
        site:under_load('^release %x+', function()
            deployed 'deploy'
        end)
        assert.equal(fourth, server:revision())
        assert.equal(1, #server:records 'edited again')
        local edited = #server:records 'an edited hook'
        site:under_load('^release %x+', function()
            deployed('deploy:rollback', { ROLLBACK_RELEASE = release_2:match '[^/]+$' })
        end)
        assert.equal(release_2, server:current())
        assert.equal(second, server:revision())
        server:runs_current()
        assert.same({ edited + 1, 1 }, { #server:records 'an edited hook', #server:records 'edited again' })

        -- One master all the way; `cap dutch_master:status` shows it.
        assert.equal(pid, server:status().pid)
        assert.matches('steady, 2 of 2 workers serving', deployed 'dutch_master:status')
        local c = server:run('stop', '--wait')
        assert.equal(0, c.code, c.err)
    end)

    it('rolls two servers one after the other, and touches none after the one that a release fails on', function()
        site = new_site('127.0.0.1', '127.0.0.2')
        local one, two = site.servers[1], site.servers[2]
        -- A release that needs what a server may not have.
        local good = read(EXAMPLE .. '/app.lua')
        files.write(site.dir .. '/app/app.lua', [[
            if io.open(os.getenv 'HOME' .. '/no-database') then
                error 'there is no database on this server'
            end
        ]] .. good)
        site:commit 'release 1'
        deployed 'deploy'
        local release_1 = one:current():match '[^/]+$'

        local second = site:commit 'release 2'
        site:under_load('^release %x+', function()
            deployed 'deploy'
        end)
        for _, server in ipairs(site.servers) do
            assert.equal(second, server:revision())
            server:runs_current()
        end
        local done, begun = one:records('Restart complete')[1], two:records('Restart requested')[1]
        assert.is_true(done.time <= begun.time, done.time .. ' ' .. begun.time)

        -- Back, without saying to what, and forth again.
        site:under_load('^release %x+', function()
            deployed 'deploy:rollback'
        end)
        for _, server in ipairs(site.servers) do
            assert.equal(release_1, server:current():match '[^/]+$')
            server:runs_current()
        end
        local third = site:commit 'release 3'
        deployed 'deploy'
        local release_3 = one:current():match '[^/]+$'

        local function is_untouched(server, pids, restarts)
            assert.same(pids, server:pids())
            assert.equal(third, server:revision())
            assert.equal(release_3, server:current():match '[^/]+$')
            server:runs_current()
            assert.equal(restarts, #server:records 'Restart requested')
        end

        -- Broken on the first: the second is not even asked.
        files.write(one.dir .. '/no-database', '')
        site:commit 'release 4'
        local pids_one, pids_two = one:pids(), two:pids()
        local asked_one, asked_two = #one:records 'Restart requested', #two:records 'Restart requested'
        site:under_load(third, function()
            assert.matches('there is no database on this server', failed 'deploy')
        end)
        is_untouched(one, pids_one, asked_one + 1)
        is_untouched(two, pids_two, asked_two)

        -- Broken on the second: the first serves the new release, the second the old one, and cap says which failed.
        assert(os.remove(one.dir .. '/no-database'))
        files.write(two.dir .. '/no-database', '')
        local fifth = site:commit 'release 5'
        site:under_load('^release %x+', function()
            local said = failed 'deploy'
            assert.matches('there is no database on this server', said)
            assert.matches('Exception while executing as [^\n]*@127%.0%.0%.2:', said)
        end)
        assert.equal(fifth, one:revision())
        one:runs_current()
        is_untouched(two, pids_two, asked_two + 1)
    end)
end)
