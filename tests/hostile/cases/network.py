"""Whom tasks may talk to."""

from __future__ import annotations

from hostile.case import Case, NotRun, one_of, succeeded, value
from hostile.tasks import network

# How each mechanism says no: the filter, Landlock, an empty network, a root without the path.
_NO = ("EPERM", "EACCES", "ENETUNREACH", "EAFNOSUPPORT", "ENOSYS", "EADDRNOTAVAIL",
       "EPROTONOSUPPORT", "ESOCKTNOSUPPORT")  # fmt: skip
_NO_PATH = (*_NO, "ENOENT", "ECONNREFUSED")
_no = one_of(*_NO)
_FREE = NotRun("a trusted job may use the network of its host")
# The filter alone denies sockets; Landlock alone knows TCP; an empty network knows nobody.
_UNCONFINED = {"untrusted:landlock+namespaces+seccomp": _FREE}
_KINDS = ("tcp", "tcp6", "udp", "icmp", "raw", "packet", "netlink", "vsock", "alg", "can", "mptcp")

CASES = [
    Case(id="tcp", call=lambda o: network.connect.call("tcp", o.tcp), trusted=value("done"),
         untrusted=_no, without=_UNCONFINED),
    Case(id="udp", call=lambda o: network.send_datagram.call(o.tcp), trusted=value("done"),
         untrusted=_no, without={"untrusted:seccomp+namespaces": _FREE}),
    Case(id="metadata", call=network.connect.call("tcp", ["169.254.169.254", 80]), trusted=_FREE,
         untrusted=_no, without=_UNCONFINED),
    Case(id="dns", call=network.resolve.call(), trusted=_FREE,
         untrusted=one_of("-2", "-3", "-5", "-8", "-10", "-11", *_NO)),
    *(Case(id=f"socket-{kind}", call=network.make_socket.call(kind), trusted=_FREE, untrusted=_no,
           without={"untrusted:seccomp": succeeded()})
      for kind in _KINDS),
    Case(id="socket-unix", call=network.make_socket.call("unix"), trusted=value("done")),
    Case(id="vsock", call=network.ask_vsock.call(), trusted=_FREE,
         untrusted=one_of("ENODEV", "ECONNRESET", *_NO),
         without={"untrusted:seccomp": succeeded()}),
    Case(id="listen", call=network.listen.call("tcp"), trusted=value("done"), untrusted=_no,
         without=_UNCONFINED),
    Case(id="bind-udp", call=network.listen.call("udp"), trusted=value("done"), untrusted=_no,
         without={"untrusted:seccomp": succeeded()}),
    Case(id="autobind", call=network.listen_without_bind.call(), trusted=value("done"),
         untrusted=_no, without={"untrusted:seccomp": succeeded()}),

    Case(id="abstract", call=lambda o: network.abstract.call(o.abstract_name),
         # Landlock could deny it to trusted jobs as well, which are promised nothing of the kind.
         trusted=one_of("done", "EPERM", "EACCES", "ECONNREFUSED"), untrusted=one_of(*_NO_PATH),
         without={"untrusted:landlock+namespaces": NotRun("nothing is left that could deny it")}),
    Case(id="path", call=lambda o: network.by_path.call(o.unix_path), trusted=value("done"),
         untrusted=one_of(*_NO_PATH),
         # Landlock up to ABI 8 does not look at the path of a socket.
         without={"untrusted:namespaces": one_of("done", *_NO_PATH)}),
    Case(id="notify", call=lambda o: network.datagram_by_path.call(o.datagram_path),
         trusted=value("done"), untrusted=one_of(*_NO_PATH),
         without={"untrusted:namespaces": one_of("done", *_NO_PATH)}),
    *(Case(id=f"service{path.replace('/', '-')}", call=network.by_path.call(path), trusted=_FREE,
           untrusted=one_of(*_NO_PATH))
      for path in ("/var/run/docker.sock", "/run/systemd/private", "/run/dbus/system_bus_socket")),

    Case(id="pair", call=network.pair_works.call(), trusted=value("x")),
    Case(id="asyncio", call=network.asyncio_works.call(), trusted=value("works")),
]  # fmt: skip
