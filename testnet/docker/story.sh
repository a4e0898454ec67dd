#!/usr/bin/env bash
# The story of `make demo` across containers: six steps, one line each, `N passed, 0 failed`.
# Run it once after up.sh; a failure prints what the containers said last.
set -euo pipefail
# shellcheck source=testnet/docker/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

counter=demo.v1.Counter
greeter=greeter.v1.Greeter
clock=clock.v1.Clock
extra=${COMPOSE_PROJECT_NAME}-f
find_containers
passed=0

fail() {
  printf '%s  FAIL  %s\n' "$1" "$2"
  echo "$3" | sed 's/^/        /'
  for node in "${nodes[@]}"; do docker logs --tail 12 "${containers[$node]}" 2>&1 | sed "s/^/$node | /"; done
  echo "$passed passed, 1 failed"
  exit 1
}

# step NUMBER CLAIM FUNCTION: runs it, and tells the claim with its time and what was seen.
step() {
  local begun=$EPOCHREALTIME seen took code
  # Not in a condition: there, bash would not stop the function at its first failure.
  set +e
  seen=$(set -e; "$3" 2>&1)
  code=$?
  set -e
  [ $code -eq 0 ] || fail "$1" "$2" "$seen"
  took=$(awk -v from="$begun" -v to="$EPOCHREALTIME" 'BEGIN { printf "%6.2f", to - from }')
  passed=$((passed + 1))
  printf '%s  %s s  ok    %s%s\n' "$1" "$took" "$2" "${seen:+: $(tail -n 1 <<<"$seen")}"
}

id() { on "$1" blackhole --json status | tr -d ' \n' | sed 's/.*"peer_id":"\([^"]*\)".*/\1/'; }
# What NODE knows of SERVICE: the adverts it holds, and the peers that the DHT names.
registry() { on "$1" blackhole --json registry query "$2" | tr -d ' \n'; }
knows() { registry "$1" "$2" | grep "$3" >/dev/null; }
knows_none() {
  local listed
  listed=$(on "$1" blackhole --json services) && ! grep "\"$2\"" <<<"$listed"
}
# Adds 1 at NODE with grpcurl; prints the instance that answered.
add() {
  on "$1" grpcurl -plaintext -d '{"name":"story","amount":1}' 127.0.0.1:9090 $counter/Add |
    tr -d ' \n' | sed 's/.*"instance":"\([^"]*\)".*/\1/'
}
# A field of a plugin of NODE, as `blackhole plugin info` tells it.
field() { on "$1" blackhole --json plugin info "$2" | tr -d ' \n' | sed "s/.*\"$3\":\"\{0,1\}\([^\",}]*\).*/\1/"; }
everyone_knows() { for node in a b c d e; do await 30 knows "$node" "$1" "$2"; done; }

up() {
  for node in a b c d e; do on "$node" blackhole status >/dev/null; done
  echo "${#nodes[@]} containers of $BLACKHOLE_IMAGE"
}
counter_on_a() {
  on a blackhole plugin load /opt/blackhole/plugins/counter --wait >/dev/null
  everyone_knows $counter "$(id a)"
}
greeter_on_b() {
  on b sh -c 'cd /opt/foreign && blackhole plugin load --name greeter --listen unix --read /opt/foreign \
    --exec "/opt/foreign/python/bin/python /opt/foreign/server.py --address unix:\$BH_PLUGIN_SOCKET" --wait' >/dev/null
  everyone_knows $greeter "$(id b)"
}
clock_on_c() {
  on c sh -c 'cd /opt/foreign && blackhole plugin load --name clock --listen tcp:50051 --read /opt/foreign \
    --exec "/opt/foreign/bin/clock -port 50051" --wait' >/dev/null
  everyone_knows $clock "$(id c)"
}
found() {
  local service node
  for pair in $counter=a $greeter=b $clock=c; do
    service=${pair%=*} node=$(id "${pair#*=}")
    # Only what the DHT names counts here.
    in_dht() { registry e "$service" | sed 's/.*"in_dht"//' | grep "$node" >/dev/null; }
    await 30 in_dht
  done
}
grpcio() {
  on e /opt/foreign/python/bin/python /opt/foreign/check_client.py --address 127.0.0.1:9090 greeter clock
}
grpcurl_at_e() {
  local listed; listed=$(on e grpcurl -plaintext 127.0.0.1:9090 list)
  for service in $counter $greeter $clock; do
    grep -qx "$service" <<<"$listed" || { echo "$service is not in: $listed"; return 1; }
  done
  add e >/dev/null
  on e grpcurl -plaintext -d '{"name":"Ada"}' 127.0.0.1:9090 $greeter/Hello |
    grep 'Hello, Ada!' >/dev/null
  on e grpcurl -plaintext 127.0.0.1:9090 $clock/Now | grep zone >/dev/null
  echo "$(wc -l <<<"$listed") services"
}
spread() {
  on d blackhole plugin load /opt/blackhole/plugins/counter --wait >/dev/null
  await 30 knows e $counter "$(id d)"
  local answered=""
  for _ in $(seq 20); do answered+="$(add e)"$'\n'; done
  local kinds; kinds=$(printf '%s' "$answered" | sort | uniq -c)
  [ "$(wc -l <<<"$kinds")" -eq 2 ] || { echo "not two providers: $kinds"; return 1; }
  awk '{ printf "%s%s", sep, $1; sep = " and " } END { print " of 20" }' <<<"$kinds"
}
kill_plugin() {
  local before after; before=$(field a counter pid)
  on a sh -c "kill -9 $before"
  restarted() {
    after=$(field a counter pid)
    [ "$after" != 0 ] && [ "$after" != "$before" ] && [ "$(field a counter state)" = running ]
  }
  await 30 restarted
  echo "process $before became $(field a counter pid)"
}
kill_peer() {
  local survivor answered; survivor=$(field d counter instance)
  docker kill "${containers[a]}" >/dev/null
  answered=$(add e)
  [ "$answered" = "$survivor" ] || { echo "$answered answered, not $survivor"; return 1; }
}
restart_peer() {
  docker start "${containers[a]}" >/dev/null
  again() { [ "$(id a)" = "$id_of_a" ] && knows e $counter "$id_of_a" && [ "$(field a counter state)" = running ]; }
  await 60 again
  echo "$id_of_a"
}
kill_bootstrap() {
  docker kill "${containers[bootstrap]}" >/dev/null
  on b blackhole plugin load /opt/blackhole/plugins/kv --wait >/dev/null
  await 30 knows e demo.v1.Kv "$(id b)"
  on e grpcurl -plaintext -d '{"key":"k","value":"dg=="}' 127.0.0.1:9090 demo.v1.Kv/Put >/dev/null
}
sixth() {
  compose run -d --no-deps --name "$extra" a \
    bh-peer --json --name f --bootstrap /dns4/d/tcp/4001 >/dev/null 2>&1
  answered() {
    docker exec "$extra" grpcurl -plaintext -d '{"name":"f","amount":1}' 127.0.0.1:9090 $counter/Add
  }
  await 60 answered >/dev/null
}
unload() {
  on a blackhole plugin unload counter >/dev/null
  on d blackhole plugin unload counter >/dev/null
  for node in a b c d e; do await 5 knows_none "$node" $counter; done
}
refused() {
  local said
  if said=$(on e blackhole call $counter/Add 2>&1); then echo "it was answered: $said"; return 1; fi
  grep -q "service $counter not available" <<<"$said" || { echo "$said"; return 1; }
}
stop() {
  docker stop --time 30 "$extra" >/dev/null
  compose stop -t 30 a b c d e >/dev/null 2>&1
  local node code container
  for node in a b c d e; do
    container=${containers[$node]}
    code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
    [ "$code" = 0 ] || { echo "$node ended with $code"; return 1; }
    if docker export "$container" | tar -t | grep -E '^run/blackhole/.*\.sock$'; then
      echo "$node left sockets behind"
      return 1
    fi
  done
  docker rm "$extra" >/dev/null
  echo "every exit code 0, no socket left"
}

trap 'docker rm --force "$extra" >/dev/null 2>&1 || true' EXIT
step 1.1 "a bootstrap node and peers A to E serve, each in a container" up
step 1.2 "A: counter, a Rust plugin, is loaded, ready, announced" counter_on_a
step 1.3 "B: an unmodified Python grpcio server" greeter_on_b
step 1.4 "C: an unmodified Go server that only knows TCP" clock_on_c
step 2.1 "E, told none of their addresses, finds each through the DHT" found
step 2.2 "an unmodified grpcio client at E: all kinds of call, metadata, status, deadlines" grpcio
step 2.3 "grpcurl at E lists and calls all three by name" grpcurl_at_e
step 3.1 "a second counter on D: calls spread over A and D" spread
id_of_a=$(id a)
step 3.2 "kill -9 of A's plugin: restarted by its supervisor" kill_plugin
step 3.3 "kill -9 of peer A: the next call is answered by D" kill_peer
step 3.4 "A started again: same peer id, announced again by itself" restart_peer
step 4.1 "the bootstrap node killed: peers still find each other" kill_bootstrap
step 4.2 "a sixth peer joins through D and calls" sixth
step 5.1 "both counters unloaded: gone from every peer's list" unload
step 5.2 "a call is refused at once" refused
step 6.1 "clean stop" stop
echo "$passed passed, 0 failed"
echo "testnet: stopped; up.sh starts it again, down.sh removes it"
