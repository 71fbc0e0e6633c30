#!/bin/bash
# 100 one-page jobs of 30 kB: how many a second are accepted and finished by our folder printer and by cupsd, with the same
# client. cupsd: accepted by a queue that is stopped; finished by a queue without filters to a socket that swallows all.
#
#   tests/devices/printers_bench.sh DIRECTORY     where the example print_bench is; as root, with cups installed
set -eu
bin=$(realpath "${1:?where is print_bench?}")
work=$(mktemp -d)
export PATH=$PATH:/usr/sbin WORK=$work BIN=$bin
trap 'rm -rf "$work"' EXIT
cat >"$work/cups.sh" <<'CUPS'
mount -t tmpfs tmpfs /run && mkdir -p /run/cups
mount -t tmpfs tmpfs /var/spool/cups && mkdir -p /var/spool/cups/tmp && chown root:lp /var/spool/cups /var/spool/cups/tmp
cp -a /etc/cups "$WORK/etc" && mount --bind "$WORK/etc" /etc/cups
umount /var/spool/cups && mkdir "$WORK/spool" && chown root:lp "$WORK/spool" && mount --bind "$WORK/spool" /var/spool/cups
mkdir -p /var/spool/cups/tmp
cat >/etc/cups/cupsd.conf <<CONF
Listen 127.0.0.1:6631
Listen /run/cups/cups.sock
MaxJobs 0
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
sink=$!
cupsd -f & cups=$!
for _ in $(seq 100); do [ -S /run/cups/cups.sock ] && break; sleep 0.1; done
lpadmin -p sink -E -v socket://127.0.0.1:9199 -m raw 2>/dev/null
lpadmin -p held -E -v socket://127.0.0.1:9199 -m raw 2>/dev/null
cupsdisable held
export FORMAT=application/vnd.cups-raw
for lanes in 1 4 16; do
    echo "cupsd, $(LANES=$lanes NOWAIT=1 "$BIN/print_bench" ipp://127.0.0.1:6631/printers/held 100 | cut -d, -f1)"
    echo "cupsd, $(LANES=$lanes "$BIN/print_bench" ipp://127.0.0.1:6631/printers/sink 100)"
done
kill $cups $sink
CUPS
unshare -m --propagation private bash "$work/cups.sh" 2>"$work/log" | tee "$work/theirs"
LANES= "$bin/print_bench" folder "$work/ours" 100 | sed 's/^/atrium, /' | tee "$work/ours.txt"
best() { grep "^$1" "$2" | grep -o "$3 [0-9]*" | grep -o '[0-9]*' | sort -n | tail -1; }
one() { grep "^$1" "$2" | grep -o "$3 [0-9]*" | grep -o '[0-9]*' | head -1; }
echo "best of ours to best of theirs: accepted $(best atrium "$work/ours.txt" accepted) : $(best cupsd "$work/theirs" accepted), finished $(best atrium "$work/ours.txt" finished) : $(best cupsd "$work/theirs" finished)"
echo "one connection: accepted $(one atrium "$work/ours.txt" accepted) : $(one cupsd "$work/theirs" accepted), finished $(one atrium "$work/ours.txt" finished) : $(one cupsd "$work/theirs" finished)"
