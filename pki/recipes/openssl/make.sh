#!/bin/sh
# Make a CA, a coordinator's certificate and a worker's with nothing but openssl, in the directory given.
#   sh make.sh DIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && chmod 700 "$1" && cd "$1"
umask 077

export TRUST_DOMAIN=secure-dagu PERMIT=example.com
export SAN="DNS:ci.example.com, DNS:localhost, IP:127.0.0.1, IP:::1"
LABELS="gpu=true
zone=eu"
export LABELS

key() { # FILE: P-256 in PKCS#8
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}
serial() {
    printf '0x0%s' "$(openssl rand -hex 16)"
}
issue() { # ROLE NAME: the request carries the key only; the CA writes everything else from the section ROLE
    export NAME="$2"
    key "$2.key"
    openssl req -new -config "$here/openssl.cnf" -key "$2.key" -out "$2.csr"
    openssl x509 -req -in "$2.csr" -CA ca.crt -CAkey ca.key -set_serial "$(serial)" -days 30 -sha256 \
        -extfile "$here/openssl.cnf" -extensions "$1" -out "$2.crt"
    rm "$2.csr"
}

export NAME="CA of $TRUST_DOMAIN"
key ca.key
openssl req -new -x509 -config "$here/openssl.cnf" -extensions ca -key ca.key -set_serial "$(serial)" -days 3650 \
    -sha256 -out ca.crt
issue coordinator coordinator
issue worker gpu-1
