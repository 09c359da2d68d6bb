lock '~> 3.17'

set :application, 'my-app'
set :repo_url, 'git@example.com:my-app.git'
# Where the unit dutch-master@my-app (examples/systemd) looks for current/master.lua.
set :deploy_to, '/srv/my-app'
set :keep_releases, 5

# What lib/capistrano/tasks/dutch_master.rake uses; these are its defaults.
# set :dutch_master, 'dutch-master'                                # the program
# set :dutch_master_script, -> { current_path.join('master.lua') } # the script of the running master
# set :dutch_master_timeout, 120                                   # seconds, of one server
# set :dutch_master_roles, :app
# set :dutch_master_user, nil    # the unit's user, where it is not the one that deploys: verbs are run by `sudo -u`
# set :dutch_master_start, nil   # a command, for the first deploy:
set :dutch_master_start, 'sudo systemctl start dutch-master@my-app'

# The simplest is one user, my-app, that deploys and that the unit runs as. /etc/sudoers.d/my-app on each server:
#     my-app ALL=(root) NOPASSWD: /usr/bin/systemctl start dutch-master@my-app
#
# With two, say deploy and my-app, the releases belong to deploy, and my-app reads them:
#     set :dutch_master_user, 'my-app'
#     deploy ALL=(root) NOPASSWD: /usr/bin/systemctl start dutch-master@my-app
#     deploy ALL=(my-app) NOPASSWD: /usr/local/bin/dutch-master
