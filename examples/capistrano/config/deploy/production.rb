server 'app1.example.com', user: 'my-app', roles: %w[app]
server 'app2.example.com', user: 'my-app', roles: %w[app]
