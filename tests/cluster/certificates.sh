#!/usr/bin/env bash
# Makes the cluster's keys, certificates and users, each cluster its own.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
mkdir -p "$state/pki"
chmod 700 "$state"
cd "$state/pki"

key() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" "${@:2}" 2> /dev/null; }

# NAME: one that signs.
authority() { key "$1" -x509 -days 365 -subj "/CN=$1" -out "$1.crt"; }

# NAME AUTHORITY SUBJECT [ALTERNATIVE NAMES]
certificate() {
  key "$1" -subj "$3" -out "$1.csr"
  openssl x509 -req -days 365 -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -out "$1.crt" \
    ${4:+-extfile <(echo "subjectAltName=$4")} 2> /dev/null
}

# FILE USER [GROUP]: a user with a token, and a kubeconfig.
user() {
  local token
  token=$(openssl rand -hex 24)
  echo "$token,$2,$2${3:+,$3}" >> tokens.csv
  cat > "$state/$1.kubeconfig" << END
apiVersion: v1
kind: Config
clusters: [{name: $name, cluster: {server: "https://127.0.0.1:$port", certificate-authority: $state/pki/authority.crt}}]
users: [{name: $1, user: {token: $token}}]
contexts: [{name: $name, context: {cluster: $name, user: $1}}]
current-context: $name
END
}

authority authority
# Requests to aggregated APIs are told apart from those of clients by who signed their sender's certificate.
authority aggregators
certificate aggregator aggregators /CN=aggregator
certificate to-kubelet authority /O=system:masters/CN=kube-apiserver
certificate server authority /CN=kube-apiserver \
  "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:10.88.0.1,IP:10.96.0.1"
openssl ecparam -genkey -name prime256v1 -noout -out accounts.key
openssl ec -in accounts.key -pubout -out accounts.pub 2> /dev/null

: > tokens.csv
user admin admin system:masters
user controllers system:kube-controller-manager
user scheduler system:kube-scheduler
user proxy system:kube-proxy
user node "system:node:$name" system:nodes
