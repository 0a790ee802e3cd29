"""The race of pynetdicom's background loop: an answer that it takes is given back to the sender."""

from __future__ import annotations

import queue
from types import SimpleNamespace

from pynetdicom.dimse_primitives import C_ECHO

from stream_processors.pacs.association import return_taken_answers


def test_an_answer_taken_by_the_loop_goes_back_and_a_request_is_served() -> None:
    """A response lands in the message queue again; a request reaches the service."""
    served = []
    opened = SimpleNamespace(
        dimse=SimpleNamespace(msg_queue=queue.Queue()),
        _serve_request=lambda message, context: served.append((message, context)),
    )
    return_taken_answers(opened)
    answer, request = C_ECHO(), C_ECHO()
    answer.MessageIDBeingRespondedTo, answer.Status = 1, 0
    request.MessageID, request.AffectedSOPClassUID = 1, "1.2.840.10008.1.1"
    opened._serve_request(answer, 3)
    opened._serve_request(request, 5)
    assert opened.dimse.msg_queue.get_nowait() == (3, answer)
    assert served == [(request, 5)]
