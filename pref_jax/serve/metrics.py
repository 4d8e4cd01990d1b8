"""Figures of a service for Prometheus; no user, key or text is in them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The figures of one service.

    Attributes:
      requests: by method, route and status.
      seconds: from a request's first byte to its answer, by route.
      texts: those that were asked for, by whether they were read or kept from before.
      read_seconds: of the transformer, for each batch.
      waiting: texts that wait to be read.
      kept_bytes: of texts that were read.
      votes: that were stored, by choice.
      unknown_users: texts that were scored for nobody in particular as the user was not known.
      refreshed: users whose state was computed from their votes.
      unread_votes: stored votes that this model cannot read.
    """

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("pref_requests", "Requests.", ("method", "route", "status"), registry=own)
        self.seconds = Histogram("pref_request_seconds", "Seconds.", ("route",), buckets=SECONDS, registry=own)
        self.texts = Counter("pref_texts", "Texts asked for.", ("how",), registry=own)
        self.read_seconds = Histogram("pref_read_seconds", "Seconds of a batch.", buckets=SECONDS, registry=own)
        self.waiting = Gauge("pref_texts_waiting", "Texts that wait to be read.", registry=own)
        self.kept_bytes = Gauge("pref_texts_kept_bytes", "Bytes of texts read.", registry=own)
        self.votes = Counter("pref_votes", "Votes stored.", ("choice",), registry=own)
        self.unknown_users = Counter("pref_unknown_users", "Texts scored for unknown users.", registry=own)
        self.refreshed = Counter("pref_users_refreshed", "Users computed from votes.", registry=own)
        self.unread_votes = Counter("pref_votes_unread", "Votes that this model cannot read.", registry=own)

    def text(self) -> bytes:
        """As Prometheus reads them."""
        return generate_latest(self.registry)
