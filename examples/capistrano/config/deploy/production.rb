server 'app1.example.com', user: 'deploy', roles: %w[app]
server 'app2.example.com', user: 'deploy', roles: %w[app]
