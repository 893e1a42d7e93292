"""The base class of observers that handle some events only."""

from tl_research.training.events import Event


class EventHandler:
    """Calls the method `_on_<class of the event>`, if there is one."""

    def __call__(self, event: Event) -> None:
        if handle := getattr(self, f"_on_{type(event).__name__}", None):
            handle(event)
