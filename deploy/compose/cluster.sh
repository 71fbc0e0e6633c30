#!/usr/bin/env bash
# Builds the image without pulling anything, starts the compose cluster, waits until all is healthy, joins both agents,
# and moves a file from one container to the other through the central server. Then founds an office of the three peers,
# shares a folder of the first, fetches it to the second, cuts the first one off, and fetches it to the third.
# `cluster.sh down` removes it all.
set -euo pipefail
cd "$(dirname "$0")/../.."
compose() { docker-compose -p atrium -f deploy/compose/compose.yaml "$@"; }
pidfile=/run/atrium-dockerd.pid
export ATRIUM_SHARED=${ATRIUM_SHARED:-$PWD/${CARGO_TARGET_DIR:-target}/docker/shared}

need_engine() {
  if docker info >/dev/null 2>&1; then return; fi
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: no Docker engine answers" >&2
    echo "why:   the cluster runs in containers" >&2
    echo "fix:   start Docker, or run this as root on Debian, where it installs and starts one" >&2
    exit 1
  fi
  if ! command -v dockerd >/dev/null || ! command -v docker-compose >/dev/null; then
    echo "installing docker.io and docker-compose from Debian"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends docker.io docker-compose iptables >/dev/null
  fi
  if docker info >/dev/null 2>&1; then return; fi
  echo "starting a Docker engine (log: /tmp/atrium-dockerd.log)"
  nohup setsid dockerd --pidfile "$pidfile" >/tmp/atrium-dockerd.log 2>&1 </dev/null &
  for _ in $(seq 120); do
    if docker info >/dev/null 2>&1; then return; fi
    sleep 0.5
  done
  echo "error: the Docker engine did not start" >&2
  tail -n 20 /tmp/atrium-dockerd.log >&2
  exit 1
}

wait_healthy() {
  end=$((SECONDS + 90))
  while [ "$SECONDS" -lt "$end" ]; do
    states=$(for s in central agent-anna agent-bert peer-a peer-b peer-c; do
      docker inspect -f '{{.State.Health.Status}}' "$(compose ps -q "$s")" 2>/dev/null || echo missing
    done | sort -u | tr '\n' ' ')
    if [ "$states" = "healthy " ]; then return; fi
    sleep 0.5
  done
  echo "error: the cluster is not healthy: $states" >&2
  compose ps >&2
  compose logs --tail=30 >&2
  exit 1
}

run() { compose exec -T "$@"; }
admin() { run central /usr/bin/atrium --server unix:/var/lib/atrium/admin.sock "$@"; }

up() {
  need_engine
  deploy/docker/stage.sh >/dev/null
  make_shared
  DOCKER_BUILDKIT=0 docker build -q -t atrium:local "${CARGO_TARGET_DIR:-target}/docker" >/dev/null
  compose up -d --no-build
  wait_healthy
  echo "healthy: central server, two agents, three peers"
  for person in anna bert; do
    echo "correct horse $person" | admin admin users add "$person" --password-file -
    code=$(admin admin invite --json | sed -n 's/.*"code": *"\([^"]*\)".*/\1/p')
    echo "$code" | run "agent-$person" /usr/bin/atrium join central:7443 --code-file - --name "$person-pc"
    echo "correct horse $person" | run "agent-$person" /usr/bin/atrium login "$person" --password-file -
  done
  admin admin directories add public:plans
  admin share public:plans --with everyone --right write
  sum=$(head -c 8000000 /dev/urandom | tee "${CARGO_TARGET_DIR:-target}/docker/sample" | b3 )
  run agent-anna /usr/bin/atrium put - public:plans/sample.bin < "${CARGO_TARGET_DIR:-target}/docker/sample"
  got=$(run agent-bert /usr/bin/atrium cat public:plans/sample.bin | b3)
  if [ "$sum" != "$got" ]; then
    echo "error: the file that bert read is not the one that anna put" >&2
    exit 1
  fi
  echo "anna put 8 MB, bert read the same 8 MB from another container"
  peers
  echo "try:  docker-compose -p atrium exec agent-anna atrium ls public:plans"
  echo "stop: make cluster-down"
}
peer() { local name=$1; shift; run "$name" /usr/bin/atrium "$@"; }

# What the peers share: a few directories with files of all sizes, made anew for each run.
make_shared() {
  rm -rf "$ATRIUM_SHARED"
  mkdir -p "$ATRIUM_SHARED/drawings/old"
  head -c 20000000 /dev/urandom > "$ATRIUM_SHARED/drawings/hall.dwg"
  for n in $(seq 50); do head -c $((n * 37)) /dev/urandom > "$ATRIUM_SHARED/drawings/old/$n.txt"; done
  chmod -R a+rX "$ATRIUM_SHARED"
}

# The files of a container's directory, with their digests.
digests() { docker cp "$(compose ps -q "$1"):$2" - | tar -x --to-command='sha256sum | cut -d" " -f1' -f - | sort; }
shared_digests() { tar -c -C "$ATRIUM_SHARED" . | tar -x --to-command='sha256sum | cut -d" " -f1' -f - | sort; }

same_there() {
  if [ "$(digests "$1" /var/lib/atrium/plans)" != "$(shared_digests)" ]; then
    echo "error: what $1 fetched is not what peer-a shares" >&2
    exit 1
  fi
}

peers() {
  peer peer-a init acme --person anna
  for other in b c; do
    code=$(peer peer-a invite --for "person-$other" 2>/dev/null)
    echo "$code" | peer "peer-$other" join peer-a --code-file -
  done
  peer peer-a share /srv/plans --with everyone
  peer peer-b get acme/peer-a/plans /var/lib/atrium/plans
  same_there peer-b
  echo "peer-b fetched the folder of peer-a"
  # Who has seen what a share holds can fetch it from others when its owner is away.
  listed=$(peer peer-c ls --recursive acme/peer-a/plans | wc -l)
  echo "peer-c listed it: $listed entries"
  docker network disconnect atrium_office "$(compose ps -q peer-a)"
  peer peer-c get acme/peer-a/plans /var/lib/atrium/plans
  same_there peer-c
  docker network connect --alias peer-a atrium_office "$(compose ps -q peer-a)"
  echo "peer-a was cut off, and peer-c fetched the same folder from peer-b"
}
b3() { sha256sum | cut -d' ' -f1; }

down() {
  if docker info >/dev/null 2>&1; then
    compose down -v --remove-orphans
  fi
  # Only an engine that this script started is stopped.
  if [ -f "$pidfile" ]; then
    kill "$(cat "$pidfile")" 2>/dev/null || true
    for _ in $(seq 60); do [ -e "$pidfile" ] || break; sleep 0.5; done
  fi
}

case "${1:-up}" in
  up) up ;;
  down) down ;;
  *) echo "usage: cluster.sh [up|down]" >&2; exit 2 ;;
esac
