from django.contrib.auth.views import LoginView, LogoutView
from django.contrib.staticfiles.urls import staticfiles_urlpatterns
from django.urls import path

from . import views

log_in = LoginView.as_view(template_name="chat/form.html", extra_context={"title": "Log in"})

urlpatterns = [
    path("", views.lobby),
    path("login/", log_in, name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("signup/", views.sign_up, name="signup"),
    path("rooms/<slug:room>/", views.room_page, name="room"),
    path("rooms/<slug:room>/socket/", views.room_socket, name="socket"),
]
urlpatterns += staticfiles_urlpatterns()  # while DEBUG is on, under any server
