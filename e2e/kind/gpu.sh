#!/usr/bin/env bash
# One story on a real GPU node with the real vLLM: doctor, install, one model, answers, a second replica, away again.
#
#   e2e/kind/gpu.sh [--dry-run] IMAGE
#
# IMAGE is gpupack's own, where the cluster's nodes find it. $KUBECONFIG leads to a cluster for tests with a DRA driver or a
# device plugin, which `gpupack doctor` tells apart. MODEL (default qwen2.5-0.5b) must be one that needs no token.
set -euo pipefail
cd "$(dirname "$0")/../.."

dry=''
if [ "${1:-}" = --dry-run ]; then
    dry=yes
    shift
fi
image=${1:?give the image, for instance registry.example.com/gpupack:0.1.0}
model=${MODEL:-qwen2.5-0.5b}
namespace=gpupack-e2e

run() {
    printf '+ %s\n' "$*"
    [ -n "$dry" ] || "$@"
}

serving() {
    cat << YAML
apiVersion: gpupack.dev/v1alpha1
kind: ModelServing
metadata: {name: chat, namespace: $namespace}
spec:
  model: {name: $model}
  workload:
    inputTokens: {mean: 256}
    outputTokens: {mean: 128}
  scaling: {mode: Manual}
  replicas: $1
YAML
}

apply() {
    printf '+ kubectl apply -f - # %s replicas\n' "$1"
    [ -n "$dry" ] || serving "$1" | kubectl apply -f -
}

ask() {
    printf '+ ask the model %s times\n' "$1"
    [ -z "$dry" ] || return 0
    kubectl -n "$namespace" port-forward service/chat 8000:8000 > /dev/null &
    local forward=$! try
    # shellcheck disable=SC2064
    trap "kill $forward 2> /dev/null || true" RETURN
    curl --silent --fail --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:8000/v1/models > /dev/null
    for ((try = 0; try < $1; try++)); do
        curl --silent --fail http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \
            -d '{"prompt": "A GPU is", "max_tokens": 64, "model": "'"$(served)"'"}' > /dev/null
    done
}

served() {
    curl --silent --fail http://127.0.0.1:8000/v1/models | sed 's/.*"id":"\([^"]*\)".*/\1/'
}

take_away() {
    run kubectl delete namespace "$namespace" --ignore-not-found --timeout=5m
    run helm uninstall gpupack -n gpupack-system --ignore-not-found
}

run .venv/bin/gpupack doctor
trap take_away EXIT
run helm upgrade --install gpupack charts/gpupack -n gpupack-system --create-namespace --wait \
    --set image.repository="${image%:*}" --set image.tag="${image##*:}"
run kubectl create namespace "$namespace"
apply 1
run kubectl -n "$namespace" wait --for=condition=Ready msv/chat --timeout=30m
ask 20
apply 2
run kubectl -n "$namespace" wait --for=jsonpath='{.status.readyReplicas}'=2 msv/chat --timeout=15m
ask 20
run .venv/bin/gpupack explain msv/chat -n "$namespace"
run kubectl -n "$namespace" get pods -o wide
