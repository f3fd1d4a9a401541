"""What child processes of the control tests run; in a module of its own, so that spawned interpreters can import it."""

from typing import Any

from ...client.control import Control


def ask_in_child(control: Control, answers: Any) -> None:
    """Fifty numbered questions; what came back goes to the queue."""
    answers.put([control.get("echo", n=n)["query"]["n"] for n in range(50)])
    control.close()
