-- examples/capistrano and the installed unit, as they are, on a machine with a real systemd and an sshd: the user that
-- deploys is the unit's, or another one. Each deploy's exit code says what serves.

local machine = require 'spec.support.machine'

local function available()
    local there, why = machine.available()
    for _, program in ipairs { 'cap', '/usr/sbin/sshd', 'ssh-keygen', 'git', 'sudo', 'curl' } do
        if there and os.execute('command -v ' .. program .. ' >/dev/null') ~= 0 then
            there, why = false, program .. ' is not installed'
        end
    end
    return there, why
end

-- $1: the user that deploys.
local PREPARE = [[
set -e
useradd -m -s /bin/bash -p '*' my-app
useradd -m -s /bin/bash -p '*' deploy
mkdir -p /run/sshd /etc/sudoers.d
mkdir -p -m 700 /root/.ssh
rm -f /root/.ssh/id_rsa
ssh-keygen -q -t rsa -b 2048 -m PEM -N '' -f /root/.ssh/id_rsa
for user in my-app deploy; do
    mkdir -m 700 /home/$user/.ssh
    cp /root/.ssh/id_rsa.pub /home/$user/.ssh/authorized_keys
    chown -R $user: /home/$user
    chmod 755 /home/$user
done
cat >/etc/ssh/spec <<END
ListenAddress 127.0.0.1:22
HostKey /root/.ssh/id_rsa
UsePAM no
PidFile none
END
/usr/sbin/sshd -f /etc/ssh/spec
git config --global user.name spec
git config --global user.email spec@localhost
git config --global init.defaultBranch master
git config --system safe.directory '*'
sed -i "s#git@example.com:my-app.git#/root/app#" /root/app/config/deploy.rb
chmod 711 /root
cd /root/app && git init -q
]]

local PRODUCTION = [[
server '127.0.0.1', user: '%s', roles: %%w[app], ssh_options: {
  keys: ['/root/.ssh/id_rsa'], keys_only: true, verify_host_key: :never, config: false, use_agent: false,
  user_known_hosts_file: '/dev/null'
}
]]

describe('a deploy by Capistrano to the unit', function()
    local m
    local there, why = available()

    if not there then
        return it('is told what serves', function()
            pending(why)
        end)
    end

    after_each(function()
        local last = m
        m = nil
        machine.over(last)
    end)

    local function copy_example()
        for path in io.popen('cd examples/capistrano && find . -type f'):lines() do
            local file = assert(io.open('examples/capistrano/' .. path))
            m:write('/root/app/' .. path:sub(3), file:read '*a')
            file:close()
        end
    end

    local function commit(name)
        m:must("cd /root/app && git add -A && git commit -q --allow-empty -m '%s'", name)
        return (m:must 'git -C /root/app rev-parse HEAD'):match '%x+'
    end

    local function cap(task)
        return m:run('cd /root/app && cap production %s', task)
    end

    local function deployed(task)
        local code, said = cap(task)
        assert.equal(0, code, said)
        return said
    end

    local function failed(task)
        local code, said = cap(task)
        assert.is_true(code ~= 0, said)
        return said
    end

    local function revision()
        return (m:must 'curl -sS --max-time 5 http://127.0.0.1:8000/'):match '^release (%x+)'
    end

    it('is told what serves, with one user and with two', function()
        local reason
        m, reason = machine.start()
        if not m then
            return pending(reason)
        end
        copy_example()
        m:must(PREPARE)

        -- One user.
        m:write('/root/app/config/deploy/production.rb', PRODUCTION:format 'my-app')
        m:write('/etc/sudoers.d/my-app', 'my-app ALL=(root) NOPASSWD: /usr/bin/systemctl start dutch-master@my-app\n')
        m:must 'mkdir -p /srv/my-app && chown my-app: /srv/my-app'

        -- The very first release is broken: nothing serves, and the deploy says so.
        local app = m:must 'cat /root/app/app.lua'
        m:write('/root/app/master.lua', 'nonsense(')
        commit 'broken from the start'
        assert.matches('systemctl start dutch%-master@my%-app[^\n]*\n?.*exit status: 1', failed 'deploy')
        m:must 'systemctl reset-failed dutch-master@my-app'
        m:must 'cd /root/app && git rm -q --cached master.lua'
        local script = assert(io.open 'examples/capistrano/master.lua')
        m:write('/root/app/master.lua', script:read '*a')
        script:close()

        local first = commit 'one'
        deployed 'deploy'
        assert.equal(first, revision())
        local second = commit 'two'
        assert.matches('Restart done', deployed 'deploy')
        assert.equal(second, revision())
        local release_2 = (m:must 'readlink /srv/my-app/current'):match '[^/\n]+\n?$':gsub('\n', '')
        m:write('/root/app/app.lua', 'error "DATABASE_URL is not set"')
        commit 'broken'
        assert.matches('DATABASE_URL is not set', failed 'deploy')
        assert.equal(second, revision())
        m:write('/root/app/app.lua', app)
        local fourth = commit 'four'
        deployed 'deploy'
        assert.equal(fourth, revision())
        deployed('deploy:rollback ROLLBACK_RELEASE=' .. release_2)
        assert.equal(second, revision())
        assert.matches('steady, 2 of 2', deployed 'dutch_master:status')

        -- Another user deploys, and may not ask the master: that is no deploy, though all else went well.
        m:write('/root/app/config/deploy/production.rb', PRODUCTION:format 'deploy')
        m:write('/etc/sudoers.d/deploy', 'deploy ALL=(root) NOPASSWD: /usr/bin/systemctl start dutch-master@my-app\n')
        m:must 'chown -R deploy: /srv/my-app'
        local before = revision()
        commit 'five'
        assert.matches('set :dutch_master_user', failed 'deploy')
        assert.equal(before, revision())
        -- The same where it knows the directory of the socket.
        m:must [[echo "set :default_env, { 'DUTCH_MASTER_RUNTIME_DIR' => '/run/dutch-master-my-app' }" \
            >>/root/app/config/deploy.rb]]
        commit 'six'
        assert.matches('belongs to user my%-app', failed 'deploy')
        assert.equal(before, revision())

        -- With what two users need.
        m:must [[sed -i '$d' /root/app/config/deploy.rb && echo "set :dutch_master_user, 'my-app'" >>/root/app/config/deploy.rb]]
        m:write('/etc/sudoers.d/deploy2', 'deploy ALL=(my-app) NOPASSWD: /usr/local/bin/dutch-master\n')
        local seventh = commit 'seven'
        assert.matches('Restart done', deployed 'deploy')
        assert.equal(seventh, revision())
        m:must 'systemctl stop dutch-master@my-app'
    end)
end)
