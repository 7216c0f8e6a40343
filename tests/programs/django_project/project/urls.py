from django.urls import path, re_path

from . import views

urlpatterns = [
    path("login/", views.log_in),
    path("page/", views.page),
    path("notes/", views.notes),
    path("echo/", views.echo),
    path("rooms/<slug:room>/<int:number>/", views.variables),
    re_path(r"^old/(\w+)/$", views.unnamed),
    path("private/", views.private),
    path("class/<slug:room>/", views.Chat.as_view()),
    path("decorated/<slug:room>/", views.Decorated.as_view()),
    path("producer/<slug:verdict>/", views.producer),
    path("session/", views.session),
    path("wrong/", views.wrong),
    path("fail/", views.fail),
    path("protocols/", views.protocols),
    path("late/", views.late),
    path("finished/", views.finished),
]
