-- The Debian package: made twice alike, accepted by lintian, installed, run and removed in a root that debootstrap made.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

-- A package is of what is released; how long lintian takes, is not known.
local LIMIT = { timeout = 240000 }

local function sh(text, options)
    options = options or {}
    options.program = 'sh'
    return cli.start(nil, { '-ec', text }, options):wait(LIMIT)
end

local function must(text, options)
    local c = sh(text, options)
    assert.equal(0, c.code, text .. '\n' .. c.out .. c.err)
    return c.out
end

local function has(program)
    return os.execute(('command -v %s >/dev/null'):format(program)) == 0
end

--- The packages that ours needs, beside those of the root, as files below spec/.cache.
local function dependencies()
    local dir = uv.cwd() .. '/spec/.cache/deb'
    os.execute(("mkdir -p '%s'"):format(dir))
    local c = sh(([[
        cd '%s'
        for name in libluajit-5.1-2 libluajit-5.1-common libuv1; do
            ls "$name"_*.deb >/dev/null 2>&1 || apt-get -qq download "$name"
        done
        ls "$PWD"/*.deb
    ]]):format(dir))
    return c.code == 0 and c.out:gsub('\n', ' ') or nil, c.err
end

local function base_root()
    local pipe = io.popen 'ls -d spec/.cache/bare/bookworm-*/root.tar 2>/dev/null | tail -n 1'
    local path = pipe:read '*l'
    pipe:close()
    return path
end

describe('the Debian package', function()
    after_each(master.cleanup)
    if os.getenv 'DM_SANITIZE' then
        return pending 'is made of a build without sanitizers'
    elseif not has 'cpack' or not has 'dpkg-deb' then
        return pending 'needs cpack and dpkg-deb'
    end

    local build = master.binary():match '^(.*)/'
    local function make(dir, other)
        local made = ([[cpack --config '%s/CPackConfig.cmake' -G DEB -B '%s' >/dev/null && ls '%s'/*.deb]]):format(
            other or build, dir, dir)
        return must(made, { env = { SOURCE_DATE_EPOCH = '1795842000' } }):match '%S+'
    end

    it('is the same, made twice, and lintian accepts it', function()
        local dir = master.temp_dir()
        local first, second = make(dir .. '/1'), make(dir .. '/2')
        must(("cmp '%s' '%s'"):format(first, second))
        local files = must(("dpkg-deb -c '%s'"):format(first))
        for _, name in ipairs {
            './usr/bin/dutch%-master', './usr/share/man/man1/dutch%-master.1.gz', './usr/lib/sysctl.d/60%-dutch%-master.conf',
            './usr/lib/systemd/system/dutch%-master@.service', './etc/logrotate.d/dutch%-master',
            './usr/share/bash%-completion/completions/dutch%-master', './usr/share/doc/dutch%-master/copyright',
        } do
            assert.matches(name .. '\n', files)
        end
        assert.matches('Recommends: lua%-http', must(("dpkg-deb -I '%s'"):format(first)))
        must(("dpkg-deb -x '%s' '%s/x' && grep -q '^ExecStart=/usr/bin/dutch-master ' "
            .. "'%s/x/usr/lib/systemd/system/dutch-master@.service'"):format(first, dir, dir))
        must(("logrotate --debug '%s/x/etc/logrotate.d/dutch-master' 2>&1"):format(dir))
        if not has 'lintian' then
            return pending 'lintian is not installed'
        end
        local c = sh(("lintian --allow-root --fail-on error,warning '%s'"):format(first))
        assert.equal(0, c.code, c.out .. c.err)
    end)

    --- A machine that has what ours needs, and `packages` in /root: inside(text) is a shell there, stop() its end.
    local machine
    local function new_machine(dir, packages)
        local root_tar = base_root()
        if uv.getuid() ~= 0 or not root_tar then
            return nil, 'needs root, and the root that spec/bare/try makes'
        end
        local needed, why = dependencies()
        if not needed then
            return nil, 'its dependencies cannot be had: ' .. why:sub(1, 200)
        end
        local root = dir .. '/root'
        must(("mkdir '%s' && tar -C '%s' -xf '%s' && cp '%s' %s '%s/root/'"):format(root, root, root_tar,
            table.concat(packages, "' '"), needed, root))
        local c = cli.start(nil, { '--mount', '--pid', '--fork', '--kill-child', 'sh', '-ec', ([[
            mount -t proc proc '%s/proc'
            mount --rbind /dev '%s/dev'
            echo up
            exec sleep 600]]):format(root, root) }, { program = 'unshare' })
        c:await_output 'up'
        local pid = must(('pgrep -P %d'):format(c.pid)):match '%d+'
        machine = {
            inside = function(text)
                return must(([[exec nsenter --target %s --mount --pid chroot '%s' env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
                    sh -ec "$TEXT"]]):format(pid, root), { env = { TEXT = text } })
            end,
            stop = function()
                machine = nil
                c:kill 'sigkill'
                c:wait()
            end,
        }
        machine.inside 'dpkg -i /root/lib*.deb >/dev/null'
        return machine
    end

    after_each(function()
        if machine then
            machine.stop()
        end
        load.cleanup()
    end)

    it('is installed, runs, and leaves nothing behind', function()
        local dir = master.temp_dir()
        local there, why = new_machine(dir, { make(dir .. '/out') })
        if not there then
            return pending(why)
        end
        local inside = there.inside
        local before = inside 'find /etc /usr /var/lib/dpkg/info | sort'
        inside 'dpkg -i /root/dutch-master*.deb'
        assert.matches('^dutch%-master [%d.]+ %(commit ', inside 'dutch-master --version')
        assert.matches('hello from worker', inside [[
            mkdir /srv/a
            cd /srv/a
            echo "io.stdout:write('hello from worker') io.stdout:flush() require('dutch-master.worker').ready()" > app.lua
            echo "require('dutch-master').start { worker = 'app.lua', ready = 'message', numWorkers = 1 }" > master.lua
            dutch-master check --quiet
            dutch-master master.lua > log &
            for i in $(seq 200); do dutch-master status >/dev/null 2>&1 && break; done
            while ! grep -q 'Cluster ready' log; do :; done
            dutch-master restart --wait >/dev/null
            dutch-master stop --wait >/dev/null
            cat log
        ]])
        inside 'dpkg --purge dutch-master'
        assert.equal(before, inside 'find /etc /usr /var/lib/dpkg/info | sort')
        there.stop()
    end)

    it('is upgraded under load: no request fails; a kept master becomes the new version, others go on', function()
        local dir = master.temp_dir()
        must(([[
            cmake -S . -B '%s/next' -DDM_SPEC=OFF -DDM_VERSION=0.1.1 -DCMAKE_BUILD_TYPE=Debug >/dev/null
            cmake --build '%s/next' -j "$(nproc)" >/dev/null]]):format(dir, dir))
        local first, second = make(dir .. '/1'), make(dir .. '/2', dir .. '/next')
        local there, why = new_machine(dir, { first, second })
        if not there then
            return pending(why)
        end
        local inside = there.inside
        inside 'dpkg -i /root/dutch-master_0.1.0*.deb >/dev/null'
        local loads = {}
        for name, option in pairs { plain = '--no-keeper', kept = '' } do
            local port = http.free_port()
            inside(([[
                mkdir /srv/%s
                cd /srv/%s
                cat > app.lua <<'END'
%s
END
                echo "require('dutch-master').start { worker = 'app.lua', numWorkers = 2,
                    workerEnvironment = { LISTEN = '127.0.0.1:%d' }, restartSoak = 0.2 }" > master.lua
                setsid dutch-master master.lua %s > log 2>&1 &
                for i in $(seq 600); do grep -q 'Cluster ready' log && break; sleep 0.05; done
                grep -q 'Cluster ready' log || { cat log; false; }
            ]]):format(name, name, apps.http, port, option))
            loads[name] = load.start { port = port, clients = 4, rate = 100 }
        end
        local said = inside 'dpkg -i /root/dutch-master_0.1.1*.deb'
        assert.matches('/srv/plain/master.lua: goes on with version 0.1.0 until its master %(pid %d+%) is started', said)
        assert.matches('/srv/kept/master.lua: runs the new version now', said)
        assert.matches('^dutch%-master 0.1.1 ', inside 'dutch-master --version')
        assert.matches('"version":"0.1.0"', inside 'dutch-master status --json /srv/plain/master.lua')
        assert.matches('"version":"0.1.1"', inside 'dutch-master status --json /srv/kept/master.lua')
        -- Workers come from the program that their master is, though its file may be gone.
        for name, wanted in pairs { plain = '/usr/bin/dutch-master (deleted)', kept = '/usr/bin/dutch-master' } do
            inside(('dutch-master restart --wait /srv/%s/master.lua'):format(name))
            local status = cjson.decode(inside(('dutch-master status --json /srv/%s/master.lua'):format(name)))
            for _, worker in ipairs(status.workers) do
                if worker.generation == status.generation then
                    assert.equal(wanted .. '\n', inside(('readlink /proc/%d/exe'):format(worker.pid)), name)
                end
            end
        end
        for name, under_load in pairs(loads) do
            local counts = under_load:stop()
            assert.is_true(counts.ok > 0)
            assert.equal(0, counts.failed, name .. ': ' .. counts.text)
            inside(('dutch-master stop --wait /srv/%s/master.lua'):format(name))
        end
        there.stop()
    end)
end)
