-- What people begin with: projects as the frameworks' own generators make them (spec/support/install-node), or as their
-- first page says. `init` writes a script for each, `check` has nothing against it, and it is a cluster that serves.

local uv = require 'luv'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'

local CACHE = uv.cwd() .. '/spec/.cache/'

-- name; worker: what init finds; made: a directory below spec/.cache; make: commands of a shell that make it here
local SKELETONS = {
    { name = 'express-generator', worker = "'./bin/www'", made = 'skeletons/express' },
    { name = 'fastify-cli', worker = "'node_modules/.bin/fastify'", made = 'skeletons/fastify' },
    { name = 'koa-generator', worker = "'bin/www'", made = 'skeletons/koa' },
    { name = 'Nest', worker = "'dist/main.js'", made = 'skeletons/nest' },
    { name = 'Next', worker = "'node_modules/.bin/next'", made = 'frameworks/next-app',
        make = [[echo '{"name":"site","scripts":{"dev":"next dev","build":"next build","start":"next start"}}' > package.json]] },
    { name = 'Django', worker = "dutch.gunicorn { app = 'shop.wsgi:application' }",
        needs = 'django-admin version', make = [[
            django-admin startproject shop .
            sed -i 's/^ALLOWED_HOSTS = .*/ALLOWED_HOSTS = ["*"]/' shop/settings.py]] },
    { name = 'Flask', worker = "dutch.gunicorn { app = 'app:app' }", needs = 'python3 -c "import flask"', make = [[
        printf 'from flask import Flask\n\napp = Flask(__name__)\n\n\n@app.route("/")\ndef hello():\n    return "ok"\n' > app.py]] },
    { name = 'Starlette', worker = "dutch.uvicorn { app = 'main:app' }", needs = 'python3 -c "import starlette"', make = [[
        printf 'from starlette.applications import Starlette\nfrom starlette.responses import PlainTextResponse\n' > main.py
        printf 'from starlette.routing import Route\n\n\nasync def hello(request):\n' >> main.py
        printf '    return PlainTextResponse("ok")\n\n\napp = Starlette(routes=[Route("/", hello)])\n' >> main.py]] },
    { name = 'Sinatra', worker = 'dutch.puma { }', needs = 'ruby -rsinatra/base -e 1', make = [[
        printf 'require "sinatra/base"\nclass Shop < Sinatra::Base\n  get("/") { "ok" }\nend\n' > app.rb
        printf 'require "./app"\nrun Shop\n' > config.ru; printf 'gem "sinatra"\ngem "puma"\n' > Gemfile]] },
    { name = 'Rack', worker = 'dutch.puma { }', needs = 'ruby -rrack -e 1', make = [==[
        echo 'use Rack::ContentLength; run ->(env) { [200, { "content-type" => "text/plain" }, ["ok"]] }' > config.ru]==] },
}

local node = versions.binary '22'
-- Debian's Python and Ruby, which know Debian's packages, before others.
local PATH = '/usr/bin:/bin:/usr/sbin:' .. os.getenv 'PATH'
local ENV = { PATH = (node and node:match '^(.*)/' .. ':' or '') .. PATH, PYTHONDONTWRITEBYTECODE = '1' }

local function shell(text, dir)
    return cli.run(nil, { '-ec', text }, { program = 'sh', cwd = dir, env = ENV })
end

describe('init, on a project as it is made with', function()
    after_each(master.cleanup)

    for _, skeleton in ipairs(SKELETONS) do
        it(skeleton.name .. ', makes a cluster that serves', function()
            local made = skeleton.made and CACHE .. skeleton.made
            if made and (not node or not uv.fs_stat(made .. '/node_modules')) then
                return pending(skeleton.made .. ' is not there: see spec/support/install-node')
            elseif skeleton.needs and shell(skeleton.needs, '/').code ~= 0 then
                return pending(skeleton.name .. ' is not installed')
            end
            local dir = master.temp_dir()
            if made then -- all of it, and what is written here stays here
                assert.equal(0, shell(("ln -s '%s'/* '%s'/.next . 2>/dev/null || true"):format(made, made), dir).code)
            end
            local c = shell(skeleton.make or 'true', dir)
            assert.equal(0, c.code, c.err)
            c = cli.run(nil, { 'init', dir }, { env = ENV })
            assert.equal(0, c.code, c.err)
            local path = dir .. '/master.lua'
            local file = io.open(path)
            local text = file:read '*a'
            file:close()
            assert.truthy(text:find('worker = ' .. skeleton.worker, 1, true), text)
            local port = http.free_port()
            text = text:gsub('127%.0%.0%.1:8000', '127.0.0.1:' .. port)
            file = io.open(path, 'w')
            file:write(text)
            file:close()
            c = cli.run(nil, { 'check', path }, { env = ENV })
            assert.equal(0, c.code, c.out .. c.err)
            local env = { PORT = tostring(port) }
            for name, value in pairs(ENV) do
                env[name] = value
            end
            local m = master.start { script_path = path, cwd = dir, env = env }
            m:await('Cluster ready', { timeout = 60000 })
            local status = http.get { port = port }
            assert.equal(200, status)
            assert.equal(0, cli.run(nil, { 'restart', '--wait', path }, { env = { DUTCH_MASTER_RUNTIME_DIR = m.dir .. '/run' } }).code)
            assert.equal(200, (http.get { port = port }))
            m:finish()
        end)
    end
end)
