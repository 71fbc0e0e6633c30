#!/bin/bash
# One-page jobs of 30 kB: how many a second are accepted and finished by our folder printer and by cupsd, with the same
# client, in turns. Accepted: by queues that are paused, with connections that are kept. Finished: by our folder, and by a
# queue of cupsd without filters to a socket that swallows all. Ours answers when a job is synced; cupsd does not sync. So
# everything is measured on the disk, and once more in memory, where a sync costs neither of them anything. cupsd keeps no
# history: it writes late, and what was canceled in one round would be written in the next.
#
#   tests/devices/printers_bench.sh DIRECTORY [ROUNDS]   where the example print_bench is, of a release build
#                                                        (cargo build --release -p atrium-device --example print_bench);
#                                                        as root, with cups installed
#   OLD=DIRECTORY    another print_bench, to be measured as a third one
set -eu
bin=$(realpath "${1:?where is print_bench?}")
rounds=${2:-5}
work=$(mktemp -d)
export PATH=$PATH:/usr/sbin WORK=$work BIN=$bin ROUNDS=$rounds OLD=${OLD:+$(realpath "$OLD")}
trap 'rm -rf "$work"' EXIT
cat >"$work/bench.sh" <<'BENCH'
set -u
place=$1 # disk or memory
mount -t tmpfs tmpfs /run && mkdir -p /run/cups
at=$WORK/$place && mkdir -p "$at"
[ "$place" = disk ] || mount -t tmpfs tmpfs "$at"
cp -a /etc/cups "$at/etc" && mount --bind "$at/etc" /etc/cups
mkdir -p "$at/spool/tmp" && chown -R root:lp "$at/spool" && mount --bind "$at/spool" /var/spool/cups
cat >/etc/cups/cupsd.conf <<CONF
Listen 127.0.0.1:6631
Listen /run/cups/cups.sock
MaxJobs 0
PreserveJobHistory No
PreserveJobFiles No
MaxClients 200
LogLevel none
Browsing No
<Location />
Order allow,deny
Allow all
</Location>
<Policy default>
<Limit All>
Order allow,deny
Allow all
</Limit>
</Policy>
CONF
python3 - <<'PY' &
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", 9199)); s.listen(100)
while True:
    c, _ = s.accept()
    while c.recv(1 << 20): pass
    c.close()
PY
pids=$!
cupsd -f & pids="$pids $!"
for _ in $(seq 100); do [ -S /run/cups/cups.sock ] && break; sleep 0.1; done
lpadmin -p folder -E -v socket://127.0.0.1:9199 -m raw 2>/dev/null
lpadmin -p held -E -v socket://127.0.0.1:9199 -m raw 2>/dev/null
cupsdisable held
declare -A uri format
uri[cupsd]=ipp://127.0.0.1:6631 format[cupsd]=application/vnd.cups-raw
begin() { # NAME PROGRAM
    "$2/print_bench" serve "$at/$1" >"$at/$1.out" & pids="$pids $!"
    for _ in $(seq 100); do grep -q READY "$at/$1.out" && break; sleep 0.1; done
    uri[$1]=ipp://127.0.0.1:$(sed -n 's/READY port=//p' "$at/$1.out") format[$1]=application/pdf
}
begin atrium "$BIN"
servers="atrium cupsd"
[ -z "$OLD" ] || { begin before "$OLD"; servers="before $servers"; }
for _ in $(seq "$ROUNDS"); do
    # Each comes first as often as the others: what one leaves to the disk is felt by the next.
    servers="${servers#* } ${servers%% *}"
    for lanes in 1 4 16; do
        for server in $servers; do
            echo "$place $server $(FORMAT=${format[$server]} LANES=$lanes NOWAIT=1 "$BIN/print_bench" "${uri[$server]}/printers/held" 400)"
        done
    done
    for server in $servers; do
        echo "$place $server $(FORMAT=${format[$server]} LANES=4 "$BIN/print_bench" "${uri[$server]}/printers/folder" 100 | sed 's/.*, finished/finished/')"
    done
done
kill $pids
wait
BENCH
for place in disk memory; do
    unshare -m --propagation private bash "$work/bench.sh" $place 2>>"$work/log" | tee -a "$work/all" >&2
done
python3 - "$work/all" <<'PY'
import re, statistics, sys
found = {}
for line in open(sys.argv[1]):
    m = re.match(r"(\w+) (\w+) (accepted|finished) (\d+)/s.*, (\d+) connections", line)
    if m:
        place, server, what, rate, lanes = m.groups()
        found.setdefault((place, what, int(lanes)), {}).setdefault(server, []).append(int(rate))
for (place, what, lanes), rates in found.items():
    texts = [f"{server} {statistics.median(all):.0f}/s ({min(all)} to {max(all)})" for server, all in rates.items()]
    for other in rates:
        if other != "atrium" and len(rates[other]) == len(rates["atrium"]):
            ratios = [a / b for a, b in zip(rates["atrium"], rates[other])]
            texts.append(f"atrium : {other} = {statistics.median(ratios):.2f}")
    print(f"{place}, {what}, {lanes} connections: " + "; ".join(texts))
PY
