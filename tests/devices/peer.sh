#!/bin/bash
# The same judges through real peers: the five suites of ipptool against a printer of a peer-node, and a disc that another
# peer-node reads over the network and gives to nbdinfo, nbdcopy, qemu-img and nbdkit's checkwrite filter. As root also the
# other way round: a printer of a peer-node whose pages go to CUPS by ipps, with the certificate that CUPS makes for itself.
#
#   tests/devices/peer.sh DIRECTORY     where peer-node and atrium are, such as target/debug
set -u
bin=$(realpath "${1:?where are peer-node and atrium?}")
suites=/usr/share/cups/ipptool
missing=
for pair in ipptool:cups-ipp-utils nbdinfo:libnbd-bin nbdcopy:libnbd-bin nbdkit:nbdkit qemu-img:qemu-utils xorriso:xorriso cupsd:cups python3:python3; do
  PATH=$PATH:/usr/sbin command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
if [ -n "$missing" ] && [ "$(id -u)" = 0 ]; then
  # shellcheck disable=SC2086
  apt-get update -q >/dev/null 2>&1; DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >/dev/null 2>&1
elif [ -n "$missing" ]; then
  echo "missing:$missing"; exit 2
fi
work=$(mktemp -d)
pids=()
passed=0 failed=0
finish() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; done; rm -rf "$work"; }
trap finish EXIT
ok() { passed=$((passed + 1)); echo "ok      $*"; }
bad() { failed=$((failed + 1)); echo "FAILED  $*"; }
check() { local what=$1; shift; if "$@" >"$work/check.log" 2>&1; then ok "$what"; else bad "$what"; tail -5 "$work/check.log"; fi; }

start() { # NAME SEED
  mkdir -p "$work/$1"
  cat >"$work/$1/peer.toml" <<CONF
[node]
state_directory = "$work/$1/state"
socket = "$work/$1/peer.sock"
listen = ["127.0.0.1:0"]
name = "$1"
[discovery]
mdns = false
beacon = false
seeds = [$2]
[devices]
ipp_listen = ["127.0.0.1:0"]
ipps_listen = ["127.0.0.1:0"]
announce = false
CONF
  "$bin/peer-node" --config "$work/$1/peer.toml" >"$work/$1/out" 2>"$work/$1/log" &
  pids+=($!)
  for _ in $(seq 200); do grep -q 127.0.0.1: "$work/$1/out" && break; sleep 0.05; done
}
at() { local name=$1; shift; ATRIUM_PEER_SOCKET="$work/$name/peer.sock" "$bin/atrium" "$@"; }
until_so() { for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return 0; sleep 0.05; done; return 1; }

start anna ""
address=$(grep -o '127.0.0.1:[0-9]*' "$work/anna/out" | head -1)
start bert "\"$address\""
at anna init acme --name anna --person anna >/dev/null
at anna invite --for bert 2>/dev/null | at bert join "$address" --code-file - --name bert >/dev/null 2>&1

at anna share printers/laser --output "folder:$work/paper" --with everyone --in-color --duplex >/dev/null
has() { at bert devices --json | grep -q "$1"; }
until_so has printers/laser || bad "the other peer does not see the printer"
printf '%%PDF-1.4\n1 0 obj\n<</Type/Catalog/Pages 2 0 R>>\nendobj\n2 0 obj\n<</Type/Pages/Kids[3 0 R]/Count 1>>\nendobj\n3 0 obj\n<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]>>\nendobj\nxref\n0 4\n0000000000 65535 f \n0000000009 00000 n \n0000000054 00000 n \n0000000105 00000 n \ntrailer\n<</Size 4/Root 1 0 R>>\nstartxref\n170\n%%%%EOF\n' >"$work/doc.pdf"
for scheme in ipp ipps; do
  uri=$(at bert devices acme/anna/printers/laser --json | grep -o "$scheme://[^\"]*" | head -1)
  for suite in ipp-1.1:1.1 ipp-2.0:2.0 ipp-2.1:2.1 ipp-2.2:2.2 ipp-everywhere:2.0; do
    timeout 300 ipptool -V "${suite##*:}" -tI -f "$work/doc.pdf" "$uri" "$suites/${suite%%:*}.test" >"$work/suite.log" 2>&1
    good=$(grep -c '\[PASS\]' "$work/suite.log") wrong=$(grep -c '\[FAIL\]' "$work/suite.log")
    if [ "$wrong" = 0 ] && [ "$good" -ge 30 ]; then ok "${suite%%:*} over $scheme: $good passed"
    else bad "${suite%%:*} over $scheme: $good passed, $wrong failed"; grep -A8 '\[FAIL\]' "$work/suite.log" | head -24; fi
  done
done

mkdir -p "$work/content/letters"
head -c 40000000 /dev/urandom >"$work/content/film.bin"
echo "dear bert" >"$work/content/letters/an old letter.txt"
xorriso -as mkisofs -quiet -R -J -V FIRST -o "$work/disc.iso" "$work/content" 2>/dev/null
at anna share drives/dvd --image "$work/disc.iso" --with everyone=write >/dev/null
until_so has FIRST || bad "the other peer does not see the disc"
at bert disc export acme/anna/drives/dvd --nbd --nbd-socket "$work/nbd.sock" --http --json >"$work/uris" 2>/dev/null &
pids+=($!)
until_so test -s "$work/uris"
tcp=$(grep -o 'nbd://[0-9.:]*' "$work/uris" | head -1) unix="nbd+unix:///?socket=$work/nbd.sock"
http=$(grep -o 'http://[0-9.:]*/' "$work/uris" | head -1)
check "nbdinfo" nbdinfo "$tcp"
check "nbdinfo --map" nbdinfo --map "$tcp"
check "nbdcopy and cmp" sh -c "nbdcopy '$tcp' '$work/copy.iso' && cmp '$work/copy.iso' '$work/disc.iso'"
check "nbdcopy over a Unix socket" sh -c "nbdcopy '$unix' '$work/copy2.iso' && cmp '$work/copy2.iso' '$work/disc.iso'"
check "qemu-img compare" qemu-img compare -f raw -F raw "$work/disc.iso" "$tcp"
nbdkit -U "$work/check.sock" --pidfile "$work/check.pid" --filter=checkwrite file "$work/disc.iso"
check "nbdkit checkwrite, 4 connections of 64 requests" nbdcopy --connections=4 --requests=64 "$tcp" "nbd+unix:///?socket=$work/check.sock"
kill "$(cat "$work/check.pid")" 2>/dev/null
check "the image over HTTP in a range" bash -c "curl -sf -r 100000-299999 '${http}disc.iso' | cmp - <(tail -c +100001 '$work/disc.iso' | head -c 200000)"
check "a file of the disc" sh -c "ATRIUM_PEER_SOCKET='$work/bert/peer.sock' '$bin/atrium' cat 'acme/anna/drives/dvd/letters/an old letter.txt' | cmp - '$work/content/letters/an old letter.txt'"

# The same to other machines over TLS: only who has the keys of this export reads.
export_to() { # NAME ARGUMENTS...: begins an export; its addresses go to $work/NAME
  local name=$1; shift
  at bert disc export acme/anna/drives/dvd "$@" --json >"$work/$name" 2>"$work/$name.log" &
  pids+=($!)
  until_so test -s "$work/$name"
}
nbds() { grep -o "nbds://[^\"]*" "$work/$1" | head -1; }
export_to tls --listen 127.0.0.1:0 --tls "$work/keys"
export_to other --listen 127.0.0.1:0 --tls "$work/other keys"
tls=$(nbds tls) bare=${tls%%/\?*}
check "nbdinfo over TLS" sh -c "nbdinfo '$tls' | grep -q 'with TLS'"
check "nbdcopy over TLS and cmp" sh -c "nbdcopy '$tls' '$work/copy3.iso' && cmp '$work/copy3.iso' '$work/disc.iso'"
check "4 connections over TLS" nbdcopy --connections=4 --requests=64 "$tls" null:
check "the keys' directory may have a blank in its name" nbdinfo "$(nbds other)"
check "qemu-img compare over TLS" qemu-img compare --image-opts --object "tls-creds-x509,id=keys,dir=$work/keys,endpoint=client" \
  "driver=raw,file.filename=$work/disc.iso" "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=${bare##*:},tls-creds=keys"
check "only this user can read the key" sh -c "[ \"\$(stat -c %a '$work/keys/client-key.pem')\" = 600 ]"
mkdir "$work/no-keys" && cp "$work/keys/ca-cert.pem" "$work/no-keys"
check "nothing without a client certificate" sh -c "! timeout 20 nbdcopy '$bare/?tls-certificates=$work/no-keys' null:"
mkdir "$work/wrong-keys" && cp "$work/other keys/"* "$work/wrong-keys" && cp "$work/keys/ca-cert.pem" "$work/wrong-keys"
check "nothing with the keys of another export" sh -c "! timeout 20 nbdcopy '$bare/?tls-certificates=$work/wrong-keys' null:"
check "nothing without TLS" sh -c "! timeout 20 nbdcopy 'nbd://${bare#nbds://}' null:"
check "the reader tells another server from this one" sh -c "! timeout 20 nbdinfo '$bare/?tls-certificates=$work/other%20keys'"
refused() { at bert disc export acme/anna/drives/dvd --listen 0.0.0.0:0 --json 2>&1 | grep -q TLS_REQUIRED; }
check "beyond this machine without TLS is refused" refused
export_to plain --listen 0.0.0.0:0 --plain
open=$(grep -o 'nbd://[0-9.:]*' "$work/plain" | head -1)
check "unless it is said" sh -c "nbdcopy '$open' '$work/copy4.iso' && cmp '$work/copy4.iso' '$work/disc.iso'"
export_to wide --listen 0.0.0.0:0 --tls "$work/wide-keys"
check "by this machine's address in the network" nbdinfo "$(nbds wide)"
check "exports are in the audit" sh -c "ATRIUM_PEER_SOCKET='$work/bert/peer.sock' '$bin/atrium' devices --audit --json | grep -q '\"export\"'"

# Another disc: nothing of it is given to who opened the first one.
xorriso -as mkisofs -quiet -R -J -V SECOND -o "$work/second.iso" "$work/content/letters" 2>/dev/null
at anna disc insert drives/dvd "$work/second.iso" >/dev/null
until_so has SECOND
changed() { ! timeout 20 nbdcopy "$tcp" null: 2>/dev/null; }
check "the old disc cannot be read any more" until_so changed
ripped() { at bert disc rip acme/anna/drives/dvd "$work/second-copy.iso" && cmp "$work/second-copy.iso" "$work/second.iso"; }
check "the new one can" ripped

# CUPS, in a mount namespace of its own, with a queue that goes to a socket.
cat >"$work/cups.sh" <<'CUPS'
mount -t tmpfs tmpfs /run && mkdir -p /run/cups "$WORK/spool/tmp"
cp -a /etc/cups "$WORK/etc" && mount --bind "$WORK/etc" /etc/cups
chown -R root:lp "$WORK/spool" && mount --bind "$WORK/spool" /var/spool/cups
cat >/etc/cups/cupsd.conf <<CONF
SSLListen 127.0.0.1:$TLS_PORT
Listen /run/cups/cups.sock
LogLevel error
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
child=
trap 'touch "$WORK/end"; kill $child $sink; wait; exit' TERM
python3 - <<'PY' &
import os, socket
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(os.environ["SINK_PORT"])))
server.listen(100)
count = 0
while True:
    connection, _ = server.accept()
    count += 1
    with open(os.path.join(os.environ["WORK"], f"far-{count}.part"), "wb") as f:
        while data := connection.recv(1 << 20):
            f.write(data)
    os.rename(f.name, f.name[:-5])
    connection.close()
PY
sink=$!
first=1
while [ ! -e "$WORK/end" ]; do
  cupsd -f & child=$!
  echo $child >"$WORK/cups.pid"
  if [ $first = 1 ]; then
    for _ in $(seq 200); do lpadmin -p far -E -v "socket://127.0.0.1:$SINK_PORT" -m raw 2>/dev/null && break; sleep 0.1; done
    first=0; touch "$WORK/cups.ready"
  fi
  wait $child
done
CUPS
if [ "$(id -u)" = 0 ]; then
  export PATH=$PATH:/usr/sbin WORK=$work
  read -r TLS_PORT SINK_PORT < <(python3 -c 'import socket
s = [socket.socket() for _ in range(2)]
[x.bind(("127.0.0.1", 0)) for x in s]
print(*[x.getsockname()[1] for x in s])')
  export TLS_PORT SINK_PORT
  unshare -m --propagation private bash "$work/cups.sh" >"$work/cups.log" 2>&1 &
  pids+=($!)
  until_so test -e "$work/cups.ready" || { bad "CUPS does not start"; tail -5 "$work/cups.log"; }
  far="ipps://127.0.0.1:$TLS_PORT/printers/far"
  shared() { at anna share printers/far --output "$far" "$@" --with everyone --json >"$work/shared" 2>"$work/shared.err"; }
  pin() { grep -o 'sha256:[0-9a-f]*' "$work/shared" | head -1; }
  check "the certificate of CUPS is pinned" shared
  first=$(pin)
  theirs() { openssl s_client -connect "127.0.0.1:$TLS_PORT" </dev/null 2>/dev/null | openssl x509 -noout -fingerprint -sha256 |
    sed 's/.*=//; s/://g' | tr A-F a-f; }
  check "it is the one that openssl sees" test "$first" = "sha256:$(theirs)"
  # A document that nobody else has printed comes out of CUPS as it went in.
  arrives() { # NUMBER
    (cat "$work/doc.pdf"; echo "%$1") >"$work/far.pdf"
    at bert print "$work/far.pdf" --at acme/anna/printers/far >/dev/null && until_so test -e "$work/far-$1" &&
      cmp "$work/far.pdf" "$work/far-$1"
  }
  until_so has printers/far
  check "a document goes to CUPS by TLS" arrives 1
  # CUPS makes itself another certificate: nothing is sent, until the person has looked.
  rm -rf "$work"/etc/ssl/*; kill "$(cat "$work/cups.pid")"
  other() { now=$(theirs); [ -n "$now" ] && [ "sha256:$now" != "$first" ]; }
  until_so other || bad "CUPS does not come back with another certificate"
  (cat "$work/doc.pdf"; echo "%2") >"$work/far.pdf"
  at bert print "$work/far.pdf" --at acme/anna/printers/far >/dev/null
  refused() { at anna devices printers/far --own --json | grep -q PRINTER_UNTRUSTED; }
  check "another certificate is refused, and why is said" until_so refused
  check "nothing was sent to it" test ! -e "$work/far-2"
  check "it is believed when the person says so" shared --trust new
  check "as openssl sees it" test "$(pin)" = "sha256:$(theirs)"
  waited() { until_so test -e "$work/far-2" && cmp "$work/far.pdf" "$work/far-2"; }
  check "the document that waited arrives" waited
  check "a certificate that is given is believed" bash -c "openssl s_client -connect 127.0.0.1:$TLS_PORT </dev/null 2>/dev/null | openssl x509 >'$work/cups.pem' &&
    ATRIUM_PEER_SOCKET='$work/anna/peer.sock' '$bin/atrium' share printers/far --trust '$work/cups.pem'"
  check "a document goes to CUPS with it" arrives 3
  not_shared() { ! at anna share printers/far --trust system; }
  check "no authority vouches for it" not_shared
else
  echo "skipped: printing to CUPS by TLS needs root"
fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
