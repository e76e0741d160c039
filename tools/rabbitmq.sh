#!/usr/bin/env bash
# Makes sure that RabbitMQ's files are on this machine. The tests start brokers of their own from them, each with its own
# ports and data, so the service that the package would start is held back.
set -euo pipefail

installed() { compgen -G '/usr/lib/rabbitmq/lib/rabbitmq_server-*' >/dev/null; }

fail() {
    echo "The tests need RabbitMQ, and $1." >&2
    echo "Please install it yourself: apt-get install rabbitmq-server" >&2
    echo "Then stop its service, if it started one: systemctl disable --now rabbitmq-server" >&2
    exit 1
}

installed && exit 0
command -v apt-get >/dev/null || fail "this machine has no apt-get"

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "installing it takes root or sudo"
    as_root=(sudo)
fi

# Debian's packages ask policy-rc.d before they start anything; 101 means "not allowed". A policy that stands already is
# the machine's own and stays; what starts in spite of it is stopped below.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi

install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends rabbitmq-server)
"${install[@]}" || { "${as_root[@]}" apt-get update && "${install[@]}"; } || fail "apt-get could not install it"
installed || fail "the package brought no /usr/lib/rabbitmq/lib/rabbitmq_server-*"

if [ -d /run/systemd/system ]; then
    "${as_root[@]}" systemctl disable --now rabbitmq-server || echo "rabbitmq-server may still run as a service" >&2
elif command -v service >/dev/null && service rabbitmq-server status >/dev/null 2>&1; then
    "${as_root[@]}" service rabbitmq-server stop || echo "rabbitmq-server may still run as a service" >&2
fi
