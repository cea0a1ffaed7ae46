#!/bin/sh
# Make what compose.yaml mounts: certificates, one folder a service, and passwords. The CA's key stays in ./ca, which no
# service sees. Run it once, with `secure-dagu` installed on this machine (or SECURE_DAGU=/path/to/it).
set -eu
cd "$(dirname "$0")"
program=${SECURE_DAGU:-secure-dagu}
umask 077
[ ! -e pki ] || { echo "./pki is there already; nothing was changed" >&2; exit 1; }
mkdir -p ca pki/control-plane secrets
"$program" --dagu-home "$PWD/ca" pki init --advertise control-plane --advertise localhost
"$program" --dagu-home "$PWD/ca" pki issue worker worker-1 --out pki/worker-1
"$program" --dagu-home "$PWD/ca" pki issue metrics prometheus --out pki/metrics
cp ca/pki/coordinator.crt ca/pki/coordinator.key ca/pki/ca.crt pki/control-plane/
for name in admin grafana; do openssl rand -hex 16 > "secrets/${name}_password"; done
# Containers run as 1000, Prometheus as 65534, Grafana as 472: as root, give each its own; else yours must be 1000.
if [ "$(id -u)" = 0 ]; then
    chown -R 1000:1000 pki/control-plane pki/worker-1 secrets/admin_password
    chown -R 65534:65534 pki/metrics
    chown 472:472 secrets/grafana_password
fi
echo "ready: docker compose up --build, then https://localhost:8080 as admin with the password in secrets/admin_password"
