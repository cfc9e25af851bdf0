#!/bin/sh
# Installs a built agent as a systemd service, with the CNI plugin beside it, or takes both away again.
#
#   cargo build --release -p shunt -p shunt-cni && sudo scripts/install.sh [--prefix DIR]
#   sudo scripts/install.sh --remove [--prefix DIR]
#
# DIR (default /) is put before every path: for packagers. Only without it is the service started or stopped.
# A configuration that exists is left as it is, also by --remove.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
built=$here/../target/release
prefix=
remove=no
while [ $# -gt 0 ]; do
    case $1 in
        --prefix) [ $# -ge 2 ] || { echo "install.sh: --prefix wants a directory" >&2; exit 64; }; prefix=${2%/}; shift ;;
        --remove) remove=yes ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "install.sh: no option $1; see --help" >&2; exit 64 ;;
    esac
    shift
done

systemd() { if [ -z "$prefix" ] && [ -d /run/systemd/system ]; then systemctl "$@"; fi; }

if [ $remove = yes ]; then
    systemd disable --now shunt.service || true
    if [ -z "$prefix" ] && [ -x /usr/local/bin/shunt ]; then /usr/local/bin/shunt cleanup; fi
    rm -f "$prefix/usr/local/bin/shunt" "$prefix/usr/local/bin/shunt-cni" "$prefix/etc/systemd/system/shunt.service"
    systemd daemon-reload
    exit 0
fi

# `shunt cni install` looks for the plugin beside itself.
for program in shunt shunt-cni; do
    [ -x "$built/$program" ] || {
        echo "install.sh: $built/$program is not there: cargo build --release -p shunt -p shunt-cni first" >&2
        exit 1
    }
done
for program in shunt shunt-cni; do
    install -D -m 0755 "$built/$program" "$prefix/usr/local/bin/$program"
done
install -D -m 0644 "$here/shunt.service" "$prefix/etc/systemd/system/shunt.service"
if [ ! -e "$prefix/etc/shunt/shunt.yaml" ]; then
    install -D -m 0644 "$here/shunt.yaml" "$prefix/etc/shunt/shunt.yaml"
fi
systemd daemon-reload
systemd enable shunt.service
systemd restart shunt.service
