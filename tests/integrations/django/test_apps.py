"""The entry for INSTALLED_APPS."""

from __future__ import annotations


def test_it_is_an_application_with_the_label_greenws(project):
    from django.apps import apps

    config = apps.get_app_config("greenws")
    assert config.name == "greenws.integrations.django"
    assert list(config.get_models()) == []
