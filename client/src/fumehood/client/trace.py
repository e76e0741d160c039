"""The trace context of whoever enqueues, as message headers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType

_NOTHING: Mapping[str, str] = MappingProxyType({})
_HEADERS = ("traceparent", "tracestate")


def current_trace() -> Mapping[str, str]:
    """``traceparent`` and ``tracestate`` of the current span; empty without one.

    OpenTelemetry is never imported for this: where nobody has imported it, no span can be current.
    """
    current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current_span is None or not current_span().get_span_context().is_valid:
        return _NOTHING
    from opentelemetry.propagate import inject

    carrier: dict[str, str] = {}
    inject(carrier)
    # Other propagators may add more, such as baggage: that is not for a broker to keep.
    return {name: carrier[name] for name in _HEADERS if name in carrier}
