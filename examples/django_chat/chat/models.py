from django.conf import settings
from django.db import models


class Message(models.Model):
    room = models.SlugField()
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    text = models.CharField(max_length=500)
    sent = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["room", "id"], name="chat_message_room")]

    def as_json(self):
        return {"id": self.id, "author": self.author.username, "text": self.text}
