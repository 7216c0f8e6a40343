from django.contrib.auth import get_user_model, login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.mixins import LoginRequiredMixin
from django.core.exceptions import PermissionDenied
from django.core.signals import request_finished
from django.db import connection
from django.dispatch import receiver
from django.http import Http404, HttpResponse, HttpResponseForbidden
from django.utils.decorators import method_decorator
from django.views import View
from werkzeug.exceptions import abort

from greenws import WebSocketSessionHandler
from greenws.integrations.django import websocket

from .models import Note

requests = {"begun": 0, "ended": 0, "finished": 0}


def count_requests(get_response):
    def middleware(request):
        if "forbidden" in request.GET:
            return HttpResponseForbidden("a middleware says no")
        requests["begun"] += 1
        try:
            return get_response(request)
        finally:
            requests["ended"] += 1

    return middleware


@receiver(request_finished)
def on_finished(sender, **options):
    requests["finished"] += 1


def log_in(request):
    user, _ = get_user_model().objects.get_or_create(username="ada")
    login(request, user)
    return HttpResponse("welcome")


def page(request):
    return HttpResponse(f"{Note.objects.count()} notes")


def finished(request):
    return HttpResponse(f"{requests['begun'] - requests['ended']} {requests['finished']}")


@websocket
def notes(request, socket):
    """Each message is a command; the answer is the number of notes."""
    for message in socket:
        verb, _, rest = message.partition(" ")
        if verb == "add":
            Note.objects.create(text=rest)
        elif verb == "set":
            with connection.cursor() as cursor:
                cursor.execute("SET statement_timeout = 5000")
        elif verb == "run":
            with connection.cursor() as cursor:
                cursor.execute(rest)
                cursor.fetchall()
        socket.send(str(Note.objects.count()))


@websocket
def echo(request, socket):
    for message in socket:
        socket.send(message)


@websocket
def variables(request, socket, room, number):
    socket.send(f"{room!r} {number!r} {type(request).__name__} {request.user}")


@websocket
def unnamed(request, socket, name):
    socket.send(name)


@login_required
@websocket
def private(request, socket):
    socket.send(f"hello, {request.user.username}")
    for message in socket:
        socket.send(f"{request.user.username}: {message}")


@websocket
@login_required
def wrong(request, socket):
    pass


class Chat(LoginRequiredMixin, View):
    @websocket
    def get(self, request, socket, room):
        socket.send(f"{request.user.username} in {room} of {type(self).__name__}")

    def post(self, request, room):
        return HttpResponse(f"posted to {room}")


class Decorated(View):
    @method_decorator(login_required)
    @method_decorator(websocket(protocols=["chat"]))
    def get(self, request, socket, room):
        socket.send(f"{room} by {socket.subprotocol}")


class Handler(WebSocketSessionHandler):
    response_headers = [("X-Handler", "yes")]

    def __init__(self, text):
        self.text = text

    def handle_session(self, request, socket):
        socket.send(f"{self.text} {request.user}")


@websocket
def producer(request, protocols, verdict):
    if verdict == "denied":
        raise PermissionDenied
    if verdict == "absent":
        raise Http404
    if verdict == "teapot":
        abort(418)
    if verdict == "broken":
        raise ValueError("on purpose")
    if verdict == "cookie":
        request.session["visits"] = request.session.get("visits", 0) + 1
    if verdict == "class":
        return Handler
    if verdict == "function":
        return log_in
    return None if verdict == "none" else Handler(verdict)


@websocket
def session(request, socket):
    """``name=value`` writes, ``name`` reads, ``flush`` logs out."""
    for message in socket:
        name, is_write, value = message.partition("=")
        if name == "flush":
            request.session.flush()
        elif is_write:
            request.session[name] = value
        socket.send(str(request.session.get(name)))


@websocket
def fail(request, socket):
    for message in socket:
        Note.objects.create(text=message)
        socket.send(str(Note.objects.count()))
        if message == "fail":
            raise RuntimeError("on purpose")


@websocket
def late(request, socket):
    for name in socket:
        raise {"Http404": Http404, "PermissionDenied": PermissionDenied}[name]


@websocket(protocols=["chat", "echo"])
def protocols(request, socket):
    socket.send(socket.subprotocol)
