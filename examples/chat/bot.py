"""A bot for the chat, that comes back when the connection is lost or the server restarts.

python bot.py ws://127.0.0.1:8000/rooms/lobby [--token TOKEN]
"""

import argparse
import random
import sys

import greenws


def answer(socket):
    """Answers what is asked in the room, until the connection ends."""
    for message in socket:
        name, _, text = message.partition(": ")
        if text == "!roll":
            socket.send(f"{name} rolls {random.randint(1, 6)}")
        elif text == "!help":
            socket.send("I know !roll and !help.")


def run(url, token):
    def tell(error, delay):
        print(f"{error}; next attempt in {delay:.1f} s", file=sys.stderr)

    headers = {"Authorization": f"Bearer {token}"}
    for socket in greenws.reconnect(url, headers=headers, on_error=tell):
        with socket:
            answer(socket)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--token", default="change me too")
    options = parser.parse_args()
    run(options.url, options.token)
