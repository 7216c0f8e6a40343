"""Answers each message with three, 2 ms apart."""

import time

import flask

from greenws import WebSocketHandler, WebSocketSessionHandler


class Conversation(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        for message in socket:
            for _ in range(3):
                socket.send(message)
                self.pause()

    def pause(self):
        time.sleep(0.002)


app = WebSocketHandler(lambda request, protocols: Conversation())

flask_app = flask.Flask(__name__)
flask_app.add_url_rule("/", view_func=lambda: app, endpoint="conversation")
