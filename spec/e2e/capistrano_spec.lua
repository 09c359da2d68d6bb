-- A deploy as Capistrano does it: Debian's capistrano, an sshd of the spec's own on 127.0.0.1, a git repository on disk
-- and the files of examples/capistrano as they are.

local uv = require 'luv'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local EXAMPLE = 'examples/capistrano'

local function available()
    for _, program in ipairs { 'cap', '/usr/sbin/sshd', 'ssh-keygen', 'git' } do
        if os.execute('command -v ' .. program .. ' >/dev/null') ~= 0 then
            return false, program .. ' is not installed'
        end
    end
    return pcall(require, 'http.server')
end

local function read(path)
    local file = assert(io.open(path))
    local text = file:read '*a'
    file:close()
    return text
end

local function write(path, text)
    local file = assert(io.open(path, 'w'))
    file:write(text)
    file:close()
end

local function shell(command, ...)
    command = command:format(...)
    local pipe = io.popen('{ ' .. command .. '; } 2>&1; echo "exit $?"')
    local said = pipe:read '*a'
    pipe:close()
    assert(said:match 'exit 0\n$', command .. '\n' .. said)
end

-- One directory holds all: dir/{ssh,repo,app,deploys,run}.
local Site = {}
Site.__index = Site

local function new_site()
    local self = setmetatable({ dir = master.temp_dir(), port = http.free_port(), ssh_port = http.free_port() }, Site)
    self.deploy_to = self.dir .. '/deploys'
    self.script = self.deploy_to .. '/current/master.lua'
    shell("mkdir -m 700 '%s/ssh' '%s/run' '%s/home'", self.dir, self.dir, self.dir)
    for _, key in ipairs { 'host', 'user' } do
        shell("ssh-keygen -q -t rsa -b 2048 -m PEM -N '' -f '%s/ssh/%s'", self.dir, key)
    end
    shell("cp '%s/ssh/user.pub' '%s/ssh/authorized'", self.dir, self.dir)
    return self
end

function Site:start_sshd()
    write(self.dir .. '/ssh/config', ([[
ListenAddress 127.0.0.1:%d
HostKey %s/ssh/host
AuthorizedKeysFile %s/ssh/authorized
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
AcceptEnv DM_*
]]):format(self.ssh_port, self.dir, self.dir))
    -- As root sshd wants its own empty directory, which its package makes at boot.
    os.execute '[ "$(id -u)" != 0 ] || mkdir -p -m 755 /run/sshd'
    self.sshd = uv.spawn('/usr/sbin/sshd', { args = { '-D', '-e', '-f', self.dir .. '/ssh/config' } }, function()
        self.sshd:close()
        self.sshd_ended = true
    end)
    wait.wait_until(function()
        local connected
        local probe = uv.new_tcp()
        probe:connect('127.0.0.1', self.ssh_port, function(err)
            connected = not err
            probe:close()
        end)
        wait.try(function() return connected ~= nil end)
        return connected
    end, { what = 'sshd' })
end

--- The application's repository, with Capistrano's files beside the application's.
function Site:make_repository()
    local app = self.dir .. '/app'
    shell("cp -r %s '%s'", EXAMPLE, app)
    self:edit_script(function(text) return text end)
    write(app .. '/config/deploy/spec.rb', ([[
set :repo_url, '%s/app/.git'
set :deploy_to, '%s'
set :default_env, { 'DUTCH_MASTER_RUNTIME_DIR' => '%s/run' }
set :dutch_master, '%s'
set :dutch_master_timeout, 30
set :dutch_master_start, '%s/start'
set :local_user, 'spec'
server '127.0.0.1', user: '%s', roles: %%w[app], ssh_options: {
  port: %d, keys: ['%s/ssh/user'], keys_only: true, auth_methods: %%w[publickey], verify_host_key: :never,
  config: false, use_agent: false, user_known_hosts_file: '/dev/null'
}
]]):format(self.dir, self.deploy_to, self.dir, master.binary(), self.dir, uv.os_get_passwd().username, self.ssh_port,
        self.dir))
    -- What a service manager does: starts it apart from the session, and waits until it is ready.
    write(self.dir .. '/start', ([[#!/bin/sh
cd /
PORT=%d setsid '%s' '%s' > '%s/log' 2>&1 < /dev/null &
until grep -q 'Cluster ready' '%s/log'; do sleep 0.1; done
]]):format(self.port, master.binary(), self.script, self.dir, self.dir))
    shell("chmod +x '%s/start'", self.dir)
    shell("cd '%s' && git init -q -b master && git config user.name spec && git config user.email spec@localhost", app)
    self:commit 'release 1'
end

--- master.lua of the example, for our paths.
function Site:edit_script(change)
    local text = read(EXAMPLE .. '/master.lua'):gsub('/deploys/my%-app', self.deploy_to)
    write(self.dir .. '/app/master.lua', change(text))
end

function Site:commit(message)
    shell("cd '%s/app' && git add -A && git commit -q --allow-empty -m '%s'", self.dir, message)
    local pipe = io.popen(("git -C '%s/app' rev-parse HEAD"):format(self.dir))
    self.revision = pipe:read '*l'
    pipe:close()
    return self.revision
end

--- cap spec TASK
function Site:cap(...)
    return cli.run({ app = self.dir .. '/app', dir = self.dir }, { 'spec', ... }, {
        program = 'cap', timeout = 120000, env = { HOME = self.dir .. '/home', SSH_AUTH_SOCK = false },
    })
end

function Site:status()
    local c = cli.run({ app = '/', dir = self.dir }, { 'status', self.script, '--json' })
    return c.code == 0 and cjson.decode(c.out)
end

function Site:revision_served()
    local _, body = http.get { port = self.port }
    return (body or ''):match '^release (%x+)'
end

function Site:current()
    return uv.fs_realpath(self.deploy_to .. '/current')
end

function Site:close()
    cli.run({ app = '/', dir = self.dir }, { 'stop', '--wait', self.script })
    if self.sshd and not self.sshd_ended then
        self.sshd:kill 'sigterm'
        wait.wait_until(function() return self.sshd_ended end, { what = 'the end of sshd' })
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

    it('deploys, deploys under load, is failed by a broken release, and rolls back', function()
        site = new_site()
        site:start_sshd()
        site:make_repository()

        -- The first one starts the master.
        local c = site:cap 'deploy'
        assert.equal(0, c.code, c.out .. c.err)
        local first = site.revision
        assert.equal(first, site:revision_served())
        assert.equal(1, site:status().generation)
        local pid = site:status().pid

        -- The second one is rolled under load; a hook edited in its script is in force.
        write(site.dir .. '/app/NEWS', 'second\n')
        site:edit_script(function(text)
            return (text:gsub("onRestart = function%(verdict%)", "%0 dutch.log.info('an edited hook')"))
        end)
        local second = site:commit 'release 2'
        local clients = load.start { port = site.port, clients = 4, expect = '^release %x+' }
        clients:await(50)
        c = site:cap 'deploy'
        assert.equal(0, c.code, c.out .. c.err)
        assert.matches('Restart done', c.out)
        local counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.is_true(counts.ok > 100, counts.text)
        assert.equal(second, site:revision_served())
        assert.matches('an edited hook', read(site.dir .. '/log'))
        local release_2 = site:current()
        for _, worker in ipairs(site:status().workers) do
            assert.equal(release_2, worker.release)
        end

        -- The third one is broken: cap fails and says how; the second release serves, also after a crash.
        write(site.dir .. '/app/app.lua', 'io.stderr:write("Error: column users.age does not exist\\n") os.exit(1)\n')
        site:commit 'release 3'
        clients = load.start { port = site.port, clients = 4, expect = second }
        c = site:cap 'deploy'
        assert.is_true(c.code ~= 0, c.out)
        assert.matches('exited with code 1', c.out .. c.err)
        assert.matches('column users.age does not exist', c.out .. c.err)
        counts = clients:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.equal(release_2, site:current())
        assert.equal(second, site:revision_served())
        uv.kill(site:status().workers[1].pid, 'sigkill')
        wait.wait_until(function()
            local status = site:status()
            return #status.workers == 2 and status.workers[1].state == 'running' and status.workers[1].restarts > 0
        end, { what = 'the replacement' })
        for _, worker in ipairs(site:status().workers) do
            assert.equal(release_2, worker.release)
        end

        -- The fourth one is good, and is rolled back.
        shell("cd '%s/app' && git checkout -q %s -- app.lua", site.dir, second)
        local fourth = site:commit 'release 4'
        c = site:cap 'deploy'
        assert.equal(0, c.code, c.out .. c.err)
        assert.equal(fourth, site:revision_served())
        c = cli.run({ app = site.dir .. '/app', dir = site.dir }, { 'spec', 'deploy:rollback' }, {
            program = 'cap', timeout = 120000,
            env = { HOME = site.dir .. '/home', ROLLBACK_RELEASE = release_2:match '[^/]+$' },
        })
        assert.equal(0, c.code, c.out .. c.err)
        assert.equal(release_2, site:current())
        wait.wait_until(function() return site:revision_served() == second end, { what = 'the second release' })

        -- One master all the way; `cap dutch_master:status` shows it.
        assert.equal(pid, site:status().pid)
        c = site:cap 'dutch_master:status'
        assert.matches('steady, 2 of 2 workers serving', c.out)
        c = cli.run({ app = '/', dir = site.dir }, { 'stop', '--wait', site.script })
        assert.equal(0, c.code, c.err)
    end)
end)
