"""The admin, the files of its pages, and a stream that never ends."""

import time
from pathlib import Path

from django.contrib import admin
from django.http import StreamingHttpResponse
from django.urls import path, re_path
from django.views.static import serve


def ticks(_request):
    """Server-sent events, ten a second."""

    def events():
        number = 0
        while True:
            number += 1
            yield f"data: {number}\n\n"
            time.sleep(0.1)

    return StreamingHttpResponse(events(), content_type="text/event-stream")


urlpatterns = [
    path("admin/", admin.site.urls),
    path("ticks/", ticks),
    re_path(r"^static/(?P<path>.*)$", serve, {"document_root": Path(admin.__file__).parent / "static"}),
]
