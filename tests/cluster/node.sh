#!/usr/bin/env bash
# node.sh PROGRAMS FD: process 1 of the node's namespaces. Starts a whole one-node cluster, and starts again what ends. FD is the
# network outside, where one port of the loopback leads to the API server.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
PATH=$1:$PATH
outside=$2
address=10.88.0.1
services=10.96.0.0/16
pods=10.244.0.0/24

network() {
  hostname $name
  ip link set lo up
  # The node's address is on a cable to nowhere: nothing gets out.
  ip link add node type veth peer name nowhere
  ip address add $address/24 dev node
  ip link set node up
  ip link set nowhere up
  ip route add default dev node
  echo 1 > /proc/sys/net/ipv4/ip_forward
}

# Folders that programs do not let be moved: what is written there goes with the rest of the cluster.
own_folders() {
  local folder
  for folder in /var/lib/cni /var/log/containers /run/containerd; do
    mkdir -p "$folder" "$state/own$folder"
    mount --bind "$state/own$folder" "$folder"
  done
}

# Pods have their own place among the control groups, whichever version the machine has.
control_groups() {
  local group
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    for controller in cpu cpuset io memory pids; do echo +$controller > /sys/fs/cgroup/cgroup.subtree_control || true; done 2> /dev/null
    mkdir -p /sys/fs/cgroup/$name
    return
  fi
  for group in /sys/fs/cgroup/*/; do
    [ -f "$group/cgroup.procs" ] && mkdir -p "$group/$name" 2> /dev/null || continue
    if [ -f "$group/$name/cpuset.cpus" ]; then
      cat "$group/cpuset.cpus" > "$group/$name/cpuset.cpus"
      cat "$group/cpuset.mems" > "$group/$name/cpuset.mems"
    fi
  done
}

write_settings() {
  mkdir -p "$state/cni"
  # A cable for each pod and no bridge: what a Service translates comes back the way it went, without the kernel's bridge filter.
  cat > "$state/cni/10-pods.conflist" << END
{"cniVersion": "1.0.0", "name": "$name", "plugins": [{"type": "ptp", "ipMasq": false,
 "ipam": {"type": "host-local", "dataDir": "$state/cni/addresses", "ranges": [[{"subnet": "$pods"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
END
  cat > "$state/containerd.toml" << END
version = 2
root = "$state/containerd"
state = "$state/containerd-run"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "$state/containerd.sock"
[ttrpc]
  address = "$state/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "chatgateway-tests/pause:1"
  # Root may lack the right to make processes safer from the kernel's out-of-memory killer than they are.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$state/cni"
END
  cat > "$state/kubelet.yaml" << END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $state/pki/authority.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$name
failCgroupV1: false
failSwapOn: false
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$state/containerd.sock
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
podLogsDir: $state/log/pods
resolvConf: ""
volumePluginDir: $state/kubelet-plugins
END
  cat > "$state/proxy.yaml" << END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $state/proxy.kubeconfig}
clusterCIDR: $pods
# The kernel's own bounds stay: they are the machine's.
conntrack: {maxPerCore: 0, min: 0}
hostnameOverride: $name
mode: nftables
END
}

# NAME COMMAND…: runs it for as long as the node is there.
keep() {
  local what=$1
  shift
  while true; do
    "$@" >> "$state/log/$what.log" 2>&1 < /dev/null || true
    echo "node: $what ended; it is started again"
    sleep 1
  done &
}

etcd_up() {
  keep etcd etcd --data-dir "$state/etcd" --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
}

api_server_up() {
  local pki=$state/pki
  keep kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address=$address --secure-port="$port" \
    --service-cluster-ip-range=$services --allow-privileged=true --cert-dir="$pki" \
    --tls-cert-file="$pki/server.crt" --tls-private-key-file="$pki/server.key" \
    --client-ca-file="$pki/authority.crt" --token-auth-file="$pki/tokens.csv" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$pki/accounts.pub" --service-account-signing-key-file="$pki/accounts.key" \
    --kubelet-client-certificate="$pki/to-kubelet.crt" --kubelet-client-key="$pki/to-kubelet.key" \
    --kubelet-preferred-address-types=InternalIP \
    --enable-aggregator-routing=true --proxy-client-cert-file="$pki/aggregator.crt" --proxy-client-key-file="$pki/aggregator.key" \
    --requestheader-client-ca-file="$pki/aggregators.crt" --requestheader-allowed-names=aggregator \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra-
}

controllers_up() {
  keep kube-controller-manager kube-controller-manager --kubeconfig="$state/controllers.kubeconfig" --leader-elect=false \
    --use-service-account-credentials=true --root-ca-file="$state/pki/authority.crt" \
    --service-account-private-key-file="$state/pki/accounts.key" --cert-dir="$state/pki" \
    --horizontal-pod-autoscaler-sync-period=5s --horizontal-pod-autoscaler-cpu-initialization-period=30s
  keep kube-scheduler kube-scheduler --kubeconfig="$state/scheduler.kubeconfig" --leader-elect=false
}

node_up() {
  keep kubelet kubelet --config="$state/kubelet.yaml" --kubeconfig="$state/node.kubeconfig" --hostname-override=$name \
    --node-ip=$address --root-dir="$state/kubelet" --cert-dir="$state/pki/kubelet"
  keep kube-proxy kube-proxy --config="$state/proxy.yaml"
}

network
own_folders
control_groups
write_settings
keep forward nsenter --net="/proc/self/fd/$outside" \
  socat "TCP-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork" "UNIX-CONNECT:$state/api.sock"
keep backward socat "UNIX-LISTEN:$state/api.sock,unlink-early,mode=600,fork" "TCP:127.0.0.1:$port"
etcd_up
keep containerd containerd --config "$state/containerd.toml"
api_server_up
# Whoever waits for this has a bound; the controllers need rights that the API server makes first.
until kubectl --kubeconfig "$kubeconfig" get --raw /readyz > /dev/null 2>&1; do sleep 0.5; done
controllers_up
until ctr -a "$state/containerd.sock" version > /dev/null 2>&1; do sleep 0.1; done
ctr -a "$state/containerd.sock" -n k8s.io images import "$images/pause-1.tar"
node_up
echo "node: all is started"
wait
