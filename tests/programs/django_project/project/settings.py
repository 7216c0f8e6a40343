"""Works as ``project.settings`` in a process of its own, and inside that of the tests."""

import json
import os

_database = json.loads(os.environ.get("GREENWS_TEST_DATABASE", "{}"))
if _database.get("ENGINE") == "django.db.backends.mysql":
    import pymysql

    pymysql.version_info = (2, 2, 1, "final", 0)  # Django asks for that of mysqlclient
    pymysql.install_as_MySQLdb()

SECRET_KEY = "only for tests"
DEBUG = os.environ.get("GREENWS_TEST_DEBUG") == "1"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = f"{__package__}.urls"
WSGI_APPLICATION = f"{__package__}.wsgi.application"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "greenws.integrations.django",
    f"{__package__}",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    f"{__package__}.views.count_requests",
]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", **_database},
}
CSRF_TRUSTED_ORIGINS = ["https://trusted.example"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
LOGIN_URL = "/login/"
USE_TZ = True
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if __package__ != "project":
    LOGGING_CONFIG = None  # the tests watch the loggers
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {
        "django": {"handlers": ["console"], "level": "INFO"},
        "greenws": {"handlers": ["console"], "level": "INFO"},
    },
}
