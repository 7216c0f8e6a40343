# For "gunicorn chat.wsgi". With several workers, set REDIS_URL, so that they share the rooms.
worker_class = "greenws.gunicorn.Worker"
