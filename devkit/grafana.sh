#!/usr/bin/env bash
# Opens the boards in a real Grafana, with a simulated fleet: devkit/grafana.sh (needs Docker with compose).
#
# It starts docker-compose.yml's profile `simulate`, waits until Grafana has all boards of dashboards/boards and its
# data source answers, and prints their addresses. It runs until Ctrl-C. Volumes stay; `docker compose down -v` removes
# them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

docker compose version >/dev/null || { echo "grafana.sh: Docker with its compose plugin is missing" >&2; exit 1; }
export MOESCOPE_TOKEN=${MOESCOPE_TOKEN:-$(openssl rand -hex 16)} GRAFANA_PASSWORD=${GRAFANA_PASSWORD:-$(openssl rand -hex 16)}
trap 'docker compose --profile simulate down' EXIT
docker compose --profile simulate up --build --detach --wait

grafana=http://127.0.0.1:3000
ask() { curl --fail --silent --show-error --user "admin:$GRAFANA_PASSWORD" "$grafana$1"; }
for board in dashboards/boards/*.json; do
    uid=$(basename "$board" .json)
    ask "/api/dashboards/uid/$uid" >/dev/null || { echo "grafana.sh: Grafana does not have the board $uid" >&2; exit 1; }
    echo "$grafana/d/$uid"
done
source=$(ask /api/datasources | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["uid"])')
ask "/api/datasources/uid/$source/health" >/dev/null || { echo "grafana.sh: Grafana can't reach Prometheus" >&2; exit 1; }
echo "user admin, password $GRAFANA_PASSWORD; Ctrl-C ends"
sleep infinity
