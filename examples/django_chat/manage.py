"""A chat in Django: accounts, rooms, and messages that the ORM keeps.

cd examples/django_chat
python manage.py migrate
python manage.py runserver

Then open http://127.0.0.1:8000/ in two browsers. As in production: gunicorn chat.wsgi
(with SECRET_KEY, DEBUG=0 and nginx for the static files).
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat.settings")
    execute_from_command_line(sys.argv)
