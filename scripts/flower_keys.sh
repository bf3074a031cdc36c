#!/usr/bin/env bash
# Makes what a SuperLink with TLS and its SuperNodes need: a certificate authority, the server's
# certificate, and a key pair for every site.
# usage: bash scripts/flower_keys.sh FOLDER SERVER_NAME_OR_ADDRESS SITE...
# FOLDER gets ca.crt for everybody, server.crt and server.key for the server, SITE.key for that site
# alone, SITE.key.pub for whoever registers it. ca.key signs further servers: keep it offline.
# A site may make its own pair: ssh-keygen -t ecdsa -b 384 -N '' -C SITE -f SITE.key
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: bash scripts/flower_keys.sh FOLDER SERVER_NAME_OR_ADDRESS SITE..." >&2
  exit 2
fi
folder="$1" server="$2"
shift 2
if [ -e "$folder/ca.key" ]; then
  echo "error: $folder/ca.key: keys are there already; name another folder" >&2
  exit 2
fi
umask 077
mkdir -p "$folder"
case "$server" in
  *[!0-9.]*) alternative="DNS:$server" ;;
  *) alternative="IP:$server" ;;
esac
# Flower's server talks to itself on loopback.
alternative="$alternative,DNS:localhost,IP:127.0.0.1"
quiet() { openssl "$@" 2> "$folder/openssl.log" || { cat "$folder/openssl.log" >&2; exit 1; }; }
quiet req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days 730 \
  -subj "/CN=fedmedjax study" -addext "keyUsage=critical,keyCertSign,cRLSign" \
  -keyout "$folder/ca.key" -out "$folder/ca.crt"
quiet req -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -subj "/CN=$server" \
  -keyout "$folder/server.key" -out "$folder/server.csr"
quiet x509 -req -in "$folder/server.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial \
  -days 365 -extfile <(printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\n' "$alternative") \
  -out "$folder/server.crt"
for site in "$@"; do
  ssh-keygen -q -t ecdsa -b 384 -N '' -C "$site" -f "$folder/$site.key"
done
rm -f "$folder/server.csr" "$folder/openssl.log"
ls "$folder"
