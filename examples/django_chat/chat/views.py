"""The pages, and the WebSocket of a room."""

import json

from django.conf import settings
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import UserCreationForm
from django.shortcuts import redirect, render

from greenws import Rooms
from greenws.integrations.django import websocket

from .models import Message

rooms = Rooms(settings.REDIS_URL)  # without one, the rooms of this process


def sign_up(request):
    form = UserCreationForm(request.POST or None)
    if form.is_valid():
        login(request, form.save())
        return redirect("/")
    return render(request, "chat/form.html", {"form": form, "title": "Sign up"})


def lobby(request):
    return redirect("room", room="lobby")


def messages(room):
    return Message.objects.filter(room=room).select_related("author").order_by("id")


@login_required
def room_page(request, room):
    history = [message.as_json() for message in messages(room).reverse()[:50]][::-1]
    return render(request, "chat/room.html", {"room": room, "history": history})


@login_required
@websocket(max_message_size=4096)
def room_socket(request, socket, room):
    with rooms[room].join(socket, name=request.user.username):
        # What was said since the page was made, or since the connection was lost.
        for message in messages(room).filter(id__gt=request.GET.get("after", 0)):
            socket.send(json.dumps(message.as_json()))
        for text in socket:
            if isinstance(text, str) and text.strip():
                message = Message.objects.create(room=room, author=request.user, text=text[:500])
                rooms[room].send(json.dumps(message.as_json()))
