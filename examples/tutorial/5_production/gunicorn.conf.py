bind = "127.0.0.1:8000"
worker_class = "greenws.gunicorn.Worker"
workers = 4
graceful_timeout = 30
accesslog = "-"
forwarded_allow_ips = "127.0.0.1"  # nginx
